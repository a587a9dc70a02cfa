//! Models of the engine, driven through the public API: every step between two threads is taken by the code that ships.
//!
//! The host of each model (see `prereg_models::world`) sees a use of a page that is not pinned, a second unpin, and a pin
//! that is never released; loom sees a thread that waits for ever.
//!
//! Models of two threads are explored without a bound, but for those with two regions: they would take minutes, and are
//! bounded to three preemptions as the model of three threads is. An error needs the closing thread to run at one point of
//! the other one, and that one to run at one point of the closing thread; the third preemption is one to spare. What a load
//! may return is never bounded.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

mod close;
mod drain;
mod entries;
mod growth;
mod release;
mod reuse;

/// The bound for models that are not explored in full.
const PREEMPTIONS: usize = 3;
