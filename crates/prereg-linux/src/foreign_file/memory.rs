//! A range of a shared file, mapped into this process.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use prereg::{Memory, UserAddr};

use super::dual_mapping::{CopyMethod, DualMapping};
use super::error::SharedError;

/// A mapped range of a shared file. It can be registered, and copied in and out of whatever its other owners do. Clones
/// and parts share the mappings.
#[derive(Clone)]
pub struct SharedMemory {
    mapping: Arc<DualMapping>,
    /// Offset in the mapping.
    first: u64,
    bytes: u64,
}

impl SharedMemory {
    pub(super) fn new(mapping: Arc<DualMapping>, bytes: u64) -> Self {
        Self { mapping, first: 0, bytes }
    }

    /// The first byte at its registered address. Must not be loaded, stored or copied: use [`copy_ua`](Self::copy_ua).
    #[must_use]
    pub fn ua(&self) -> UserAddr {
        UserAddr::new(self.mapping.ua() + self.first)
    }

    /// The first byte at its address for copies by system calls, which return EFAULT where the memory is gone.
    #[must_use]
    pub fn copy_ua(&self) -> UserAddr {
        UserAddr::new(self.mapping.copy_ua() + self.first)
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The start of the range in the file.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.mapping.file_offset() + self.first
    }

    /// Whether it is accessed by loads and stores.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.mapping.copy_method() == CopyMethod::Processor
    }

    /// The `bytes` bytes from `offset` on; `None` when they are not inside, or empty.
    #[must_use]
    pub fn part(&self, offset: u64, bytes: u64) -> Option<Self> {
        let inside = bytes > 0 && offset <= self.bytes && bytes <= self.bytes - offset;
        inside.then(|| Self { mapping: Arc::clone(&self.mapping), first: self.first + offset, bytes })
    }

    /// The offset in the mapping of `len` bytes at `offset`.
    fn place(&self, offset: u64, len: u64) -> Result<u64, SharedError> {
        if offset > self.bytes || len > self.bytes - offset {
            return Err(SharedError::OutOfBounds { offset, len, bytes: self.bytes });
        }
        Ok(self.first + offset)
    }

    /// Copies bytes from `offset` on to `into`. Other processes may write them at the same time.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`]; [`SharedError::Gone`], and then `into` must not be used; [`SharedError::Os`].
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), SharedError> {
        self.mapping.read(self.place(offset, into.len() as u64)?, into)
    }

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`]; [`SharedError::Gone`], and then a part may have been written; [`SharedError::Os`].
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), SharedError> {
        self.mapping.write(self.place(offset, from.len() as u64)?, from)
    }

    /// Loads an aligned little-endian number atomically, with acquire ordering.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn load_u32(&self, offset: u64) -> Result<u32, SharedError> {
        self.mapping.load_u32(self.place(offset, 4)?)
    }

    /// Stores an aligned little-endian number with release ordering. Atomic if [`is_direct`](Self::is_direct);
    /// otherwise the kernel copies four bytes, in no promised order, and [`store_u64`](Self::store_u64) is better for a
    /// flag.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), SharedError> {
        self.mapping.store_u32(self.place(offset, 4)?, value)
    }

    /// Loads an aligned little-endian number with acquire ordering. Atomic if [`is_direct`](Self::is_direct), else as
    /// the kernel copies eight bytes: in one load on 64-bit machines.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn load_u64(&self, offset: u64) -> Result<u64, SharedError> {
        self.mapping.load_u64(self.place(offset, 8)?)
    }

    /// Stores an aligned little-endian number with release ordering. Atomic as [`load_u64`](Self::load_u64) is.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), SharedError> {
        self.mapping.store_u64(self.place(offset, 8)?, value)
    }
}

// SAFETY: both mappings exist until the last owner of the `DualMapping` is dropped, and `keep` returns one. Nothing
// here unmaps or replaces registered memory earlier or makes a reference into it. When other owners of the file remove
// pages from it, the pinned pages stay; code that maps such memory again detects that by `PageResidency`.
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
