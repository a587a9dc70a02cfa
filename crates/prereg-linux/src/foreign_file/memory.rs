//! A stretch of a shared file in this process.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use prereg::{Memory, UserAddr};

use super::dual_mapping::{CopyMethod, DualMapping};
use super::error::SharedError;

/// A stretch of a shared file: memory that can be registered, and copied in and out of whatever its other owners do to it.
/// Clones and parts share the mappings.
#[derive(Clone)]
pub struct SharedMemory {
    mapping: Arc<DualMapping>,
    /// Where in the mapping.
    first: u64,
    bytes: u64,
}

impl SharedMemory {
    pub(super) fn new(mapping: Arc<DualMapping>, bytes: u64) -> Self {
        Self { mapping, first: 0, bytes }
    }

    /// The first byte of what is to be registered. Nobody is to load, store or copy there: see [`copy_ua`](Self::copy_ua).
    #[must_use]
    pub fn ua(&self) -> UserAddr {
        UserAddr::new(self.mapping.ua() + self.first)
    }

    /// The first byte of the same memory for system calls that copy, which answer EFAULT where it is gone.
    #[must_use]
    pub fn copy_ua(&self) -> UserAddr {
        UserAddr::new(self.mapping.copy_ua() + self.first)
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where in its file it begins.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.mapping.file_offset() + self.first
    }

    /// Whether it is loaded and stored directly.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.mapping.copy_method() == CopyMethod::Processor
    }

    /// `bytes` bytes of it from `offset` on; `None` when they are not inside, or none.
    #[must_use]
    pub fn part(&self, offset: u64, bytes: u64) -> Option<Self> {
        let inside = bytes > 0 && offset <= self.bytes && bytes <= self.bytes - offset;
        inside.then(|| Self { mapping: Arc::clone(&self.mapping), first: self.first + offset, bytes })
    }

    /// Where in the mapping `len` bytes at `offset` are.
    fn place(&self, offset: u64, len: u64) -> Result<u64, SharedError> {
        if offset > self.bytes || len > self.bytes - offset {
            return Err(SharedError::OutOfBounds { offset, len, bytes: self.bytes });
        }
        Ok(self.first + offset)
    }

    /// Copies bytes from `offset` on into `into`. Others may write them at the same time.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`]; [`SharedError::Gone`], and then `into` is not to be used; [`SharedError::Os`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), SharedError> {
        self.mapping.read(self.place(offset, into.len() as u64)?, into)
    }

    /// Copies `from` to `offset` and on.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`]; [`SharedError::Gone`], and then a part may be written; [`SharedError::Os`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), SharedError> {
        self.mapping.write(self.place(offset, from.len() as u64)?, from)
    }

    /// Loads an aligned little-endian number at once; what its writer wrote before it is seen after.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn load_u32(&self, offset: u64) -> Result<u32, SharedError> {
        self.mapping.load_u32(self.place(offset, 4)?)
    }

    /// Stores an aligned little-endian number; what was written before it is seen before. At once where
    /// [`is_direct`](Self::is_direct); elsewhere it is the kernel's copy of four bytes, whose order nobody promises:
    /// [`store_u64`](Self::store_u64) is the better choice for a flag beside its data.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), SharedError> {
        self.mapping.store_u32(self.place(offset, 4)?, value)
    }

    /// Loads an aligned little-endian number; what its writer wrote before it is seen after. At once where
    /// [`is_direct`](Self::is_direct), elsewhere by the kernel's copy of eight bytes, which is one load on 64-bit machines.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn load_u64(&self, offset: u64) -> Result<u64, SharedError> {
        self.mapping.load_u64(self.place(offset, 8)?)
    }

    /// Stores an aligned little-endian number; what was written before it is seen before. At once as
    /// [`load_u64`](Self::load_u64) is.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), SharedError> {
        self.mapping.store_u64(self.place(offset, 8)?, value)
    }
}

// SAFETY: both mappings stay until the last owner of the mapping goes, and `keep` hands one out; nothing here unmaps or replaces
// what is registered before, and nobody is given a reference into it. That the file's other owners take pages out of it does
// not change the pages that are pinned; whoever maps such memory again finds out by `PageResidency`.
#[expect(unsafe_code, reason = "the promise about the memory is the implementer's")]
unsafe impl Memory for SharedMemory {
    fn ua(&self) -> UserAddr {
        self.ua()
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::<DualMapping>::clone(&self.mapping))
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory")
            .field("ua", &self.ua())
            .field("bytes", &self.bytes)
            .field("file_offset", &self.file_offset())
            .finish_non_exhaustive()
    }
}
