//! Why a command could not do what it was asked, in words that a person can act on.

use std::io;

use prereg::OutOfMemory;
use prereg_benches::error::BenchError;

use crate::interrupt::Interrupted;
use crate::trace::error::TraceError;

/// A command that did not run to its end. Whatever it had pinned is released.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// A signal came. Exit code 130.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// The trace is at fault. Exit code 2.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Standard output could not be written. Exit code 2, and silence when its reader has gone.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// The host refused something. Exit code 2.
    #[error("{what}: {why}")]
    Host {
        /// What was asked for.
        what: String,
        /// What came back, and what to do about it.
        why: String,
    },
    /// The trace asks for something that cannot be built. Exit code 2.
    #[error("{file}:{line}: {why}")]
    Replay {
        /// The trace.
        file: String,
        /// The line.
        line: u32,
        /// What could not be done, and why.
        why: String,
    },
}

impl Failure {
    /// A host's refusal of `what`.
    pub fn host(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Host { what: what.into(), why: why.to_string() }
    }

    /// Whether the reader of our output has gone: `prereg ... | head`.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The code the program exits with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(_) => 130,
            // As if the signal of the closed pipe had ended us: nothing went wrong that anyone waits to hear.
            Self::Output(_) if self.is_closed_pipe() => 0,
            _ => 2,
        }
    }
}

impl From<OutOfMemory> for Failure {
    fn from(error: OutOfMemory) -> Self {
        Self::host("making an address space", error)
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Interrupted(_) => Interrupted.into(),
            BenchError::Failed { action, reason } => Self::host(action, reason),
            other => Self::host("measuring", other),
        }
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}
