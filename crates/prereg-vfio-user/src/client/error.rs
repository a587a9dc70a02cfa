//! What can go wrong for a client.

use prereg::Errno;

use crate::refusal::Refusal;
use crate::wire::Command;

/// Why a request failed, or the connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused the request; the connection goes on. Its errno.
    #[error("the server refused {command}: {errno}")]
    Refused {
        /// What was asked.
        command: Command,
        /// What it said.
        errno: Errno,
    },
    /// A reply is not one to what was asked. EIO.
    #[error("the server's reply to {command} makes no sense: {why}")]
    Malformed {
        /// What was asked.
        command: Command,
        /// What is wrong with it.
        why: Refusal,
    },
    /// The stream cannot be told apart any more. EIO.
    #[error("a message of {size} bytes, which none has")]
    Frame {
        /// The size in its header.
        size: u32,
    },
    /// The server closed the connection. ENXIO.
    #[error("the server closed the connection")]
    Closed,
    /// The server did not answer in time. ETIMEDOUT.
    #[error("the server did not answer in time")]
    TimedOut,
    /// The system refused. Its errno.
    #[error("cannot {what}: {errno}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        errno: Errno,
    },
}

impl ClientError {
    /// The error number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Refused { errno, .. } | Self::System { errno, .. } => *errno,
            Self::Malformed { .. } | Self::Frame { .. } => Errno::EIO,
            Self::Closed => Errno::ENXIO,
            Self::TimedOut => Errno::from_raw(libc::ETIMEDOUT),
        }
    }
}
