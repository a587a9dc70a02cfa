//! What a server is doing, as plain data: what `prereg status` prints and metrics are made from.
//!
//! The fields' names are the JSON's; they are an interface. Times are seconds, sizes bytes, counters count from the server's
//! start.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A server.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How long it runs.
    pub uptime_seconds: f64,
    /// The clients' memory.
    pub memory: MemoryStatus,
    /// What is served where.
    pub sockets: Vec<SocketStatus>,
    /// Who is there.
    pub clients: Vec<ClientStatus>,
    /// Clients that ever came.
    pub accepted_total: u64,
    /// Clients that were turned away because there were too many.
    pub turned_away_total: u64,
    /// How clients ended, by reason.
    pub endings_total: BTreeMap<String, u64>,
    /// What all clients asked for, those that are gone included.
    pub requests: RequestStatus,
}

/// Requests of one client, or of all.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct RequestStatus {
    /// Performed, by command.
    pub performed_total: BTreeMap<String, u64>,
    /// Refused, by command and reason.
    pub refused_total: BTreeMap<String, BTreeMap<String, u64>>,
    /// Accesses to memory that only the client can reach.
    pub transfers_total: u64,
    /// The bytes they moved.
    pub transferred_bytes_total: u64,
}

/// The clients' memory.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// The pin back end.
    pub back_end: String,
    /// Bytes pinned now.
    pub pinned_bytes: u64,
    /// Bytes charged against the locked-memory limit now.
    pub charged_bytes: u64,
    /// The limit; none for who may pass it.
    pub limit_bytes: Option<u64>,
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
    /// DMA_MAPs that were refused for want of room.
    #[serde(default)]
    pub refused_maps_total: u64,
    /// Pins that failed after their DMA_MAP was answered.
    #[serde(default)]
    pub failed_pins_total: u64,
    /// Registrations that live now, over all regions.
    pub registrations: u64,
    /// Ranges pinned since the start: it does not grow with the guests' maps.
    pub pins_total: u64,
    /// Ranges unpinned since the start.
    pub unpins_total: u64,
    /// DMA_MAPs that found their memory registered.
    pub shared_maps_total: u64,
    /// Registered pieces whose pages the client had dropped behind our back and that were registered anew.
    pub stale_extents_total: u64,
    /// The files behind it.
    pub files: Vec<FileStatus>,
    /// The regions, by address.
    pub regions: Vec<RegionStatus>,
}

/// A file that clients handed over as memory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FileStatus {
    /// Its file system's device, major and minor.
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
    /// In how many pieces.
    pub extents: u64,
    /// Pieces whose pages the file no longer has; they go with their last mapping.
    pub stale_extents: u64,
    /// Clients that share it.
    pub clients: u64,
}

/// A pinned range.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RegionStatus {
    /// Its first byte in the server.
    pub ua: u64,
    /// Its length.
    pub bytes: u64,
    /// Registrations.
    pub used: u64,
    /// Live mappings.
    pub mappings: u64,
    /// Who holds the mappings.
    pub holders: Vec<HolderStatus>,
    /// It waits for its last mapping.
    pub draining: bool,
}

/// Somebody who holds mappings of a region.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HolderStatus {
    /// The client's number.
    pub client: u64,
    /// How many.
    pub mappings: u64,
}

/// A socket.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SocketStatus {
    /// Where.
    pub path: String,
    /// What is served there.
    pub model: String,
    /// Clients that are connected.
    pub clients: u64,
}

/// A client.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ClientStatus {
    /// Its number, never given twice.
    pub id: u64,
    /// Its socket.
    pub socket: String,
    /// Its device.
    pub model: String,
    /// Its process, when it connected.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Live mappings of its device.
    pub mappings: u64,
    /// Bytes they cover.
    pub mapped_bytes: u64,
    /// Accesses under way.
    pub accesses: u64,
    /// DMA_MAPs.
    pub maps_total: u64,
    /// DMA_UNMAPs.
    pub unmaps_total: u64,
    /// What it asked for.
    pub requests: RequestStatus,
    /// Unmaps that are not answered yet, because the device still uses the memory.
    pub waiting: Vec<WaitingStatus>,
    /// The device's own counters.
    pub device: BTreeMap<String, u64>,
    /// How long the device's commands took.
    pub latencies: Vec<LatencyStatus>,
}

/// An unmap that is not answered yet.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct WaitingStatus {
    /// How long it has waited.
    pub seconds: f64,
    /// The mappings that are still held.
    pub mappings: Vec<HeldStatus>,
}

/// An unmapped mapping that the device still uses.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HeldStatus {
    /// Its first byte.
    pub iova: u64,
    /// Its length.
    pub bytes: u64,
    /// Accesses of the device that hold it.
    pub accesses: u64,
}

/// How long commands of one kind took, as a histogram.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LatencyStatus {
    /// The kind: `read`, `write`.
    pub command: String,
    /// Their sum in nanoseconds.
    pub nanoseconds_total: u64,
    /// How many took less than so many nanoseconds and not less than the bucket before: (bound, count), ascending.
    pub buckets: Vec<(u64, u64)>,
}
