//! The engine by its public API: framing, negotiation, valid and invalid forms of every request, transfers, flow control,
//! hostile input.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod client;
mod descriptions;
mod descriptors;
mod dma;
mod flow;
mod framing;
mod hostile;
mod interrupts;
mod judge;
mod libvfio;
mod negotiation;
mod regions;
mod roundtrip;
mod transfers;
