//! A listening socket and its file. The file is created with its final mode and removed only while it belongs to the socket.

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

/// A listening socket.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file, to leave the file of a later server alone.
    identity: (u64, u64),
}

impl BoundSocket {
    /// Creates the socket at `path`, replacing the file of a server that has ended.
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
        // Restores mode bits that the process' umask removed.
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

    /// Removes the file if it still belongs to this socket.
    pub(crate) fn remove(&self) {
        let _guard = DirectoryLock::take(&self.path);
        let ours = |file: &fs::Metadata| (file.dev(), file.ino()) == self.identity;
        if symlink_metadata(&self.path).is_ok_and(|file| ours(&file)) {
            // If this fails, the next server finds that nothing listens, and replaces the file.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the file at `path` if it is the socket of a server that has ended.
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
        // Any other error came from a listening server.
        _ => Err(ServerError::Live { path: path.to_owned() }),
    }
}

fn system(what: &'static str, path: &Path, errno: Errno) -> ServerError {
    ServerError::System { what, path: path.to_owned(), errno }
}

fn failed(what: &'static str, path: &Path, error: &io::Error) -> ServerError {
    system(what, path, sys::errno_of(error))
}

/// Prevents two servers from removing each other's new socket. Held as long as the file is open.
struct DirectoryLock(#[expect(dead_code, reason = "closing the file gives the lock back")] File);

impl DirectoryLock {
    /// Waits at most a second, longer than any server holds the lock.
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
