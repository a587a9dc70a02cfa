//! The server: sockets, threads and memory around the engine.
//!
//! A [`Server`] listens on sockets, one for each [`Model`]. A client that connects gets a thread of its own, a
//! [`Session`](crate::Session), a space of mappings over the server's [`MemoryStore`], and a [`Device`] that the model
//! makes for it. What the session asks for is performed on that thread; what has to wait (an unmap whose memory is in use,
//! memory that only the client can reach) waits without holding up anything else.
//!
//! Who owns whom:
//! - a [`Server`] owns its [`Listening`] sockets and its clients' threads;
//! - a client's thread owns the session's conversation, its mappings, and the only reference to the device that the server
//!   keeps; a device owns its [`Bus`];
//! - the [`MemoryStore`] outlives all clients and is shared by servers that are given the same one.
//!
//! What goes wrong: whatever a client sends is answered or ends that client alone. A client that is gone, or that breaks the
//! protocol, leaves nothing behind: its transfers fail, its device is told ([`Device::client_gone`]), its mappings drain and
//! its memory goes back to the store.

mod bound;
mod client;
mod conversation;
mod counts;
mod descriptor;
mod device;
mod dma;
mod error;
mod eventfd;
mod interrupts;
mod irq_kind;
mod listen;
mod notices;
mod perform;
mod settings;
mod state;
mod transport;

pub use client::serve;
pub use device::{Bus, Device, Ioeventfd, Layout, LayoutRegion, Model, Sparse};
pub use dma::{
    Dma, DmaError, DmaPiece, DmaSpace, DmaState, FileState, Hold, IovaLimits, MapMemoryError, MemoryNote,
    MemoryPolicy, MemoryStore, NoteKind, OnDrained, RegisterWhen, Remote, RemoteError, StoreState, Unmapping,
};
pub use error::ServerError;
pub use interrupts::Interrupts;
pub use irq_kind::IrqKind;
pub use listen::{Listening, Server};
pub use notices::Notice;
pub use settings::ServerSettings;
pub use state::{ClientState, CommandCounts, Ending, RequestCounts, ServerState, WaitingUnmap};
pub use transport::{Interest, Ready, Received, Socket, Transport};
