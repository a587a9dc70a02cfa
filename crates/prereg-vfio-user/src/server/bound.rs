//! A listening socket and its file: made without a moment in which others may connect, removed only while it is ours.

use std::fs::{self, File, symlink_metadata};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{io, thread};

use prereg::Errno;

use super::error::ServerError;
use crate::sys;

/// A socket that is listened on.
#[derive(Debug)]
pub(crate) struct Bound {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, so that a successor's is left alone.
    identity: (u64, u64),
}

impl Bound {
    /// Makes the socket at `path`. The file of a server that is dead is replaced.
    ///
    /// # Errors
    /// [`ServerError`].
    pub(crate) fn new(path: &Path, mode: u32) -> Result<Self, ServerError> {
        let _guard = DirectoryLock::take(path);
        let listener = match sys::listen(path, mode) {
            Err(errno) if errno.raw() == libc::EADDRINUSE => {
                clear(path)?;
                sys::listen(path, mode)
            }
            result => result,
        };
        let listener = UnixListener::from(listener.map_err(|errno| system("listen on", path, errno))?);
        // What the process' umask took away from the mode.
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(path, permissions).map_err(|error| failed("set the mode of", path, &error))?;
        let file = symlink_metadata(path).map_err(|error| failed("look at", path, &error))?;
        let identity = (file.dev(), file.ino());
        listener.set_nonblocking(true).map_err(|error| failed("listen on", path, &error))?;
        Ok(Self { listener, path: path.to_owned(), identity })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file, if it is still this socket's.
    pub(crate) fn remove(&self) {
        let _guard = DirectoryLock::take(&self.path);
        let ours = |file: &fs::Metadata| (file.dev(), file.ino()) == self.identity;
        if symlink_metadata(&self.path).is_ok_and(|file| ours(&file)) {
            // Where that is not possible the next server finds nobody there, and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes room at `path`, if what is there is the socket of a server that is dead.
fn clear(path: &Path) -> Result<(), ServerError> {
    let file = match symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        result => result.map_err(|error| failed("look at", path, &error))?,
    };
    if !file.file_type().is_socket() {
        return Err(ServerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|error| failed("remove", path, &error))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(failed("connect to", path, &error))
        }
        // Whatever else it said, somebody said it.
        _ => Err(ServerError::Live { path: path.to_owned() }),
    }
}

fn system(what: &'static str, path: &Path, errno: Errno) -> ServerError {
    ServerError::System { what, path: path.to_owned(), errno }
}

fn failed(what: &'static str, path: &Path, error: &io::Error) -> ServerError {
    system(what, path, sys::errno_of(error))
}

/// Keeps two servers from clearing away each other's new socket. Lives as long as its file is open.
struct DirectoryLock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

impl DirectoryLock {
    /// Waits a moment for it; who holds it longer than any server does is not waited for.
    fn take(path: &Path) -> Option<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).ok()?;
        for _ in 0..100 {
            if sys::lock(folder.as_fd()).is_ok() {
                return Some(Self(folder));
            }
            thread::sleep(Duration::from_millis(10));
        }
        None
    }
}
