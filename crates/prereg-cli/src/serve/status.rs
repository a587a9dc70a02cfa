//! The state of a server as plain data, from which `prereg status` and the metrics are made.
//!
//! The names of the fields are the keys of the JSON, an interface. Times are in seconds, sizes in bytes; counters (`*_total`) begin
//! at the server's start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The state of a server.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// Time since its start.
    pub uptime_seconds: f64,
    /// The clients' memory.
    pub memory: MemoryStatus,
    /// The sockets.
    pub sockets: Vec<SocketStatus>,
    /// The connected clients.
    pub clients: Vec<ClientStatus>,
    /// Connections accepted.
    pub accepted_connections_total: u64,
    /// Connections rejected because there were too many.
    pub rejected_connections_total: u64,
    /// Ended connections by reason.
    pub disconnects_total: BTreeMap<String, u64>,
    /// Requests of all clients, disconnected ones included.
    pub requests: RequestStatus,
    /// Clients that the server takes at a time.
    #[serde(default)]
    pub clients_limit: u64,
    /// Descriptors of the server that are open; null if unknown.
    #[serde(default)]
    pub open_descriptors: Option<u64>,
    /// Descriptors that it may have open; null if unknown.
    #[serde(default)]
    pub descriptors_limit: Option<u64>,
}

/// Requests of one client, or of all.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RequestStatus {
    /// Completed requests by command.
    pub completed_total: BTreeMap<String, u64>,
    /// Rejected requests by command and reason.
    pub rejected_total: BTreeMap<String, BTreeMap<String, u64>>,
    /// Accesses to memory that only the client can reach, by DMA_READ and DMA_WRITE.
    pub transfers_total: u64,
    /// The bytes they moved.
    pub transferred_bytes_total: u64,
}

/// The clients' memory.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// The pin back end.
    pub backend: String,
    /// Bytes pinned now.
    pub pinned_bytes: u64,
    /// Bytes charged against the locked-memory limit now.
    pub charged_bytes: u64,
    /// RLIMIT_MEMLOCK; null if it does not apply.
    pub memlock_limit_bytes: Option<u64>,
    /// Limit on the bytes pinned or promised for all clients together; null without a limit.
    #[serde(default)]
    pub total_limit_bytes: Option<u64>,
    /// Limit on the bytes pinned or promised for one client; null without a limit.
    #[serde(default)]
    pub client_limit_bytes: Option<u64>,
    /// Bytes that are mapped and promised, and not pinned yet.
    #[serde(default)]
    pub promised_bytes: u64,
    /// Mappings whose memory is being pinned in the background.
    #[serde(default)]
    pub pinning_mappings: u64,
    /// DMA_MAPs refused because of a limit.
    #[serde(default)]
    pub refused_maps_total: u64,
    /// Pins that failed after their DMA_MAP was answered.
    #[serde(default)]
    pub failed_pins_total: u64,
    /// Live registrations of all regions.
    pub registrations: u64,
    /// Ranges pinned; does not grow with the guests' maps.
    pub pins_total: u64,
    /// Ranges unpinned.
    pub unpins_total: u64,
    /// DMA_MAPs of memory that was registered already.
    pub map_cache_hits_total: u64,
    /// Registered pieces whose pages a client had replaced in the file, so that they were registered again.
    pub stale_extents_total: u64,
    /// The files that clients passed.
    pub files: Vec<FileStatus>,
    /// The regions, by address.
    pub regions: Vec<RegionStatus>,
}

/// A file that clients passed as memory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FileStatus {
    /// Device of its file system, major and minor.
    pub device: String,
    /// Its inode.
    pub inode: u64,
    /// Its length.
    pub bytes: u64,
    /// Bytes of it that are registered.
    pub registered_bytes: u64,
    /// Bytes of it that are mapped and promised, and not registered yet.
    #[serde(default)]
    pub promised_bytes: u64,
    /// Registered pieces.
    pub extents: u64,
    /// Pieces whose pages the file no longer has; released with their last mapping.
    pub stale_extents: u64,
    /// Clients that share it.
    pub clients: u64,
}

/// A pinned range.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RegionStatus {
    /// Its first byte in the server.
    pub user_address: u64,
    /// Its length.
    pub bytes: u64,
    /// Registrations.
    pub registrations: u64,
    /// Live mappings.
    pub mappings: u64,
    /// Holders of the mappings.
    pub holders: Vec<HolderStatus>,
    /// Released with its last mapping.
    pub draining: bool,
}

/// A holder of mappings of a region.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HolderStatus {
    /// The client's ID.
    pub client: u64,
    /// Its mappings.
    pub mappings: u64,
}

/// A socket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SocketStatus {
    /// Its path.
    pub path: String,
    /// The device served on it.
    pub model: String,
    /// Connected clients.
    pub clients: u64,
}

/// A connected client.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Its ID, never reused.
    pub id: u64,
    /// Its socket.
    pub socket: String,
    /// Its device.
    pub model: String,
    /// Its process ID when it connected.
    pub pid: i32,
    /// Its user ID.
    pub uid: u32,
    /// Live mappings of its device.
    pub mappings: u64,
    /// Bytes mapped.
    pub mapped_bytes: u64,
    /// Accesses in flight.
    pub inflight_accesses: u64,
    /// DMA_MAPs.
    pub maps_total: u64,
    /// DMA_UNMAPs.
    pub unmaps_total: u64,
    /// Its requests.
    pub requests: RequestStatus,
    /// DMA_UNMAPs without a reply, because the device still uses the memory.
    pub pending_unmaps: Vec<PendingUnmap>,
    /// The device's own counters.
    pub device: BTreeMap<String, u64>,
    /// Latencies of the device's commands.
    pub latencies: Vec<LatencyStatus>,
}

/// A DMA_UNMAP without a reply.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct PendingUnmap {
    /// Time since the request.
    pub age_seconds: f64,
    /// The mappings in use.
    pub mappings: Vec<MappingInUse>,
}

/// An unmapped mapping that accesses of the device still use.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MappingInUse {
    /// Its first byte.
    pub iova: u64,
    /// Its length.
    pub bytes: u64,
    /// Accesses in flight.
    pub inflight_accesses: u64,
}

/// The latency histogram of one kind of command.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// The kind: `read`, `write`.
    pub command: String,
    /// Sum of the latencies, in nanoseconds.
    pub nanoseconds_total: u64,
    /// Buckets (bound, count), ascending: commands that took less than `bound` nanoseconds and not less than the bound before.
    pub buckets: Vec<(u64, u64)>,
}
