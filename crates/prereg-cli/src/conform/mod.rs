//! Holding our containers against the kernel's recorded answers.
//!
//! - [`scenario`]: reading scenario files; [`expression`]: their numbers and names;
//! - [`machine`]: what outlives a process (groups, huge pages); [`process`]: one process: memory, files, limits;
//! - [`run`]: performing the operations of a scenario (`memory`, `vfio` and `regions` have one family each, of `call`s);
//! - [`transcript`]: what came out, in the words of the kernel's recorder;
//! - [`deviations`]: where we differ on purpose; [`judge`]: sorting every line.
//!
//! Everything runs on the fake host, over the same containers and address spaces that a VMM would use. A scenario is
//! foreign text: whatever it says is answered with a line, never with a panic.

mod call;
pub mod deviations;
pub mod expression;
pub mod judge;
pub mod machine;
mod memory;
pub mod process;
mod regions;
pub mod run;
pub mod scenario;
mod slots;
pub mod transcript;
mod vfio;
