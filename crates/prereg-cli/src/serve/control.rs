//! The control socket: each connection gets the server's status as one JSON document and is then closed.
//!
//! Each connection is answered by a thread of its own, at most `MOST_ANSWERS` at a time, so a connection that is not read
//! delays no other; it is closed after `PATIENCE`. The socket has mode 0600: only the server's user may ask.

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

use super::status::Status;

/// How long a client may take to read its answer, or a server to give one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Answers at a time; more wait for the oldest.
const MOST_ANSWERS: usize = 16;
/// A status with thousands of clients is far below this.
const LONGEST_ANSWER: u64 = 64 << 20;

/// A thread that answers `prereg status` until this is dropped; then the socket is gone too.
#[derive(Debug)]
pub struct ControlListener {
    path: PathBuf,
    /// Device and inode of the socket: another server's may take its place later.
    file: Option<(u64, u64)>,
    /// The listening socket once more, to shut it down.
    socket: UnixStream,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Why there is no control socket, or no answer from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Another server answers there.
    #[error("another prereg serve answers at {path}; give this one its own with --control")]
    Live {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("{path} exists and is no socket; remove it or name another with --control")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// There is no server.
    #[error("no prereg serve answers at {path} ({error}); start one, or name its socket with --control")]
    NoServer {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A server is there, but did not answer in time.
    #[error(
        "prereg serve at {path} runs but gave no answer within {} s; the server or its host is busy, ask again", PATIENCE.as_secs()
    )]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// What answers is no `prereg serve` of this version.
    #[error(
        "what answers at {path} does not speak like this prereg: {error}; use the program of the same version"
    )]
    Foreign {
        /// The socket.
        path: PathBuf,
        /// What could not be read.
        error: serde_json::Error,
    },
    /// The system refused.
    #[error("cannot {what} {path}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Where a server listens when nobody said: in the system's runtime folder for root, in the user's own otherwise. `None`
/// for a user who has none.
#[must_use]
pub fn default_path() -> Option<PathBuf> {
    let runtime = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty()).map(PathBuf::from);
    let folder = match runtime("RUNTIME_DIRECTORY") {
        Some(folder) => folder,
        // Root's own runtime folder comes and goes with its sessions; a service outlives them.
        None if crate::serve::is_root() => PathBuf::from("/run/prereg"),
        None => runtime("XDG_RUNTIME_DIR")?.join("prereg"),
    };
    Some(folder.join("control.sock"))
}

impl ControlListener {
    /// Answers at `path` with what `status` gives. Folders on the way are made, a dead server's socket is replaced.
    ///
    /// # Errors
    /// [`ControlError`].
    pub fn start(
        path: &Path,
        status: impl Fn() -> Status + Send + Sync + 'static,
    ) -> Result<Self, ControlError> {
        let system = |what| move |error| ControlError::System { what, path: path.to_owned(), error };
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            fs::create_dir_all(folder).map_err(system("make the folder of"))?;
        }
        make_way(path)?;
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
        Ok(Self { path: path.to_owned(), file: file_at(path), socket, stop, thread: Some(thread) })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Not by a connection to the path: another server's socket may be there by now.
        let woken = self.socket.shutdown(Shutdown::Both).is_ok();
        if self.file.is_some() && self.file == file_at(&self.path) {
            // Gone already if another process removed it meanwhile.
            let _ = fs::remove_file(&self.path);
        }
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            // It has no result, and a panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

/// Device and inode of what is at `path`.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Removes the socket of a server that is gone.
fn make_way(path: &Path) -> Result<(), ControlError> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(ControlError::NotASocket { path: path.to_owned() });
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ControlError::Live { path: path.to_owned() });
    }
    fs::remove_file(path).map_err(|error| ControlError::System {
        what: "remove the dead socket",
        path: path.to_owned(),
        error,
    })
}

/// Answers connections until `stopped` is set and the listening socket is shut down.
fn accept(listener: &UnixListener, stopped: &AtomicBool, status: &(impl Fn() -> Status + Sync)) {
    std::thread::scope(|scope| {
        let mut answers = VecDeque::new();
        // Relaxed: a flag that is seen late costs one pause.
        while !stopped.load(Ordering::Relaxed) {
            let Ok((client, _)) = listener.accept() else {
                // Out of descriptors, say: it passes, and trying again at once would not help.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            answers.retain(|answer: &ScopedJoinHandle<'_, _>| !answer.is_finished());
            if answers.len() >= MOST_ANSWERS {
                if let Some(oldest) = answers.pop_front() {
                    // Ends within `PATIENCE`; an error concerns its client alone.
                    let _ = oldest.join();
                }
            }
            let work = move || answer(client, status);
            // Without a thread the connection is closed, and its client is told that the server is busy.
            if let Ok(answer) =
                std::thread::Builder::new().name("status".to_owned()).spawn_scoped(scope, work)
            {
                answers.push_back(answer);
            }
        }
    });
}

fn answer(mut client: UnixStream, status: impl Fn() -> Status) -> io::Result<()> {
    let until = Instant::now() + PATIENCE;
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

/// Asks the server at `path`.
///
/// # Errors
/// [`ControlError::NoServer`], [`ControlError::Busy`], [`ControlError::Foreign`].
pub fn ask(path: &Path) -> Result<Status, ControlError> {
    ask_within(path, PATIENCE)
}

fn ask_within(path: &Path, patience: Duration) -> Result<Status, ControlError> {
    let system = |what| move |error| ControlError::System { what, path: path.to_owned(), error };
    let server = UnixStream::connect(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ControlError::NoServer { path: path.to_owned(), error }
        }
        _ => system("connect to")(error),
    })?;
    server.set_read_timeout(Some(patience)).map_err(system("wait at"))?;
    let mut text = Vec::new();
    let busy = || ControlError::Busy { path: path.to_owned() };
    // The connection was accepted, so a server runs even if no answer comes.
    server.take(LONGEST_ANSWER).read_to_end(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::ConnectionReset => busy(),
        _ => system("read from")(error),
    })?;
    if text.is_empty() {
        return Err(busy());
    }
    serde_json::from_slice(&text).map_err(|error| match error.is_eof() {
        true => busy(),
        false => ControlError::Foreign { path: path.to_owned(), error },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status { pid: 42, ..Status::default() }
    }

    #[test]
    fn who_asks_is_told_and_the_socket_goes_with_its_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/control.sock");
        let listener = ControlListener::start(&path, status).unwrap();
        assert_eq!(ask(listener.path()).unwrap().pid, 42);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(ControlListener::start(&path, status), Err(ControlError::Live { .. })));
        assert_eq!(ask(&path).unwrap().pid, 42);
        drop(listener);
        assert!(!path.exists());
        assert!(matches!(ask(&path), Err(ControlError::NoServer { .. })));
    }

    #[test]
    fn a_server_whose_socket_was_replaced_stops_and_leaves_the_other_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let first = ControlListener::start(&path, status).unwrap();
        fs::remove_file(&path).unwrap();
        let second = ControlListener::start(&path, || Status { pid: 43, ..Status::default() }).unwrap();
        drop(first);
        assert_eq!(ask(&path).unwrap().pid, 43);
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_server_that_does_not_answer_is_called_busy_not_absent() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("busy.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let error = ask_within(&path, Duration::from_millis(10)).unwrap_err();
        assert!(matches!(error, ControlError::Busy { .. }), "{error}");
        assert!(
            error.to_string().contains("ask again") && !error.to_string().contains("start one"),
            "{error}"
        );
        // As a server does that has no thread or descriptor left.
        let closing = std::thread::spawn(move || drop(listener.accept().unwrap()));
        let error = ask_within(&path, PATIENCE).unwrap_err();
        assert!(matches!(error, ControlError::Busy { .. }), "{error}");
        closing.join().unwrap();
    }

    #[test]
    fn a_client_that_does_not_read_delays_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        // More than a socket's buffer takes.
        let long = || Status { pid: 42, version: "v".repeat(4 << 20), ..Status::default() };
        let listener = ControlListener::start(&path, long).unwrap();
        let unread: Vec<_> = (0..MOST_ANSWERS - 1).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(ask(&path).unwrap().pid, 42);
        drop(unread);
        drop(listener);
    }

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = ControlListener::start(&path, status).unwrap();
        assert_eq!(ask(&path).unwrap().pid, 42);
        drop(listener);
        fs::write(&path, "mine").unwrap();
        assert!(matches!(ControlListener::start(&path, status), Err(ControlError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn another_programs_answer_is_called_foreign() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let other = std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"220 mail").unwrap());
        assert!(matches!(ask(&path), Err(ControlError::Foreign { .. })));
        other.join().unwrap();
    }
}
