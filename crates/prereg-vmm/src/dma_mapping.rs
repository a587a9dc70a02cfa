//! Mappings as plain data.

use prereg::{Access, Iova, UserAddr};

/// The kind of memory, as far as the caller knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum MemoryKind {
    /// RAM, which is pinned. Only for [`Access::Read`] may it be memory that cannot be pinned, read-only memory for one: the
    /// container then pins it by itself.
    Ram,
    /// A device's own memory (a BAR), which is never pinned: passed to the container as it is.
    Device,
    /// Not known. Pinned if it can be; else passed to the container as it is, for reading if it refuses writes with EFAULT.
    Unknown,
}

/// The memory of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DmaMapping {
    /// Its I/O virtual address.
    pub iova: Iova,
    /// The length.
    pub bytes: u64,
    /// The memory.
    pub memory: MappedMemory,
    /// The allowed accesses.
    pub access: Access,
    /// Whether the address space holds all of it pinned.
    pub pinned: bool,
}

impl DmaMapping {
    pub(crate) fn last(&self) -> u64 {
        self.iova.raw() + (self.bytes - 1)
    }
}
