//! Errors of commands, with the remedy.

use std::io;

use prereg::OutOfMemory;
use prereg_benches::error::BenchError;

use crate::interrupt::Interrupted;
use crate::trace::error::TraceError;

/// The error of a command that did not run to its end. Everything it pinned is released.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// Interrupted by a signal. Exit code 130.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// An invalid trace. Exit code 2.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Standard output could not be written. Exit code 2, or 0 without a message if its reader closed it.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
    /// The host refused an operation. Exit code 2.
    #[error("{what}: {why}")]
    Host {
        /// The operation.
        what: String,
        /// The reason and the remedy.
        why: String,
    },
    /// A table of the trace cannot be created. Exit code 2.
    #[error("{file}:{line}: {why}")]
    Replay {
        /// The trace.
        file: String,
        /// The line.
        line: u32,
        /// The reason.
        why: String,
    },
}

prereg::debug_as_display!(CommandError);

impl CommandError {
    /// The host's error for the operation `what`.
    pub fn host(what: impl Into<String>, why: impl ToString) -> Self {
        Self::Host { what: what.into(), why: why.to_string() }
    }

    /// Whether the reader closed the output: `prereg ... | head`.
    #[must_use]
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The exit code of the program.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted(_) => 130,
            // The reader has all it wants.
            Self::Output(_) if self.is_closed_pipe() => 0,
            _ => 2,
        }
    }
}

impl From<OutOfMemory> for CommandError {
    fn from(error: OutOfMemory) -> Self {
        Self::host("making an address space", error)
    }
}

impl From<BenchError> for CommandError {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Interrupted(_) => Interrupted.into(),
            BenchError::Failed { action, reason } => Self::host(action, reason),
            other => Self::host("measuring", other),
        }
    }
}

impl From<serde_json::Error> for CommandError {
    fn from(error: serde_json::Error) -> Self {
        Self::Output(error.into())
    }
}
