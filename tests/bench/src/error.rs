//! Errors of a measurement, and the check of the caller's cancellation flag.

use std::sync::atomic::{AtomicBool, Ordering};

use prereg::OutOfMemory;

/// The caller set the cancellation flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the measurement was interrupted")]
pub struct Interrupted;

/// An error of a measurement. Memory that it pinned is released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// The caller set the cancellation flag.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// An operation failed.
    #[error("{action}: {reason}")]
    Failed {
        /// The operation.
        action: String,
        /// The error, and how to avoid it.
        reason: String,
    },
}

impl BenchError {
    /// `action` failed with `reason`.
    pub fn failed(action: impl Into<String>, reason: impl ToString) -> Self {
        Self::Failed { action: action.into(), reason: reason.to_string() }
    }
}

impl From<OutOfMemory> for BenchError {
    fn from(error: OutOfMemory) -> Self {
        Self::failed("making an address space", error)
    }
}

/// Returns [`Interrupted`] if `cancel` is set.
pub(crate) fn check(cancel: &AtomicBool) -> Result<(), Interrupted> {
    // Relaxed: the flag orders no other memory.
    if cancel.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}
