//! A server's state as plain data, for status and metrics.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use prereg::Errno;
use prereg_iommu::iova::ClosingState;

use super::dma::{DmaState, StoreState};
use crate::capabilities::Terms;
use crate::refusal::SessionError;

/// Why the server let go of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Ending {
    /// It left.
    #[error("the client left")]
    Gone,
    /// It broke the protocol, left in the middle of a message, or was turned away.
    #[error(transparent)]
    Broken(SessionError),
    /// It kept the server waiting for the rest of a message, or for its VERSION.
    #[error("the client kept the server waiting for the rest of a message")]
    Stalled,
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Lost(Errno),
    /// The server was stopped.
    #[error("the server was stopped")]
    Stopped,
    /// The device failed in a way that no device may.
    #[error("the device panicked")]
    Panicked,
}

impl Ending {
    /// A word for each, for counts.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Gone => "left",
            Self::Broken(SessionError::TurnedAway { .. }) => "turned-away",
            Self::Broken(SessionError::MidMessage { .. }) => "left-mid-message",
            Self::Broken(_) => "protocol",
            Self::Stalled => "stalled",
            Self::Lost(_) => "connection",
            Self::Stopped => "stopped",
            Self::Panicked => "device-panicked",
        }
    }
}

/// What is counted of one command.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct CommandCounts {
    /// Requests that reached the server; those that failed there are counted below too.
    pub performed: u64,
    /// By reason: what the engine calls it for a message that is wrong in itself, the errno for a request that failed.
    pub refused: BTreeMap<String, u64>,
}

/// Counts of requests.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct RequestCounts {
    /// By the specification's name without prefix; `unknown` for numbers that it does not have.
    pub commands: BTreeMap<&'static str, CommandCounts>,
    /// DMA_READs and DMA_WRITEs that succeeded, of any length.
    pub transfers: u64,
    /// The bytes they moved.
    pub transferred_bytes: u64,
}

/// An unmap that waits for accesses.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct WaitingUnmap {
    /// The client's id of the request.
    pub id: u16,
    /// How long it has waited.
    pub waited: Duration,
    /// The mappings that accesses still hold, and how many each.
    pub mappings: Vec<ClosingState>,
}

/// A client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClientState {
    /// Its number; no two clients of a server have the same.
    pub client: u64,
    /// The socket it came by; `None` for one that was handed over.
    pub socket: Option<PathBuf>,
    /// The model's name.
    pub model: String,
    /// Its process, as it was when it connected; 0 where that is not known.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// What was agreed on; `None` before its VERSION.
    pub terms: Option<Terms>,
    /// Its mappings, accesses, and closing mappings with how many accesses hold each.
    pub dma: DmaState,
    /// Unmaps that are not answered yet.
    pub unmaps: Vec<WaitingUnmap>,
    /// What it asked for.
    pub requests: RequestCounts,
    /// The device's own counters.
    pub facts: Vec<(String, u64)>,
}

/// A server.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct ServerState {
    /// Its sockets, with the model's name.
    pub sockets: Vec<(PathBuf, String)>,
    /// Clients that are there.
    pub clients: Vec<ClientState>,
    /// Clients that ever came.
    pub accepted: u64,
    /// Clients that were turned away because there were too many.
    pub turned_away: u64,
    /// What all clients asked for, those that are gone included.
    pub requests: RequestCounts,
    /// How clients ended, by reason.
    pub endings: BTreeMap<String, u64>,
    /// The memory.
    pub store: StoreState,
}
