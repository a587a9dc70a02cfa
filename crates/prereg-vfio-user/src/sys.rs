//! System calls without a safe wrapper in `std`: sockets with descriptors, poll, eventfds.
//!
//! Arguments are numbers and slices, results values or an [`Errno`]; nothing here keeps state, and only [`poll`] blocks.
#![expect(unsafe_code, reason = "system calls; every pointer handed over is made from a slice or a local")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use prereg::Errno;

mod signal;
pub(crate) use signal::signal;

/// Descriptors of one message in Linux, at most (`SCM_MAX_FD`).
pub(crate) const MAX_DESCRIPTORS: usize = 253;

/// Buffer for [`MAX_DESCRIPTORS`] and their header, aligned for the header.
#[repr(C, align(8))]
struct Control([MaybeUninit<u8>; 1040]);

const HEADER: usize = size_of::<libc::cmsghdr>();
const _: () = assert!(HEADER % size_of::<usize>() == 0, "data follows the header at once");
const _: () = assert!(HEADER + MAX_DESCRIPTORS * size_of::<RawFd>() <= size_of::<Control>());

fn errno() -> Errno {
    errno_of(&io::Error::last_os_error())
}

/// The errno of `error`; EIO for errors that `std` creates.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

fn length(result: isize) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| errno())
}

/// The result of a [`receive`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Received {
    /// Bytes received; 0 at the end of the stream.
    pub(crate) bytes: usize,
    /// Some descriptors were lost.
    pub(crate) truncated: bool,
}

/// Receives up to `buffer.len()` bytes and appends the descriptors. EAGAIN if there is nothing.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Received, Errno> {
    let mut control = Control([MaybeUninit::uninit(); 1040]);
    let mut iov = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a `msghdr` of zeros is a valid one.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Control>() as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the message names `buffer` and `control` with their lengths; both live through the call.
    let bytes = length(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })?;
    let truncated = message.msg_flags & libc::MSG_CTRUNC != 0;
    // SAFETY: the system wrote `msg_controllen` bytes of whole headers and their data to `control`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: `header` points to a header that the system wrote.
        let found = unsafe { header.read() };
        if found.cmsg_level == libc::SOL_SOCKET && found.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the data of a header that lies in `control`.
            let data = unsafe { libc::CMSG_DATA(header) };
            let count = (found.cmsg_len as usize).saturating_sub(HEADER) / size_of::<RawFd>();
            for at in 0..count {
                // SAFETY: `cmsg_len` covers `count` descriptors.
                let index = unsafe { data.add(at * size_of::<RawFd>()) };
                // SAFETY: the system wrote a descriptor there, perhaps unaligned.
                let descriptor = unsafe { index.cast::<RawFd>().read_unaligned() };
                // SAFETY: the system has just created it for this process.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
        // SAFETY: as for the first.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Received { bytes, truncated })
}

/// Sends as much of `bytes` as possible without blocking, and `descriptors` with the first of them. EAGAIN if nothing can be
/// sent.
///
/// # Errors
/// EINVAL for more than [`MAX_DESCRIPTORS`]; the system's.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<usize, Errno> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Errno::EINVAL);
    }
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    if descriptors.is_empty() {
        // SAFETY: `bytes` lives through the call and is only read.
        return length(unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) });
    }
    let mut control = Control([MaybeUninit::zeroed(); 1040]);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a `msghdr` of zeros is a valid one.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    let data = size_of_val(descriptors);
    message.msg_controllen = (HEADER + data.next_multiple_of(size_of::<usize>())) as _;
    let raw: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let header = libc::cmsghdr {
        cmsg_len: (HEADER + data) as _,
        cmsg_level: libc::SOL_SOCKET,
        cmsg_type: libc::SCM_RIGHTS,
    };
    let start = control.0.as_mut_ptr();
    // SAFETY: `control` is longer than a header and aligned for one.
    unsafe { start.cast::<libc::cmsghdr>().write(header) };
    // SAFETY: `control` has room behind the header for `MAX_DESCRIPTORS`, and there are no more.
    let index = unsafe { start.add(HEADER) };
    // SAFETY: as above; the list is on the heap and does not overlap.
    unsafe { index.cast::<RawFd>().copy_from_nonoverlapping(raw.as_ptr(), raw.len()) };
    // SAFETY: the message names `bytes`, which is only read, and `control`; both live through the call.
    length(unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
}

/// A descriptor to poll, and its events.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct PollFd(libc::pollfd);

impl PollFd {
    /// For a descriptor that stays open until the poll ends; a negative one is ignored.
    pub(crate) fn new(descriptor: RawFd, readable: bool, writable: bool) -> Self {
        let mut events = 0;
        if readable {
            events |= libc::POLLIN;
        }
        if writable {
            events |= libc::POLLOUT;
        }
        Self(libc::pollfd { fd: descriptor, events, revents: 0 })
    }

    /// Readable, or the other side hung up.
    pub(crate) fn is_readable(&self) -> bool {
        self.0.revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0
    }

    /// The other side hung up, or the descriptor is invalid.
    pub(crate) fn is_over(&self) -> bool {
        self.0.revents & (libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0
    }
}

/// Waits for an event of `fds` or the timeout. A signal is reported as no event.
pub(crate) fn poll(fds: &mut [PollFd], time: Option<Duration>) -> Result<usize, Errno> {
    let time = milliseconds(time);
    // SAFETY: `PollFd` is a `pollfd`; the slice lives through the call.
    let result = unsafe { libc::poll(fds.as_mut_ptr().cast(), fds.len() as libc::nfds_t, time) };
    match usize::try_from(result) {
        Ok(ready) => Ok(ready),
        Err(_) if errno() == Errno::EINTR => Ok(0),
        Err(_) => Err(errno()),
    }
}

/// An epoll set for repeated waits; cheaper than [`poll`], which passes the descriptors each time.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Watch {
    /// Level-triggered, by index. The owner of this keeps the descriptors open.
    pub(crate) fn new(descriptors: [BorrowedFd<'_>; 2]) -> Result<Self, Errno> {
        Self::with(descriptors.map(Some), libc::EPOLLIN)
    }

    /// Edge-triggered, by index: ready once for each arrival, read or not.
    pub(crate) fn arrivals(descriptors: [Option<BorrowedFd<'_>>; 2]) -> Result<Self, Errno> {
        Self::with(descriptors, libc::EPOLLIN | libc::EPOLLET)
    }

    fn with(descriptors: [Option<BorrowedFd<'_>>; 2], events: libc::c_int) -> Result<Self, Errno> {
        // SAFETY: takes no pointer.
        let descriptor = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(descriptor)?;
        // SAFETY: it is new and has no other owner.
        let watch = unsafe { OwnedFd::from_raw_fd(descriptor) };
        for (index, watched) in (0..).zip(descriptors) {
            let Some(watched) = watched else { continue };
            let mut event = libc::epoll_event { events: events as u32, u64: index };
            let (add, watched) = (libc::EPOLL_CTL_ADD, watched.as_raw_fd());
            // SAFETY: `event` lives through the call and is only read.
            check(unsafe { libc::epoll_ctl(watch.as_raw_fd(), add, watched, &raw mut event) })?;
        }
        Ok(Self(watch))
    }

    /// Waits until one of the two is readable or hung up, or the timeout; returns the events of each. A signal is reported as
    /// no event.
    pub(crate) fn wait(&self, time: Option<Duration>) -> Result<[PollFd; 2], Errno> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 2];
        let (list, time) = (events.as_mut_ptr(), milliseconds(time));
        // SAFETY: the list has room for two events and lives through the call.
        let result = unsafe { libc::epoll_wait(self.0.as_raw_fd(), list, 2, time) };
        let ready = match usize::try_from(result) {
            Ok(ready) => ready,
            Err(_) if errno() == Errno::EINTR => 0,
            Err(_) => return Err(errno()),
        };
        let mut happened = [PollFd::new(-1, false, false); 2];
        for event in events.iter().take(ready) {
            if let Some(index) = happened.get_mut(event.u64 as usize) {
                // Poll and epoll use the same bits.
                index.0.revents = event.events as libc::c_short;
            }
        }
        Ok(happened)
    }
}

/// Rounded up, so that a short wait does not spin.
fn milliseconds(time: Option<Duration>) -> libc::c_int {
    time.map_or(-1, |time| i32::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX))
}

/// A non-blocking eventfd that children do not inherit.
pub(crate) fn eventfd() -> Result<OwnedFd, Errno> {
    // SAFETY: takes no pointer.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if descriptor < 0 {
        return Err(errno());
    }
    // SAFETY: it is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Reads an eventfd's count without blocking, whatever its flags. EAGAIN if it is 0.
///
/// # Errors
/// The system's; EOPNOTSUPP before Linux 5.12 for a blocking eventfd.
pub(crate) fn take_count(eventfd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut count = [0u8; 8];
    let iov = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // SAFETY: `iov` names `count`, which lives through the call.
    let result = unsafe { libc::preadv2(eventfd.as_raw_fd(), &raw const iov, 1, -1, libc::RWF_NOWAIT) };
    match length(result) {
        Ok(8) => return Ok(u64::from_ne_bytes(count)),
        Ok(_) => return Err(Errno::EINVAL),
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) if !blocks(eventfd) => {}
        Err(errno) => return Err(errno),
    }
    // SAFETY: `count` lives through the call; the descriptor does not block.
    match length(unsafe { libc::read(eventfd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) })? {
        8 => Ok(u64::from_ne_bytes(count)),
        _ => Err(Errno::EINVAL),
    }
}

/// Adds one to an eventfd's count. Blocks while that is full, unless the eventfd is non-blocking.
pub(crate) fn add_one(eventfd: BorrowedFd<'_>) -> Result<(), Errno> {
    add(eventfd, 1)
}

/// Adds to an eventfd's count, as [`add_one`] does.
pub(crate) fn add(eventfd: BorrowedFd<'_>, count: u64) -> Result<(), Errno> {
    let count = count.to_ne_bytes();
    // SAFETY: `count` lives through the call and is only read.
    length(unsafe { libc::write(eventfd.as_raw_fd(), count.as_ptr().cast(), count.len()) }).map(|_| ())
}

/// Whether reading and writing block (`O_NONBLOCK` is not set).
pub(crate) fn blocks(descriptor: BorrowedFd<'_>) -> bool {
    // SAFETY: takes no pointer.
    let flags = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL) };
    flags < 0 || flags & libc::O_NONBLOCK == 0
}

/// Process and user at the other end of a Unix socket when it connected.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> Result<(i32, u32), Errno> {
    let mut who = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `who` and its length live through the call, which writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut who).cast(),
            &raw mut bytes,
        )
    };
    if result == 0 { Ok((who.pid, who.uid)) } else { Err(errno()) }
}

/// Listens on a new socket at `path`, whose file is created with at most this mode.
///
/// # Errors
/// ENAMETOOLONG for a path that does not fit an address; the system's.
pub(crate) fn listen(path: &Path, mode: u32) -> Result<OwnedFd, Errno> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: an address of zeros is a valid one.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    // One byte less, for the NUL; an empty path would be another kind of address.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        return Err(Errno::from_raw(libc::ENAMETOOLONG));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (index, byte) in address.sun_path.iter_mut().zip(bytes) {
        *index = *byte as libc::c_char;
    }
    // SAFETY: takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    check(socket)?;
    // SAFETY: it is new and has no other owner.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // The file of the socket gets the mode of the socket. SAFETY: takes no pointer.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), mode) })?;
    let bytes = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: `address` lives through the call and is only read.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) })?;
    // SAFETY: takes no pointer.
    check(unsafe { libc::listen(socket.as_raw_fd(), 128) })?;
    Ok(socket)
}

/// Locks a file exclusively; EAGAIN if it is locked. Closing the file releases the lock.
pub(crate) fn lock(file: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })
}

/// An eventfd with semaphore semantics.
#[cfg(test)]
pub(crate) fn semaphore() -> Result<OwnedFd, Errno> {
    // SAFETY: takes no pointer.
    let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_SEMAPHORE) };
    check(descriptor)?;
    // SAFETY: it is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Clears `O_NONBLOCK`.
#[cfg(test)]
pub(crate) fn set_blocking(descriptor: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: takes no pointer.
    let result = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, libc::O_RDWR) };
    if result == 0 { Ok(()) } else { Err(errno()) }
}
