//! A part of a region, mapped.
//!
//! The server may write there at any time, so nothing here is ever a reference; numbers go in and out one by one.
#![expect(unsafe_code, reason = "maps memory, and accesses what others change")]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use prereg::Errno;

use super::error::ClientError;
use crate::sys;

/// Mapped memory that is shared with the server.
#[derive(Debug)]
pub struct Window {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory stays where it is until the window is dropped, and is only accessed by atomic instructions.
unsafe impl Send for Window {}
// SAFETY: as for `Send`.
unsafe impl Sync for Window {}

impl Window {
    /// Maps `bytes` at `offset` of a descriptor, to read and write.
    ///
    /// # Errors
    /// [`ClientError::System`]; EINVAL for an offset that is no multiple of the page.
    pub fn new(memory: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<Self, ClientError> {
        let failed = |errno| ClientError::System { what: "map", errno };
        let length = usize::try_from(bytes).map_err(|_| failed(Errno::EINVAL))?;
        let offset = i64::try_from(offset).map_err(|_| failed(Errno::EINVAL))?;
        let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping where the system finds room; nothing that exists is replaced.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), length, protection, kind, memory.as_raw_fd(), offset) };
        if start == libc::MAP_FAILED {
            return Err(failed(sys::errno_of(&std::io::Error::last_os_error())));
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| failed(Errno::ENOMEM))?;
        Ok(Self { start, bytes: length })
    }

    /// Its length in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn place<T>(&self, offset: usize) -> Option<*mut T> {
        let size = size_of::<T>();
        if offset % size != 0 || offset.checked_add(size)? > self.bytes {
            return None;
        }
        // SAFETY: inside the mapping, as was just seen.
        Some(unsafe { self.start.as_ptr().add(offset) }.cast())
    }

    /// Loads an aligned number (acquire); `None` outside.
    #[must_use]
    pub fn load_u32(&self, offset: usize) -> Option<u32> {
        let place = self.place::<u32>(offset)?;
        // SAFETY: mapped and aligned; the server, too, takes it for an atomic.
        Some(unsafe { AtomicU32::from_ptr(place) }.load(Ordering::Acquire))
    }

    /// Stores an aligned number (release); false outside.
    pub fn store_u32(&self, offset: usize, value: u32) -> bool {
        let Some(place) = self.place::<u32>(offset) else { return false };
        // SAFETY: mapped and aligned; the server, too, takes it for an atomic.
        unsafe { AtomicU32::from_ptr(place) }.store(value, Ordering::Release);
        true
    }

    /// Loads an aligned number (acquire); `None` outside.
    #[must_use]
    pub fn load_u64(&self, offset: usize) -> Option<u64> {
        let place = self.place::<u64>(offset)?;
        // SAFETY: mapped and aligned; the server, too, takes it for an atomic.
        Some(unsafe { AtomicU64::from_ptr(place) }.load(Ordering::Acquire))
    }

    /// Stores an aligned number (release); false outside.
    pub fn store_u64(&self, offset: usize, value: u64) -> bool {
        let Some(place) = self.place::<u64>(offset) else { return false };
        // SAFETY: mapped and aligned; the server, too, takes it for an atomic.
        unsafe { AtomicU64::from_ptr(place) }.store(value, Ordering::Release);
        true
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a pointer into it any more.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        debug_assert_eq!(result, 0, "the range is a mapping");
    }
}
