//! Limits of a session.

use crate::capabilities::Capabilities;

/// A session's limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The server's capabilities, offered to the client.
    pub capabilities: Capabilities,
    /// Bytes that a session may hold for its client: unanswered requests with their data and the room for their replies, and,
    /// counted apart, unsent replies. [`Session::wants_bytes`](crate::Session::wants_bytes) is false from here on; a request
    /// beyond twice as much is refused.
    pub held_bytes: usize,
    /// Bytes of DMA_READ and DMA_WRITE under way at a time, and at most in one message.
    ///
    /// QEMU 11 truncates a reply that does not fit the send buffer of its socket (212,992 bytes with the default
    /// `net.core.wmem_default`), although it allows 1 MiB, and the stream is lost.
    pub transfer_window: u32,
}

impl Default for Settings {
    /// Default capabilities, 2 MiB, 128 KiB.
    fn default() -> Self {
        Self { capabilities: Capabilities::default(), held_bytes: 2 << 20, transfer_window: 128 << 10 }
    }
}
