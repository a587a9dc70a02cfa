//! A reference model of the core, and random operations on its whole public API.
//!
//! [`Op`] is one operation, made from a few random words; [`run_case`] performs a list of them on real address spaces and
//! on the model ([`model`]: maps and vectors, no atomics, no tables) and compares every address, count and error. The same
//! operations drive property tests with shrinking, the interpreter with many seeds, the fuzzer, and (feature `native`)
//! the threads of [`stress`].
//!
//! The host is a fake of this crate ([`host`]): the address of a page is a pure function of the pin it belongs to and its
//! number ([`layout`]), and every pin gets fresh addresses, so that an address of an earlier registration is never right.

pub mod host;
pub mod layout;
pub mod model;
pub mod op;
pub mod random;
#[cfg(feature = "native")]
pub mod stress;
mod surface;
mod world;

pub use op::{Op, Verb};
pub use random::Random;
pub use surface::Fence;
pub use world::{Case, Summary, run_case};
