//! Snapshots of a server, as plain data for status and metrics.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use prereg::Errno;
use prereg_iommu::iova::ClosingState;

use super::dma::{DmaState, StoreState};
use crate::capabilities::Negotiated;
use crate::request_error::SessionError;

/// The reason why a client was disconnected.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DisconnectReason {
    /// The client disconnected.
    #[error("the client left")]
    Gone,
    /// A protocol error, a disconnect inside a message, or a rejected VERSION.
    #[error(transparent)]
    Broken(SessionError),
    /// VERSION, the rest of a message, or the reply to a DMA_READ or DMA_WRITE did not come in time.
    #[error("the client kept the server waiting for a message, the rest of one or a reply")]
    Stalled,
    /// The connection failed.
    #[error("the connection broke: {0}")]
    Lost(Errno),
    /// The server was stopped.
    #[error("the server was stopped")]
    Stopped,
    /// The device panicked.
    #[error("the device panicked")]
    Panicked,
}

prereg::debug_as_display!(DisconnectReason);

impl DisconnectReason {
    /// A word for each variant, for counts.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Gone => "left",
            Self::Broken(SessionError::Rejected { .. }) => "turned-away",
            Self::Broken(SessionError::MidMessage { .. }) => "left-mid-message",
            Self::Broken(_) => "protocol",
            Self::Stalled => "stalled",
            Self::Lost(_) => "connection",
            Self::Stopped => "stopped",
            Self::Panicked => "device-panicked",
        }
    }
}

/// Counts of one command.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct CommandCounts {
    /// Requests that reached the device or server, including failed ones.
    pub performed: u64,
    /// By reason: the engine's name for malformed messages, the errno for failed requests.
    pub refused: BTreeMap<String, u64>,
}

/// Counts of requests.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RequestCounts {
    /// By the specification's name without prefix; `unknown` for other numbers.
    pub commands: BTreeMap<&'static str, CommandCounts>,
    /// Successful DMA_READs and DMA_WRITEs, of any length.
    pub transfers: u64,
    /// The bytes they moved.
    pub transferred_bytes: u64,
}

/// An unmap that waits for accesses.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct PendingUnmap {
    /// The client's id of the request.
    pub id: u16,
    /// The time since the request.
    pub waited: Duration,
    /// The mappings that accesses still hold.
    pub mappings: Vec<ClosingState>,
}

/// A client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClientState {
    /// Its number, unique per server.
    pub client: u64,
    /// The socket it connected to; `None` for an adopted one.
    pub socket: Option<PathBuf>,
    /// The name of the device factory.
    pub model: String,
    /// Its process when it connected; 0 if unknown.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// The negotiated capabilities; `None` before its VERSION.
    pub negotiated: Option<Negotiated>,
    /// Its mappings, accesses, and closing mappings with the number of accesses that hold each.
    pub dma: DmaState,
    /// Unmaps without a reply yet.
    pub unmaps: Vec<PendingUnmap>,
    /// Counts of its requests.
    pub requests: RequestCounts,
    /// The device's own counters.
    pub metrics: Vec<(String, u64)>,
}

/// A server.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct ServerState {
    /// Its sockets, with the names of the device factories.
    pub sockets: Vec<(PathBuf, String)>,
    /// Connected clients.
    pub clients: Vec<ClientState>,
    /// Clients accepted so far.
    pub accepted: u64,
    /// Clients rejected because there were too many.
    pub rejected: u64,
    /// Counts of all clients, including disconnected ones.
    pub requests: RequestCounts,
    /// Disconnected clients, by reason.
    pub disconnects: BTreeMap<String, u64>,
    /// The memory.
    pub store: StoreState,
}
