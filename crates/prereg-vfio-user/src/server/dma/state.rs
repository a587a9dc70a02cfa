//! Snapshots of client memory, as plain data.

use prereg::SpaceState;
use prereg_iommu::iova::IovaState;

/// A file of clients.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct FileState {
    /// The device number of its file system, major and minor.
    pub dev: (u32, u32),
    /// Its inode number.
    pub ino: u64,
    /// Its length in bytes, as last seen.
    pub bytes: u64,
    /// Clients that use it.
    pub clients: u64,
    /// Registered extents.
    pub extents: u64,
    /// Registered bytes; pages in two extents count twice.
    pub registered_bytes: u64,
    /// Bytes that are mapped and charged, but not registered yet.
    pub promised_bytes: u64,
    /// Extents with pages that are no longer the file's, which are still mapped.
    pub stale_extents: u64,
}

/// A snapshot of a [`MemoryStore`](super::MemoryStore).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StoreState {
    /// The address space: regions, pins, holders.
    pub space: SpaceState,
    /// The files.
    pub files: Vec<FileState>,
    /// Registrations so far.
    pub registrations: u64,
    /// DMA_MAPs of registered memory.
    pub shared: u64,
    /// Ranges found stale so far.
    pub stale: u64,
    /// Mappings whose memory is being pinned in the background.
    pub pinning_mappings: u64,
    /// The limit of registered and promised bytes of all clients together.
    pub total_bytes_limit: Option<u64>,
    /// The limit of registered and promised bytes of one client.
    pub client_bytes_limit: Option<u64>,
    /// DMA_MAPs refused for lack of room.
    pub refused_maps: u64,
    /// Pins that failed after the reply to DMA_MAP; the accesses that needed them failed too.
    pub failed_pins: u64,
}

/// A snapshot of a client's mappings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct DmaState {
    /// Its mappings.
    pub iova: IovaState,
    /// DMA_MAPs so far.
    pub maps: u64,
    /// DMA_UNMAPs so far.
    pub unmaps: u64,
    /// Its files.
    pub files: u64,
}
