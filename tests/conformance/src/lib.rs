//! The kernel's conformance scenarios over prereg's containers, compared with recorded answers.
//!
//! - [`run`]: performs a scenario (`memory`, `vfio` and `regions` have one family of operations each);
//! - [`machine`]: state that outlives a process: groups, huge pages; [`process`]: memory, files and limits of a process;
//! - [`transcript`]: the answers, in the format of the recorded ones;
//! - [`deviations`]: rules for deliberate differences; [`compare`]: classifies every line.
//!
//! Everything runs on the fake host, over the containers and address spaces that a VMM uses. Scenarios are untrusted text: every
//! line is answered, and none panics.

pub mod compare;
pub mod deviations;
pub mod machine;
mod memory;
mod operation;
pub mod process;
mod regions;
pub mod run;
mod slots;
pub mod transcript;
mod vfio;
