//! Models of the engine, driven through the public API: every step between two threads is taken by the code that ships.
//!
//! The host of each model (see `prereg_models::world`) sees a use of a page that is not pinned, a second unpin, and a pin
//! that is never released; loom sees a thread that waits for ever.
//!
//! Models of two threads are explored without a bound, but for those with two regions, which are bounded like the model of
//! three threads. The bound is 3: an error needs the closing thread to run at one point in the other, and that one to run at
//! one point in the closing thread; every mutant in `README.md` is killed with two preemptions, so 3 leaves one to spare. What
//! a load may return is never bounded.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "a test says by panicking")]

mod close;
mod drain;
mod entries;
mod growth;
mod release;
mod reuse;

/// The bound for models that are not explored in full.
const PREEMPTIONS: usize = 3;
