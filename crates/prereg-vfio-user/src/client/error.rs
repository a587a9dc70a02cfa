//! Errors of a client.

use prereg::Errno;

use crate::request_error::RequestError;
use crate::wire::Command;

/// Errors of a request or the connection.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The server refused the request; the connection goes on. Its errno.
    #[error("the server refused {command}: {errno}")]
    Refused {
        /// The command.
        command: Command,
        /// The errno.
        errno: Errno,
    },
    /// A reply does not match its request. EIO.
    #[error("the server's reply to {command} is malformed: {why}")]
    Malformed {
        /// The command.
        command: Command,
        /// The reason.
        why: RequestError,
    },
    /// The stream cannot be parsed any more. EIO.
    #[error("a message has an invalid size of {size} bytes")]
    Frame {
        /// The size in its header.
        size: u32,
    },
    /// The server closed the connection. ENXIO.
    #[error("the server closed the connection")]
    Closed,
    /// The server did not reply in time. ETIMEDOUT.
    #[error("the server did not reply in time")]
    TimedOut,
    /// A system call failed. Its errno.
    #[error("cannot {what}: {errno}")]
    System {
        /// The operation.
        what: &'static str,
        /// Its errno.
        errno: Errno,
    },
}

prereg::debug_as_display!(ClientError);

impl ClientError {
    /// The errno.
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
