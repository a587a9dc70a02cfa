//! What is to be seen of clients' memory: plain data.

use prereg::SpaceState;
use prereg_iommu::iova::IovaState;

/// One file whose memory clients handed over.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct FileState {
    /// The device number of its file system, major and minor.
    pub dev: (u32, u32),
    /// Its inode number.
    pub ino: u64,
    /// Its length in bytes, as last seen.
    pub bytes: u64,
    /// Clients that named it.
    pub clients: u64,
    /// Registered pieces of it.
    pub extents: u64,
    /// Bytes of it that are registered, counting pages twice that are registered twice.
    pub registered_bytes: u64,
    /// Bytes of it that clients mapped and that are charged, but not registered yet.
    pub promised_bytes: u64,
    /// Registered pieces that hold pages the file no longer has, and wait for their mappings to go.
    pub stale_extents: u64,
}

/// A store of memory as it was at some moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StoreState {
    /// The address space: regions, pins, who holds what.
    pub space: SpaceState,
    /// The files.
    pub files: Vec<FileState>,
    /// Registrations made since the beginning.
    pub registrations: u64,
    /// DMA_MAPs that found their memory registered.
    pub shared: u64,
    /// Pieces found stale since the beginning.
    pub stale: u64,
    /// Mappings that threads in the background are still pinning the memory of.
    pub pinning_mappings: u64,
    /// What all clients together may have registered or promised, in bytes.
    pub total_bytes_limit: Option<u64>,
    /// What one client may have registered or promised, in bytes.
    pub client_bytes_limit: Option<u64>,
    /// DMA_MAPs that were refused because there was no room for their memory.
    pub refused_maps: u64,
    /// Pins after DMA_MAP was answered that failed; the accesses that wanted the memory failed too.
    pub failed_pins: u64,
}

/// A client's mappings as they were at some moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct DmaState {
    /// Its mappings.
    pub iova: IovaState,
    /// DMA_MAPs since the beginning.
    pub maps: u64,
    /// DMA_UNMAPs since the beginning.
    pub unmaps: u64,
    /// Files it named.
    pub files: u64,
}
