//! The server: sockets, threads and client memory around the engine.
//!
//! A [`Server`] listens on sockets, each with a [`DeviceFactory`]. Every client gets a thread, a [`Session`](crate::Session), a
//! [`DmaSpace`] over the server's [`MemoryStore`], and a [`Device`] from the factory. The thread performs the session's
//! actions; those that have to wait (an unmap of memory in use, memory that only the client can access) block nothing else.
//!
//! Ownership:
//! - a [`Server`] owns its [`Listening`] sockets and its clients' threads;
//! - a client's thread owns the session, its mappings, and the server's only reference to the device; a device owns its
//!   [`DeviceContext`];
//! - the [`MemoryStore`] outlives all clients; servers may share one;
//! - the [`Observer`] of the settings receives events: clients that come and go, refusals, failures.
//!
//! Errors: a client's input is answered with an error or ends that client alone. After a disconnect or a protocol error nothing
//! of the client remains: transfers fail, the device is notified ([`Device::client_gone`]), mappings drain and their memory is
//! released.

mod attach_failure;
mod bound_socket;
mod client_thread;
mod counts;
mod descriptor;
mod device;
mod dma;
mod error;
mod event;
mod eventfd;
mod handlers;
mod interrupts;
mod irq_kind;
mod listen;
mod observer;
mod settings;
mod shared_session;
mod state;
mod transport;

pub use attach_failure::AttachFailure;
pub use client_thread::serve;
pub use device::{Device, DeviceContext, DeviceFactory, Ioeventfd, Layout, LayoutRegion, Sparse};
pub use dma::{
    Dma, DmaError, DmaGuard, DmaSegment, DmaSpace, DmaState, FileState, IovaLimits, MapMemoryError,
    MemoryEvent, MemoryPolicy, MemoryStore, OnDrained, RegisterWhen, Remote, RemoteError, StoreState,
    Unmapping,
};
pub use error::ServerError;
pub use event::Event;
pub use interrupts::Interrupts;
pub use irq_kind::IrqKind;
pub use listen::{Listening, Server};
pub use observer::{EventSource, Observer, Reporter};
pub use settings::ServerSettings;
pub use state::{ClientState, CommandCounts, DisconnectReason, PendingUnmap, RequestCounts, ServerState};
pub use transport::{Interest, Ready, Received, Socket, Transport};
