//! The events of a server.

use std::sync::Arc;

use prereg::Errno;

use super::attach_failure::AttachFailure;
use super::dma::MemoryEvent;
use super::observer::{EventSource, Observer, Reporter};
use super::state::DisconnectReason;
use crate::request_error::RequestError;

/// An event of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A client has its device.
    Connected,
    /// A client's session ended, and nothing of it is left.
    Disconnected {
        /// The reason.
        reason: DisconnectReason,
        /// Whether it had a device.
        served: bool,
    },
    /// A client left without having used its device.
    NotAttached {
        /// The likely reason.
        failure: AttachFailure,
    },
    /// A client was rejected, because as many are connected as the server takes.
    TooManyClients {
        /// The limit.
        limit: usize,
    },
    /// No client could be accepted, for lack of descriptors or memory. Accepting is tried again.
    AcceptFailed {
        /// The system's error.
        errno: Errno,
    },
    /// The engine refused a message.
    RequestRefused {
        /// The specification's name without prefix; `unknown` for other numbers.
        command: &'static str,
        /// The reason.
        error: RequestError,
    },
    /// A request other than DMA_MAP and DMA_UNMAP failed.
    RequestFailed {
        /// The specification's name without prefix.
        command: &'static str,
        /// The errno of the reply.
        errno: Errno,
    },
    /// An event of the client's memory.
    Memory(MemoryEvent),
    /// The client reset its device.
    Reset,
}

/// Hands the events of a client's memory to the observer of the server.
struct OfMemory(Arc<dyn Observer<Event>>);

impl Observer<MemoryEvent> for OfMemory {
    fn observe(&self, source: &EventSource, event: &MemoryEvent) {
        self.0.observe(source, &Event::Memory(*event));
    }
}

impl Reporter<Event> {
    /// A reporter of events of the same client's memory.
    pub(crate) fn of_memory(&self) -> Reporter<MemoryEvent> {
        let observer =
            self.observer().map(|observer| Arc::new(OfMemory(observer)) as Arc<dyn Observer<MemoryEvent>>);
        Reporter::new(Arc::clone(self.source()), observer)
    }
}
