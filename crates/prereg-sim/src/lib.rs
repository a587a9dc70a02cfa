//! A simulated host: user memory, pins and a locked-memory account as plain data.
//!
//! [`SimHost`] implements both ports of `prereg`. Host addresses are deterministic: the same calls give the same
//! addresses. The n-th call of the ports can be made to fail, and [`SimHost::assert_clean`] checks that nothing was
//! left behind. `memory` has the address space, `host` the pins and charges.
//!
//! It is for tests, and for hosts on which the user cannot pin: `prereg replay` falls back to it and says so.

mod host;
mod memory;

pub use host::{SimHost, SimMemory};
pub use memory::{MapSpec, Protection, SimBacking};
