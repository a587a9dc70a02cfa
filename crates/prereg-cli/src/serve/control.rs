//! The control socket: each connection gets the server's status as one JSON document and is then closed.
//!
//! Each connection is answered by a thread of its own, at most `MAX_ANSWERS` at a time, so a connection that is not read
//! delays no other; it is closed after `ANSWER_TIMEOUT`. The socket has mode 0600: only the server's user may ask.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::advert::Advert;
use super::status::Status;

/// The time for one answer, on both sides.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers at a time; another one waits for the oldest.
const MAX_ANSWERS: usize = 16;
/// A status with thousands of clients is far below this.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Bytes of a socket's path without the NUL, at most (`unix(7)`).
pub const LONGEST_PATH: usize = 107;

/// The control socket and its thread; both end when this is dropped.
#[derive(Debug)]
pub struct ControlListener {
    path: PathBuf,
    /// Device and inode of the socket, because another server may replace it.
    file: Option<(u64, u64)>,
    /// A duplicate of the listening socket, to shut it down.
    socket: UnixStream,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// `None` if the path is too long for one, or this user may not make one.
    _advert: Option<Advert>,
}

/// Errors of the control socket, on both sides.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Another server answers there.
    #[error("another prereg serve answers at {path}; give this one its own with --control")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path is not a socket.
    #[error("{path} exists and is not a socket; remove it or name another with --control")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The path does not fit an address.
    #[error(
        "the path of a socket has at most {LONGEST_PATH} bytes, and {path} has {}; name a shorter one with --control", path.as_os_str().len()
    )]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// No server listens.
    #[error("no prereg serve answers at {path} ({error}); start one, or name its socket with --control")]
    NoServer {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A server listens, but did not answer in time.
    #[error(
        "prereg serve at {path} runs but gave no answer within {} s; the server or its host is busy, ask again", ANSWER_TIMEOUT.as_secs()
    )]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// The answer is not that of a `prereg serve` of this version.
    #[error(
        "the answer at {path} is not that of this version of prereg: {error}; use the program of the same version"
    )]
    NotPrereg {
        /// The socket.
        path: PathBuf,
        /// The parser's error.
        error: serde_json::Error,
    },
    /// A system call failed.
    #[error("cannot {what} {path}: {error}")]
    System {
        /// The operation.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

prereg::debug_as_display!(ControlError);

/// The default path: in the system's runtime folder for root, in the user's own otherwise; `None` without one.
#[must_use]
pub fn default_path() -> Option<PathBuf> {
    let runtime = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = match runtime("RUNTIME_DIRECTORY") {
        Some(folder) => folder,
        // Root's own runtime folder exists only during sessions of root; a service outlives them.
        None if crate::serve::is_root() => PathBuf::from("/run/prereg"),
        None => runtime("XDG_RUNTIME_DIR")?.join("prereg"),
    };
    Some(folder.join("control.sock"))
}

impl ControlListener {
    /// Answers at `path` with `status()`. Missing folders are created, and a socket without a server is replaced.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn start(
        path: &Path,
        status: impl Fn() -> Status + Send + Sync + 'static,
    ) -> Result<Self, ControlError> {
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(ControlError::TooLong { path: path.to_owned() });
        }
        let system = |what| move |error| ControlError::System { what, path: path.to_owned(), error };
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            fs::create_dir_all(folder).map_err(system("make the folder of"))?;
        }
        remove_stale_socket(path)?;
        let listener = UnixListener::bind(path).map_err(system("listen at"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(system("set the mode of"))?;
        let socket = listener.try_clone().map_err(system("duplicate"))?;
        let socket = UnixStream::from(OwnedFd::from(socket));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || accept(&listener, &stopped, &status))
            .map_err(system("start the thread for"))?;
        let advert = Advert::new(path).ok();
        Ok(Self {
            path: path.to_owned(),
            file: file_at(path),
            socket,
            stop,
            thread: Some(thread),
            _advert: advert,
        })
    }

    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Not by a connection to the path, where another server may listen by now.
        let woken = self.socket.shutdown(Shutdown::Both).is_ok();
        if self.file.is_some() && self.file == file_at(&self.path) {
            // Another process may have removed it.
            let _ = fs::remove_file(&self.path);
        }
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            // The thread has no result, and its panic was printed.
            let _ = thread.join();
        }
    }
}

/// Device and inode of the file at `path`.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Removes a socket on which no server listens.
fn remove_stale_socket(path: &Path) -> Result<(), ControlError> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ControlError::NotASocket { path: path.to_owned() });
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ControlError::InUse { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(|error| ControlError::System {
        what: "remove the stale socket",
        path: path.to_owned(),
        error,
    })
}

/// Answers connections until `stopped` is set and the listening socket is shut down.
fn accept(listener: &UnixListener, stopped: &AtomicBool, status: &(impl Fn() -> Status + Sync)) {
    std::thread::scope(|scope| {
        let mut answers = VecDeque::new();
        // Relaxed: the flag orders nothing.
        while !stopped.load(Ordering::Relaxed) {
            let Ok((client, _)) = listener.accept() else {
                // For example no free descriptor: retried after a pause.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            answers.retain(|answer: &ScopedJoinHandle<'_, _>| !answer.is_finished());
            if answers.len() >= MAX_ANSWERS {
                if let Some(oldest) = answers.pop_front() {
                    // Ends within `ANSWER_TIMEOUT`; an error concerns only its client.
                    let _ = oldest.join();
                }
            }
            let work = move || answer(client, status);
            // Without a thread the connection is closed, and the client reports a busy server.
            if let Ok(answer) =
                std::thread::Builder::new().name("status".to_owned()).spawn_scoped(scope, work)
            {
                answers.push_back(answer);
            }
        }
    });
}

fn answer(mut client: UnixStream, status: impl Fn() -> Status) -> io::Result<()> {
    let until = Instant::now() + ANSWER_TIMEOUT;
    let text = serde_json::to_vec(&status())?;
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        // A timeout of zero would mean none.
        client.set_write_timeout(Some(left.max(Duration::from_millis(1))))?;
        match client.write(rest)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => rest = rest.get(written..).unwrap_or_default(),
        }
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

/// The status of the server at `path`.
///
/// # Errors
/// [`ControlError::NoServer`], [`ControlError::Busy`], [`ControlError::NotPrereg`].
pub fn query(path: &Path) -> Result<Status, ControlError> {
    query_within(path, ANSWER_TIMEOUT)
}

fn query_within(path: &Path, timeout: Duration) -> Result<Status, ControlError> {
    let system = |what| move |error| ControlError::System { what, path: path.to_owned(), error };
    let server = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NoServer { path: path.to_owned(), error }
        }
        _ => system("connect to")(error),
    })?;
    server.set_read_timeout(Some(timeout)).map_err(system("wait at"))?;
    let mut text = Vec::new();
    let busy = || ControlError::Busy { path: path.to_owned() };
    // The connection was accepted, so a server runs even if no answer comes.
    server.take(MAX_ANSWER_BYTES).read_to_end(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::ConnectionReset => busy(),
        _ => system("read from")(error),
    })?;
    if text.is_empty() {
        return Err(busy());
    }
    serde_json::from_slice(&text).map_err(|error| match error.is_eof() {
        true => busy(),
        false => ControlError::NotPrereg { path: path.to_owned(), error },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status { pid: 42, ..Status::default() }
    }

    #[test]
    fn a_query_returns_the_status_and_the_socket_is_removed_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/control.sock");
        let listener = ControlListener::start(&path, status).unwrap();
        assert_eq!(query(listener.path()).unwrap().pid, 42);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(ControlListener::start(&path, status), Err(ControlError::InUse { .. })));
        assert_eq!(query(&path).unwrap().pid, 42);
        drop(listener);
        assert!(!path.exists());
        assert!(matches!(query(&path), Err(ControlError::NoServer { .. })));
    }

    #[test]
    fn a_server_whose_socket_was_replaced_stops_and_leaves_the_other_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = ControlListener::start(&path, status).unwrap();
        fs::remove_file(&path).unwrap();
        let second = ControlListener::start(&path, || Status { pid: 43, ..Status::default() }).unwrap();
        drop(first);
        assert_eq!(query(&path).unwrap().pid, 43);
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_server_that_does_not_answer_is_busy_not_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("busy.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let error = query_within(&path, Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, ControlError::Busy { .. }), "{error}");
        assert!(
            error.to_string().contains("ask again") && !error.to_string().contains("start one"),
            "{error}"
        );
        // Like a server without a free thread or descriptor.
        let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let error = query_within(&path, ANSWER_TIMEOUT).unwrap_err();
        assert!(matches!(error, ControlError::Busy { .. }), "{error}");
        closing.join().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_delays_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        // Larger than a socket's buffer.
        let long = || Status { pid: 42, version: "v".repeat(4 << 20), ..Status::default() };
        let listener = ControlListener::start(&path, long).unwrap();
        let unread: Vec<_> = (0..MAX_ANSWERS - 1).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(query(&path).unwrap().pid, 42);
        drop(unread);
        drop(listener);
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = ControlListener::start(&path, status).unwrap();
        assert_eq!(query(&path).unwrap().pid, 42);
        drop(listener);
        fs::write(&path, "mine").unwrap();
        assert!(matches!(ControlListener::start(&path, status), Err(ControlError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn the_answer_of_another_program_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let other = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"220 mail").unwrap());
        assert!(matches!(query(&path), Err(ControlError::NotPrereg { .. })));
        other.join().unwrap();
    }
}
