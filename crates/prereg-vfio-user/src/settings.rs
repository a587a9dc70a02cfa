//! What a server decides before a client comes.

use crate::capabilities::Capabilities;

/// A session's limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// What the server can, to be offered to the client.
    pub capabilities: Capabilities,
    /// Bytes that a session may hold for its client: requests not answered yet with their data and the room their replies
    /// take, and, counted apart, replies not sent yet. [`Session::wants_bytes`](crate::Session::wants_bytes) is false from
    /// here on; a request that would hold twice as much is refused.
    pub held_bytes: usize,
    /// Bytes of data that DMA_READ and DMA_WRITE may have under way at a time, and the most that one message carries.
    ///
    /// QEMU 11 cuts a reply off that does not fit the send buffer of its socket (212,992 bytes unless somebody changed
    /// `net.core.wmem_default`), although it allows 1 MiB, and the stream is lost.
    pub transfer_window: u32,
}

impl Default for Settings {
    /// The default capabilities, 2 MiB, 128 KiB.
    fn default() -> Self {
        Self { capabilities: Capabilities::default(), held_bytes: 2 << 20, transfer_window: 128 << 10 }
    }
}
