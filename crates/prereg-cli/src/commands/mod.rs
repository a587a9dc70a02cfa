//! One file a command: its arguments, and what it does with them.
//!
//! A command writes its result to the output it is given and says by its [`Outcome`] how the program ends. It knows
//! neither the terminal nor the other commands.

pub mod completions;
pub mod conform;
pub mod doctor;
pub mod hot_path;
pub mod man;
pub mod nvme_bench;
pub mod registration;
pub mod replay;
pub mod selftest;
pub mod serve;
pub mod status;

/// How a command that ran to its end ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is well: exit code 0.
    Clean,
    /// It ran, and found something that must not be: exit code 1.
    Wrong,
}
