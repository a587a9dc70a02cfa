//! Errors of serving.

use std::io;
use std::path::{Path, PathBuf};

use prereg::Errno;

/// Errors of listening on a socket or serving a client.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Another server listens there. EBUSY.
    #[error("another server listens on {}; stop it or choose another path", path.display())]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// The path exists and is not a socket. EEXIST.
    #[error("{} exists and is no socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {what} {}: {}", path.display(), explain(path, *errno))]
    System {
        /// The operation.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// Its errno.
        errno: Errno,
    },
    /// The limit of clients is reached. ENFILE.
    #[error("there are {most} clients, as many as the server takes; raise max_clients")]
    TooMany {
        /// The limit.
        most: usize,
    },
    /// The server was stopped. ENXIO.
    #[error("the server is stopped")]
    Stopped,
}

prereg::debug_as_display!(ServerError);

impl ServerError {
    /// The errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Live { .. } => Errno::EBUSY,
            Self::NotASocket { .. } => Errno::EEXIST,
            Self::System { errno, .. } => *errno,
            Self::TooMany { .. } => Errno::ENFILE,
            Self::Stopped => Errno::ENXIO,
        }
    }
}

/// The errno in words, with the remedy if there is one.
fn explain(path: &Path, errno: Errno) -> String {
    match errno.raw() {
        libc::ENAMETOOLONG => format!(
            "the path of a socket has at most {} bytes and this one has {}; choose a shorter path",
            LONGEST_PATH,
            path.as_os_str().len()
        ),
        libc::ENOENT => "its folder does not exist; create the folder or choose another path".to_owned(),
        number => io::Error::from_raw_os_error(number).to_string(),
    }
}

/// Bytes of a socket's path without the NUL, at most (`unix(7)`).
const LONGEST_PATH: usize = 107;
