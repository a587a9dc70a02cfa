//! The server, driven by clients over sockets.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod copier;
mod descriptions;
mod dma;
mod events;
mod fixture;
mod hostile;
mod interrupts;
mod judge;
mod judged;
#[path = "../observed/mod.rs"]
mod observed;
mod other_client;
mod pci_function;
mod processes;
mod regions;
mod remote;
mod sockets;
