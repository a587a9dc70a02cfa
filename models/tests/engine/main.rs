//! Models of the engine, driven through the public API: every step between two threads is taken by the code that ships.
//!
//! The host of each model (see `prereg_models::world`) sees a use of a page that is not pinned, a second unpin, and a pin
//! that is never released; loom sees a thread that waits for ever.
//!
//! The preemption bound is 2, in a few models with long setups or three threads as stated there. Every protocol here is
//! between one thread that maps or gives back and one that closes, and an error needs the second thread to run at one point
//! in the first and, at most, the first again at one point in the second: two preemptions. Values that a load may return are
//! not bounded. Bound 3 was run once over each model without finding more.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test says by panicking")]

mod close;
mod drain;
mod entries;
mod growth;
mod release;
mod reuse;
