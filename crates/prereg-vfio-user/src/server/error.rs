//! Why a server cannot serve.

use std::io;
use std::path::{Path, PathBuf};

use prereg::Errno;

/// Why a socket cannot be listened on, or a client not be served.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Another server listens there. EBUSY.
    #[error("another server listens on {}; stop it or choose another path", path.display())]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has that name. EEXIST.
    #[error("{} exists and is no socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} {}: {}", path.display(), explain(path, *errno))]
    System {
        /// What was tried.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        errno: Errno,
    },
    /// There are as many clients as the settings allow. ENFILE.
    #[error("there are {most} clients, as many as the server takes; raise max_clients")]
    TooMany {
        /// How many.
        most: usize,
    },
    /// The server was stopped. ENXIO.
    #[error("the server is stopped")]
    Stopped,
}

impl ServerError {
    /// The error number.
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

/// The system's number in words, with the remedy where there is one.
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

/// The bytes of an address' path without the NUL (`unix(7)`).
const LONGEST_PATH: usize = 107;
