//! System calls without a safe function in `std`.
#![expect(unsafe_code, reason = "system calls; pointers are to our own memory")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use prereg::Errno;
use prereg_linux::AlignedBuffer;

/// Makes writes beyond the process's file size limit (RLIMIT_FSIZE) fail with EFBIG, which a guest sees as a write fault.
///
/// By default such a write raises SIGXFSZ, which kills the process and with it every guest it serves. Signal dispositions
/// belong to the whole process, so no disk changes them: a program that serves [`FileDisk`](super::FileDisk)s calls this once.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN installs no handler. The call fails only for a signal that does not exist.
    let _ = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// The alignment that direct I/O requires.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::disk) struct Alignment {
    /// Of memory addresses.
    pub(in crate::disk) memory: u64,
    /// Of file offsets and lengths.
    pub(in crate::disk) offset: u64,
}

/// The error number of `error`; EIO for errors that `std` makes itself.
pub(in crate::disk) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn last_errno() -> Errno {
    errno_of(&io::Error::last_os_error())
}

/// The alignment that the file system reports for direct I/O on this file (`STATX_DIOALIGN`, Linux 6.1). `None`: unknown;
/// `Some(None)`: no direct I/O.
pub(in crate::disk) fn stated_alignment(file: &File) -> Option<Option<Alignment>> {
    const STATX_DIOALIGN: u32 = 0x2000;
    /// `struct statx` in 32-bit words, and the indices of the mask and the two alignments.
    const WORDS: usize = 64;
    const MASK: usize = 0;
    const MEMORY: usize = 38;
    const OFFSET: usize = 39;
    let mut state = [0u32; WORDS];
    // SAFETY: the path is an empty string, which AT_EMPTY_PATH allows; the kernel writes one `struct statx`, 256 bytes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            state.as_mut_ptr(),
        )
    };
    if result != 0 || state[MASK] & STATX_DIOALIGN == 0 {
        return None;
    }
    let (memory, offset) = (u64::from(state[MEMORY]), u64::from(state[OFFSET]));
    Some((memory > 0 && offset > 0).then_some(Alignment { memory, offset }))
}

/// Whether a direct read of `bytes` at offset `bytes` works.
pub(in crate::disk) fn can_read_by(file: &File, bytes: usize) -> Result<bool, Errno> {
    let mut buffer = AlignedBuffer::zeroed(bytes)?;
    let offset = libc::off64_t::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    let into = buffer.as_mut_slice();
    // SAFETY: the buffer is ours and `into.len()` long.
    let got = unsafe { libc::pread64(file.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), offset) };
    if got >= 0 {
        return Ok(true);
    }
    match last_errno() {
        Errno::EINVAL => Ok(false),
        errno => Err(errno),
    }
}

/// Locks the file against other processes that lock it; `false` when one has it locked.
pub(in crate::disk) fn lock(file: &File, shared: bool) -> Result<bool, Errno> {
    let how = if shared { libc::LOCK_SH } else { libc::LOCK_EX };
    // SAFETY: takes no pointer.
    if unsafe { libc::flock(file.as_raw_fd(), how | libc::LOCK_NB) } == 0 {
        return Ok(true);
    }
    match last_errno().raw() {
        libc::EWOULDBLOCK => Ok(false),
        // A file system without locks.
        libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL => Ok(true),
        raw => Err(Errno::from_raw(raw)),
    }
}

/// Punches a hole of `bytes` at `offset`.
pub(in crate::disk) fn punch(file: &File, offset: u64, bytes: u64) -> Result<(), Errno> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let bytes = libc::off64_t::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: takes no pointer.
    if unsafe { libc::fallocate64(file.as_raw_fd(), PUNCH, offset, bytes) } == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// `fallocate` modes that deallocate, or keep storage; both make the range read zero and keep the size.
pub(in crate::disk) const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
/// See [`PUNCH`].
pub(in crate::disk) const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// Waits until eventfd `event` is written, at most for `time` (`None`: for ever), and resets it. Returns whether it was
/// written.
pub(in crate::disk) fn wait_for_event(event: &OwnedFd, time: Option<Duration>) -> Result<bool, Errno> {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let time = time.map(|time| libc::timespec {
        tv_sec: time.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: time.subsec_nanos().into(),
    });
    let limit = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: one `pollfd` of ours, and a time that is ours or null; null leaves the signal mask alone.
    let ready = unsafe { libc::ppoll(&raw mut poll, 1, limit, std::ptr::null()) };
    match ready {
        0 => return Ok(false),
        1.. => {}
        _ => match last_errno() {
            Errno::EINTR => return Ok(false),
            errno => return Err(errno),
        },
    }
    let mut count = 0u64;
    // SAFETY: eight bytes of ours. It is readable and has no other reader, so this does not wait.
    let got = unsafe { libc::read(event.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    if got >= 0 { Ok(true) } else { Err(last_errno()) }
}
