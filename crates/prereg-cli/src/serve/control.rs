//! The control socket: whoever connects gets the server's status as one JSON document, and the end of the stream.
//!
//! One thread answers one after the other; an asker who does not read is given up after a second. The socket is the
//! owner's alone (mode 0600): what a server serves is nobody else's business.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::status::Status;

/// How long one asker may take to read his answer, or a server to give one.
const PATIENCE: Duration = Duration::from_secs(5);
/// A status with thousands of clients is far below this.
const LONGEST_ANSWER: u64 = 64 << 20;

/// A thread that answers `prereg status` until this is dropped; then the socket is gone too.
#[derive(Debug)]
pub struct ControlListener {
    path: PathBuf,
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
    /// Nobody answers.
    #[error("no prereg serve answers at {path} ({error}); start one, or name its socket with --control")]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
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
    pub fn start(path: &Path, status: impl Fn() -> Status + Send + 'static) -> Result<Self, ControlError> {
        let system = |what| move |error| ControlError::System { what, path: path.to_owned(), error };
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            fs::create_dir_all(folder).map_err(system("make the folder of"))?;
        }
        make_way(path)?;
        let listener = UnixListener::bind(path).map_err(system("listen at"))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(system("set the mode of"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                // Relaxed: whoever sets the flag connects after it, and accepting that orders the two.
                while !stopped.load(Ordering::Relaxed) {
                    match listener.accept() {
                        // An asker that went away is its own affair.
                        Ok((asker, _)) => drop(answer(asker, &status())),
                        // Out of descriptors, say: it passes, and spinning would not help it.
                        Err(_) => std::thread::sleep(Duration::from_millis(100)),
                    }
                }
            })
            .map_err(system("start the thread for"))?;
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread) })
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
        // The thread sits in `accept`; a connection gets it out.
        let woken = UnixStream::connect(&self.path).is_ok();
        // Gone already if somebody tidied up behind us.
        let _ = fs::remove_file(&self.path);
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            // It has no result, and a panic was printed where it happened.
            let _ = thread.join();
        }
    }
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

fn answer(mut asker: UnixStream, status: &Status) -> io::Result<()> {
    asker.set_write_timeout(Some(PATIENCE))?;
    let text = serde_json::to_vec(status)?;
    asker.write_all(&text)
}

/// Asks the server at `path`.
///
/// # Errors
/// [`ControlError::Nobody`], [`ControlError::Foreign`].
pub fn ask(path: &Path) -> Result<Status, ControlError> {
    let nobody = |error| ControlError::Nobody { path: path.to_owned(), error };
    let server = UnixStream::connect(path).map_err(nobody)?;
    server.set_read_timeout(Some(PATIENCE)).map_err(nobody)?;
    let mut text = Vec::new();
    server.take(LONGEST_ANSWER).read_to_end(&mut text).map_err(nobody)?;
    serde_json::from_slice(&text).map_err(|error| ControlError::Foreign { path: path.to_owned(), error })
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
        assert!(matches!(ask(&path), Err(ControlError::Nobody { .. })));
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
