//! Mappings as plain data.

use prereg::{Access, Iova, UserAddr};

/// What a caller knows of the memory it maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MemoryKind {
    /// RAM, which is pinned. Only for [`Access::Read`] may it be memory that cannot be pinned, read-only memory for one: the
    /// container then pins it by itself.
    Ram,
    /// A device's own memory (a BAR), which is never pinned: passed to the container as it is.
    Device,
    /// Not known. Pinned if it can be; else passed to the container as it is, for reading if it refuses writes with EFAULT.
    Unknown,
}

/// Where the memory of a mapping is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MappedMemory {
    /// At an address of this process.
    Address(UserAddr),
    /// In a file, from this offset on.
    File {
        /// The offset.
        offset: u64,
    },
}

/// A mapping, as plain data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DmaMapping {
    /// Where the device finds it.
    pub iova: Iova,
    /// The length.
    pub bytes: u64,
    /// The memory.
    pub memory: MappedMemory,
    /// What the device may do.
    pub access: Access,
    /// Whether the address space holds all of it pinned.
    pub pinned: bool,
}

impl DmaMapping {
    pub(crate) fn last(&self) -> u64 {
        self.iova.raw() + (self.bytes - 1)
    }
}
