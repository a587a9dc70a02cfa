//! How `prereg status` finds the servers of a host: each advertises the path of its control socket.
//!
//! The advertisement is the name of a socket in the abstract namespace, which everybody can read in `/proc/net/unix` and which
//! disappears with the process, however that ends. Nothing is sent over it. The path proves nothing: what answers there may be
//! another program, and only the server's user may ask.

use std::collections::BTreeSet;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};

/// The begin of the name; the process and the path follow. The process makes the names of servers differ that use one path in
/// turn.
const PREFIX: &str = "prereg-control";

/// The advertisement of one server, until it is dropped.
#[derive(Debug)]
pub(super) struct Advert {
    _socket: UnixDatagram,
}

impl Advert {
    /// Advertises the control socket at `path`.
    ///
    /// # Errors
    /// The system's; also for a path that is too long for a name.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let name =
            [format!("{PREFIX}/{}", std::process::id()).as_bytes(), path.as_os_str().as_bytes()].concat();
        Ok(Self { _socket: UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name)?)? })
    }
}

/// The control sockets that servers of this host advertise.
#[must_use]
pub(crate) fn advertised() -> BTreeSet<PathBuf> {
    std::fs::read("/proc/net/unix").map(|list| paths(&list)).unwrap_or_default()
}

/// The paths in the text of `/proc/net/unix`.
fn paths(list: &[u8]) -> BTreeSet<PathBuf> {
    let path = |line: &[u8]| {
        let at = line.windows(2).position(|two| two == b" @")?;
        let name = line[at + 2..].strip_prefix(PREFIX.as_bytes())?.strip_prefix(b"/")?;
        let path = &name[name.iter().position(|byte| *byte == b'/')?..];
        Some(PathBuf::from(std::ffi::OsString::from_vec(path.to_vec())))
    };
    list.split(|byte| *byte == b'\n').filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_found_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("with space.sock");
        let advert = Advert::new(&path).unwrap();
        assert!(advertised().contains(&path));
        drop(advert);
        assert!(!advertised().contains(&path));
        assert!(Advert::new(Path::new(&"/x".repeat(60))).is_err(), "longer than a name");
    }

    #[test]
    fn other_sockets_are_none() {
        let list = b"Num RefCount Protocol Flags Type St Inode Path\n\
                     0: 2 0 0 2 01 1 @prereg-control/7/run/a.sock\n\
                     0: 2 0 0 2 01 1 /run/b.sock\n0: 2 0 0 2 01 1 @prereg-control\n0: 2 0 0 2 01 1\n\xff @\n\
                     0: 2 0 0 2 01 1 @prereg-control/8\n";
        assert_eq!(paths(list).into_iter().collect::<Vec<_>>(), [PathBuf::from("/run/a.sock")]);
    }
}
