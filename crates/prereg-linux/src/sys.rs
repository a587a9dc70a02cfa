//! System calls that `std` and `rustix` have no safe function for, and short names for those of `rustix`.
//!
//! Functions take numbers and slices, and return a value or an [`Errno`]. Calls that can take memory away from its
//! owner (`munmap`, `MADV_DONTNEED`) are not here: mappings are owned and dropped in `mapping`.
#![expect(
    unsafe_code,
    reason = "system calls; every pointer handed over is made from a slice or a checked range"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use prereg::Errno;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::ReadWriteFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, MembarrierCommand};

/// Memory of one slot of a buffer table, as the kernel's `struct iovec`. Address and length zero empty the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Buffer {
    pub(crate) ua: u64,
    pub(crate) bytes: u64,
}

impl Buffer {
    /// Empties a slot.
    pub(crate) const NONE: Self = Self { ua: 0, bytes: 0 };
}

const _: () = assert!(size_of::<Buffer>() == size_of::<libc::iovec>(), "both are two words on 64-bit Linux");

/// `struct io_uring_rsrc_update2` of `include/uapi/linux/io_uring.h`.
#[repr(C)]
struct Update {
    offset: u32,
    resv: u32,
    data: u64,
    tags: u64,
    nr: u32,
    resv2: u32,
}

/// `struct io_uring_clone_buffers` of `include/uapi/linux/io_uring.h`.
#[repr(C)]
struct Clone {
    source: u32,
    flags: u32,
    source_first: u32,
    first: u32,
    count: u32,
    pad: [u32; 3],
}

const IORING_UNREGISTER_BUFFERS: libc::c_uint = 1;
const IORING_REGISTER_BUFFERS_UPDATE: libc::c_uint = 16;
const IORING_REGISTER_CLONE_BUFFERS: libc::c_uint = 30;
const IORING_REGISTER_DST_REPLACE: u32 = 1 << 1;

fn errno() -> Errno {
    errno_of(&io::Error::last_os_error())
}

/// The errno of `error`; EIO for errors that `std` makes up itself.
pub(crate) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result == 0 { Ok(()) } else { Err(errno()) }
}

/// The errno of an error of `rustix`.
pub(crate) fn errno_from(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Registers the process for [`membarrier`].
pub(crate) fn membarrier_register() -> Result<(), Errno> {
    rustix::thread::membarrier(MembarrierCommand::RegisterPrivateExpedited).map_err(errno_from)
}

/// A full fence on every running thread of the process.
pub(crate) fn membarrier() -> Result<(), Errno> {
    rustix::thread::membarrier(MembarrierCommand::PrivateExpedited).map_err(errno_from)
}

/// The system page size in bytes.
pub(crate) fn page_size() -> u64 {
    // SAFETY: takes no pointer.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(bytes).unwrap_or(4096)
}

/// Puts `buffers` into the slots from `first` on. Returns how many succeeded: fewer than requested when a later one
/// failed, without its error. A non-zero tag arrives as a completion when its buffer is released.
pub(crate) fn update_buffers(
    ring: RawFd,
    first: u32,
    buffers: &[Buffer],
    tags: &[u64],
) -> Result<u32, Errno> {
    assert_eq!(buffers.len(), tags.len(), "one tag a buffer");
    let update = Update {
        offset: first,
        resv: 0,
        data: buffers.as_ptr() as u64,
        tags: tags.as_ptr() as u64,
        nr: u32::try_from(buffers.len()).map_err(|_| Errno::EINVAL)?,
        resv2: 0,
    };
    // SAFETY: `update` and both arrays live through the call and are only read; the kernel pins, it does not write.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            IORING_REGISTER_BUFFERS_UPDATE,
            &raw const update,
            size_of::<Update>(),
        )
    };
    if done < 0 { Err(errno()) } else { u32::try_from(done).map_err(|_| Errno::EIO) }
}

/// Clones `count` slots of `source` from `source_first` on into those of `ring` from `first` on, without a pin or a
/// charge of their own. The old contents are dropped.
pub(crate) fn clone_buffers(
    ring: RawFd,
    first: u32,
    source: RawFd,
    source_first: u32,
    count: u32,
) -> Result<(), Errno> {
    let clone = Clone {
        source: u32::try_from(source).map_err(|_| Errno::EBADF)?,
        flags: IORING_REGISTER_DST_REPLACE,
        source_first,
        first,
        count,
        pad: [0; 3],
    };
    // SAFETY: `clone` lives through the call and is only read.
    check(unsafe {
        libc::syscall(libc::SYS_io_uring_register, ring, IORING_REGISTER_CLONE_BUFFERS, &raw const clone, 1)
    } as libc::c_int)
}

/// Empties all slots of `ring` and frees its table.
pub(crate) fn unregister_buffers(ring: RawFd) -> Result<(), Errno> {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: takes no argument.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, none, 0) };
    check(result as libc::c_int)
}

/// Duplicates the descriptor of a ring, close-on-exec.
pub(crate) fn duplicate(ring: &io_uring::IoUring) -> Result<OwnedFd, Errno> {
    // SAFETY: `ring` keeps its descriptor open through the call.
    let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(errno_from)
}

/// Reads `bytes` bytes of `file` to `ua` through slot `slot` of `ring`, as the ring's only operation. Returns the
/// completion's result: a count, or a negative errno.
pub(crate) fn read_fixed(
    ring: &mut io_uring::IoUring,
    file: RawFd,
    ua: u64,
    bytes: u32,
    slot: u16,
) -> Result<i32, Errno> {
    let entry =
        io_uring::opcode::ReadFixed::new(io_uring::types::Fd(file), ua as *mut u8, bytes, slot).build();
    // SAFETY: whatever the address, the kernel writes only to pages that the slot holds.
    unsafe { ring.submission().push(&entry) }.map_err(|_| Errno::EBUSY)?;
    ring.submit_and_wait(1).map_err(|error| errno_of(&error))?;
    ring.completion().next().map(|completion| completion.result()).ok_or(Errno::EIO)
}

/// Resets the count of an eventfd; EAGAIN when it is zero. Never blocks, not even on a blocking descriptor.
pub(crate) fn drain_eventfd(event: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut count = [0; size_of::<u64>()];
    let into = &mut [IoSliceMut::new(&mut count)];
    // Offset -1: an eventfd has no position.
    rustix::io::preadv2(event, into, u64::MAX, ReadWriteFlags::NOWAIT).map(drop).map_err(errno_from)
}

fn advise(ua: u64, bytes: u64, advice: libc::c_int) -> Result<(), Errno> {
    let bytes = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the callers below pass only advice that keeps the contents.
    check(unsafe { libc::madvise(ua as *mut libc::c_void, bytes, advice) })
}

/// Faults in every page of the range, writable. Keeps the contents.
pub(crate) fn populate_write(ua: u64, bytes: u64) -> Result<(), Errno> {
    advise(ua, bytes, libc::MADV_POPULATE_WRITE)
}

/// Faults in every page of the range, readable. Keeps the contents.
pub(crate) fn populate_read(ua: u64, bytes: u64) -> Result<(), Errno> {
    advise(ua, bytes, libc::MADV_POPULATE_READ)
}

/// Whether this kernel has the populate advice (Linux 5.14). Older ones refuse it even for an empty range.
pub(crate) fn can_populate() -> bool {
    populate_write(0, 0).is_ok()
}

/// Asks for transparent huge pages.
pub(crate) fn madvise_hugepage(ua: u64, bytes: u64) -> Result<(), Errno> {
    advise(ua, bytes, libc::MADV_HUGEPAGE)
}

/// Excludes the range from children of `fork`.
pub(crate) fn madvise_dontfork(ua: u64, bytes: u64) -> Result<(), Errno> {
    advise(ua, bytes, libc::MADV_DONTFORK)
}

/// Whether the page at `ua` is resident.
pub(crate) fn is_resident(ua: u64, page: u64) -> Result<bool, Errno> {
    let mut state = 0u8;
    let bytes = usize::try_from(page).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `mincore` of one page writes one byte.
    check(unsafe { libc::mincore(ua as *mut libc::c_void, bytes, &raw mut state) })?;
    Ok(state & 1 != 0)
}

/// Locks a range into memory.
pub(crate) fn mlock(ua: u64, bytes: u64) -> Result<(), Errno> {
    let bytes = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: no memory of this process is read or written.
    check(unsafe { libc::mlock(ua as *const libc::c_void, bytes) })
}

/// Unlocks a range.
pub(crate) fn munlock(ua: u64, bytes: u64) -> Result<(), Errno> {
    let bytes = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
    // SAFETY: no memory of this process is read or written.
    check(unsafe { libc::munlock(ua as *const libc::c_void, bytes) })
}

/// Fills `words` from `file` at byte `offset`; returns how many words were read.
pub(crate) fn read_words(file: &File, words: &mut [u64], offset: u64) -> Result<usize, Errno> {
    let offset = libc::off64_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: the buffer is exclusive for the call, and every bit pattern is a `u64`.
    let got =
        unsafe { libc::pread64(file.as_raw_fd(), words.as_mut_ptr().cast(), size_of_val(words), offset) };
    usize::try_from(got).map(|bytes| bytes / size_of::<u64>()).map_err(|_| errno())
}

/// A memfd that can be sealed; `flags` are added to CLOEXEC and ALLOW_SEALING.
pub(crate) fn memfd(name: &CStr, flags: MemfdFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | flags)
        .map_err(errno_from)
}

/// Seals a file against being made shorter. Holes can still be punched.
pub(crate) fn seal_against_shrinking(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fcntl_add_seals(fd, SealFlags::SHRINK).map_err(errno_from)
}

/// RLIMIT_MEMLOCK: soft and hard limit in bytes, `None` for unlimited.
pub(crate) fn memlock_limit() -> (Option<u64>, Option<u64>) {
    let limit = rustix::process::getrlimit(Resource::Memlock);
    (limit.current, limit.maximum)
}

/// Raises the soft limit on open descriptors (RLIMIT_NOFILE) to the hard one, as a server does whose clients send descriptors.
/// Not for programs that use `select`, which knows descriptors up to 1023 only.
///
/// # Errors
/// The system's number; the limit is as before.
pub fn raise_descriptor_limit() -> Result<(), Errno> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).map_err(errno_from)
}

/// The effective capabilities of the calling thread.
pub(crate) fn effective_capabilities() -> Result<CapabilitySet, Errno> {
    rustix::thread::capabilities(None).map(|sets| sets.effective).map_err(errno_from)
}

/// The real and the effective user.
pub(crate) fn uids() -> (u32, u32) {
    (rustix::process::getuid().as_raw(), rustix::process::geteuid().as_raw())
}

/// The magic number of the file system that holds `path`.
pub(crate) fn filesystem_magic(path: &Path) -> Result<i64, Errno> {
    let state = rustix::fs::statfs(path).map_err(errno_from)?;
    Ok(state.f_type as i64)
}

/// The number of threads for the option `wanted`.
pub(crate) fn worker_threads(wanted: usize) -> usize {
    const MOST: usize = 8;
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST)),
        wanted => wanted,
    }
}
