//! One file for each command: its arguments and its run.
//!
//! A command writes its result to the given output and returns an [`Outcome`]. It uses neither the terminal nor other commands.

pub mod bench;
pub mod completions;
pub mod conform;
pub mod doctor;
pub mod man;
pub mod replay;
pub mod selftest;
pub mod serve;
pub mod status;

/// The result of a command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0.
    Ok,
    /// A mismatch, a leak or a failed step: exit code 1.
    Mismatch,
}
