//! What a server decides before a client comes.

use std::time::Duration;

use crate::settings::Settings;

/// What a server is told before its first client comes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerSettings {
    /// Each session's.
    pub session: Settings,
    /// The mode of the sockets that are made; 0600 unless changed.
    pub socket_mode: u32,
    /// Clients at a time, over all sockets. What comes after that is answered ENFILE, unless a client has not said its VERSION
    /// yet: then that one is cut off instead.
    pub max_clients: usize,
    /// How long a client may take from its connection to its VERSION, and from the first byte of a message to its last;
    /// then it is cut off. `None` for ever.
    pub patience: Option<Duration>,
}

impl Default for ServerSettings {
    /// Sockets for their owner alone, 64 clients, 30 seconds.
    fn default() -> Self {
        Self {
            session: Settings::default(),
            socket_mode: 0o600,
            max_clients: 64,
            patience: Some(Duration::from_secs(30)),
        }
    }
}
