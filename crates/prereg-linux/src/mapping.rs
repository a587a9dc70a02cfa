//! Owner of an `mmap`: unmapped when the last owner is dropped.
//!
//! No reference into the memory is handed out, because a device, the kernel or another process may write it at any
//! time. It is accessed through `atomic_access`.
#![expect(unsafe_code, reason = "mmap and munmap, and a touch of pages whose bounds were checked")]

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use prereg::Errno;

/// A mapping that this process made.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// The address to unmap.
    whole: NonNull<c_void>,
    whole_bytes: usize,
    /// The first usable byte: aligned, inside `whole`.
    start: NonNull<u8>,
    bytes: usize,
    /// For sharing the memory; the mapping itself does not need the descriptor.
    file: Option<OwnedFd>,
}

// SAFETY: a mapping belongs to the process, not to a thread; unmapping and copying work from any thread.
unsafe impl Send for Mapping {}
// SAFETY: `&Mapping` only exposes addresses and lengths; accesses through them are atomic, done by the kernel, or to a
// device's registers.
unsafe impl Sync for Mapping {}

/// Arguments of `mmap`.
pub(crate) struct MapRequest {
    pub(crate) bytes: usize,
    /// Alignment of the first byte: a power of two.
    pub(crate) align: usize,
    pub(crate) protection: libc::c_int,
    pub(crate) flags: libc::c_int,
    pub(crate) file: Option<OwnedFd>,
}

impl Mapping {
    /// Maps at an address of the kernel's choice. hugetlbfs aligns files to their pages itself.
    ///
    /// A file is not mapped over a reservation: a failed `mmap` with MAP_FIXED leaves a hole in the range to be replaced, and
    /// unmapping the reservation would then remove what another thread has mapped in that hole.
    pub(crate) fn new(request: MapRequest) -> Result<Self, Errno> {
        let page = usize::try_from(crate::sys::page_size()).unwrap_or(4096);
        let slack = if request.align > page && request.file.is_none() { request.align } else { 0 };
        let whole_bytes = request.bytes.checked_add(slack).ok_or(Errno::ENOMEM)?;
        let fd = request.file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let at = unsafe { libc::mmap(null, whole_bytes, request.protection, request.flags, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let whole = NonNull::new(at).ok_or(Errno::ENOMEM)?;
        let skip = if slack > 0 { at.addr().next_multiple_of(request.align) - at.addr() } else { 0 };
        // SAFETY: zero without slack, else less than the slack, so the address lies inside the mapping.
        let start = unsafe { whole.cast::<u8>().add(skip) };
        let is_aligned = start.addr().get() % request.align == 0;
        let mapping = Self { whole, whole_bytes, start, bytes: request.bytes, file: request.file };
        // Known kernels always align hugetlb memory.
        if is_aligned { Ok(mapping) } else { Err(Errno::EINVAL) }
    }

    /// Maps `bytes` bytes of a file or device from `offset` on: shared, readable and writable.
    pub(crate) fn of_file(file: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<Self, Errno> {
        let bytes = usize::try_from(bytes).ok().filter(|&bytes| bytes != 0).ok_or(Errno::EINVAL)?;
        let offset = libc::off64_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let (null, protection) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let at = unsafe { libc::mmap64(null, bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), offset) };
        if at == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let whole = NonNull::new(at).ok_or(Errno::ENOMEM)?;
        Ok(Self { whole, whole_bytes: bytes, start: whole.cast(), bytes, file: None })
    }

    /// Reserves addresses without memory; only the first page is accessible.
    pub(crate) fn reservation(bytes: usize) -> Result<Self, Errno> {
        let reserved = Self::new(MapRequest {
            bytes,
            align: 1,
            protection: libc::PROT_NONE,
            flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            file: None,
        })?;
        let page = usize::try_from(crate::sys::page_size()).unwrap_or(4096);
        // SAFETY: the first page of a mapping that no other code has seen.
        let result =
            unsafe { libc::mprotect(reserved.whole.as_ptr(), page, libc::PROT_READ | libc::PROT_WRITE) };
        if result == 0 { Ok(reserved) } else { Err(last_errno()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(crate) fn ua(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    pub(crate) fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }
}

impl Mapping {
    /// Frees the pages of a large mapping with several threads: `munmap` uses one, which takes 0.1 to 0.2 s per GiB of small
    /// pages.
    fn free_pages(&self) {
        const LARGE: usize = 256 << 20;
        const CHUNK: usize = 32 << 20;
        if self.whole_bytes < LARGE {
            return;
        }
        let next = AtomicUsize::new(0);
        let work = || {
            loop {
                // Relaxed: it only hands out offsets; the kernel orders the rest.
                let offset = next.fetch_add(CHUNK, Ordering::Relaxed);
                let Some(left) = self.whole_bytes.checked_sub(offset).filter(|&left| left > 0) else {
                    return;
                };
                let at = self.whole.as_ptr().wrapping_byte_add(offset);
                // SAFETY: inside a mapping that is about to be unmapped, so its contents are not needed. `munmap` frees
                // whatever the kernel does not free here.
                unsafe { libc::madvise(at, left.min(CHUNK), libc::MADV_DONTNEED) };
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..crate::sys::worker_threads(0) {
                // If a thread cannot be started, the others process its chunks.
                let _ = std::thread::Builder::new().name("prereg-unmap".into()).spawn_scoped(scope, work);
            }
            work();
        });
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.free_pages();
        // SAFETY: the range that `new` mapped; this is the last owner. `munmap` cannot fail for a range that `mmap`
        // returned.
        unsafe { libc::munmap(self.whole.as_ptr(), self.whole_bytes) };
    }
}

fn last_errno() -> Errno {
    crate::sys::errno_of(&std::io::Error::last_os_error())
}

/// Causes a write fault on every page from `at` on without changing it.
///
/// # Safety
/// `[at, at + bytes)` is mapped writable through the call; `page` is the system page.
pub(crate) unsafe fn touch(at: *mut u8, bytes: usize, page: usize) {
    for offset in (0..bytes).step_by(page) {
        // SAFETY: `offset < bytes`.
        let byte = unsafe { at.add(offset) }.cast::<AtomicU8>();
        // SAFETY: mapped writable; an atomic byte needs no alignment and stays valid for this statement.
        let byte = unsafe { &*byte };
        // Relaxed, all: only the page faults matter. An exchange of a value with itself is a write that no compiler
        // removes (an `or` with zero might become a read). If it fails, another thread has just written.
        let value = byte.load(Ordering::Relaxed);
        let _ = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
    }
}
