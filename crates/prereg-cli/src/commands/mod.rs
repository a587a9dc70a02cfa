//! One file for each command: its arguments and its run.
//!
//! A command writes its result to the given output and returns an [`Outcome`]. It uses neither the terminal nor other commands.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod conform;
pub(crate) mod doctor;
pub(crate) mod man;
pub(crate) mod replay;
pub(crate) mod selftest;
pub(crate) mod serve;
pub(crate) mod status;

/// The result of a command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0.
    Ok,
    /// A mismatch, a leak or a failed step: exit code 1.
    Mismatch,
}
