//! Events for the operator: they are handed to an [`Observer`], which writes a log, counts, or does nothing.
//!
//! Nothing is kept, counted or limited here: a client can cause any number of most events, so an observer that writes them
//! somewhere must bound what it writes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

/// A receiver of events of type `E`: a server's own ([`Event`](super::Event)), or those of a kind of device.
///
/// It is called on the thread on which the event occurred, which may hold a lock of the client. It must not call the server,
/// and as long as it blocks, it blocks that client.
pub trait Observer<E>: Send + Sync {
    /// Receives one event.
    fn observe(&self, source: &EventSource, event: &E);
}

/// The client that an event is about, or only its socket.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct EventSource {
    /// The socket; `None` for a connection that was adopted.
    pub socket: Option<PathBuf>,
    /// The name of the device factory.
    pub device: String,
    /// The client's number, unique per server; `None` if the event is about the socket.
    pub client: Option<u64>,
    /// The client's process when it connected; 0 if unknown.
    pub pid: i32,
    /// The client's user.
    pub uid: u32,
}

/// Hands the events of one client, or of one socket, to an observer. Clones are the same.
pub struct Reporter<E> {
    source: Arc<EventSource>,
    observer: Option<Arc<dyn Observer<E>>>,
}

impl<E> Reporter<E> {
    /// A reporter of events of `source`; without an observer they are dropped.
    #[must_use]
    pub fn new(source: Arc<EventSource>, observer: Option<Arc<dyn Observer<E>>>) -> Self {
        Self { source, observer }
    }

    /// The source of the events.
    #[must_use]
    pub fn source(&self) -> &Arc<EventSource> {
        &self.source
    }

    /// The observer.
    pub(crate) fn observer(&self) -> Option<Arc<dyn Observer<E>>> {
        self.observer.clone()
    }

    /// Hands over an event.
    pub fn report(&self, event: &E) {
        if let Some(observer) = &self.observer {
            observer.observe(&self.source, event);
        }
    }
}

impl<E> Clone for Reporter<E> {
    fn clone(&self) -> Self {
        Self { source: Arc::clone(&self.source), observer: self.observer.clone() }
    }
}

impl<E> Default for Reporter<E> {
    /// A reporter without an observer.
    fn default() -> Self {
        Self::new(Arc::default(), None)
    }
}

impl<E> fmt::Debug for Reporter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("source", &self.source).finish_non_exhaustive()
    }
}
