//! A fake host: user memory, pins and a locked-memory account that exist only in books.
//!
//! [`SimHost`] implements both ports of `prereg`. Its memory is deterministic: the same calls give the same host addresses.
//! It can fail the n-th outside call, and it can be asked whether anything was left behind. `memory` says what is mapped
//! where, `host` pins and charges it.
//!
//! It is for tests, and for hosts that may not pin: `prereg replay` falls back on it and says so.

mod host;
mod memory;

pub use host::{SimHost, SimMemory};
pub use memory::{MapSpec, Protection, SimBacking};
