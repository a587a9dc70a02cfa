//! Server configuration.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::event::Event;
use super::observer::Observer;
use crate::settings::Settings;

/// Server configuration.
#[derive(Clone)]
#[non_exhaustive]
pub struct ServerSettings {
    /// Limits of each session.
    pub session: Settings,
    /// The mode of socket files; 0600 by default.
    pub socket_mode: u32,
    /// Clients at a time, over all sockets. More are rejected with ENFILE, unless a client has not sent its VERSION yet: then
    /// that one is evicted instead.
    pub max_clients: usize,
    /// Time for a client from its connection to its VERSION, from the first byte of a message to the last, and from a DMA_READ or
    /// DMA_WRITE to its reply; then it is disconnected. `None`: no limit.
    pub stall_timeout: Option<Duration>,
    /// Receives the events; `None`: they are dropped.
    pub observer: Option<Arc<dyn Observer<Event>>>,
}

impl Default for ServerSettings {
    /// Sockets with mode 0600, 64 clients, 30 seconds, no observer.
    fn default() -> Self {
        Self {
            session: Settings::default(),
            socket_mode: 0o600,
            max_clients: 64,
            stall_timeout: Some(Duration::from_secs(30)),
            observer: None,
        }
    }
}

impl fmt::Debug for ServerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSettings")
            .field("session", &self.session)
            .field("socket_mode", &self.socket_mode)
            .field("max_clients", &self.max_clients)
            .field("stall_timeout", &self.stall_timeout)
            .finish_non_exhaustive()
    }
}
