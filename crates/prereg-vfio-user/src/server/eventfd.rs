//! A client's eventfd, signalled and read without blocking.
//!
//! An eventfd that came over a socket is shared with the client, which can fill it, drain it and change its flags at any time.
//! Neither a signal nor a read waits for it: see `sys::signal` and [`sys::take_count`].

use std::fs::{File, read_link, read_to_string};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use prereg::Errno;

use crate::sys;

/// A client's eventfd.
#[derive(Debug)]
pub(crate) struct Eventfd(OwnedFd);

impl Eventfd {
    /// Checks that `descriptor` is an eventfd.
    ///
    /// # Errors
    /// EINVAL for any other descriptor.
    pub(crate) fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        let file = File::from(descriptor);
        // Anonymous inodes have no file type: eventfds, epoll sets and others, none of which a write could harm.
        let kind = file.metadata().map_err(|error| sys::errno_of(&error))?.mode() & libc::S_IFMT;
        let link = read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if kind != 0 || link.is_ok_and(|link| link != Path::new("anon_inode:[eventfd]")) {
            return Err(Errno::EINVAL);
        }
        Ok(Self(OwnedFd::from(file)))
    }

    /// Adds one. A full count stays as it is: the client has been signalled and has not read.
    pub(crate) fn signal(&self) {
        sys::signal(self.0.as_fd());
    }

    /// Whether it was signalled since the last call. An eventfd with semaphore semantics keeps the rest of its count.
    pub(crate) fn take(&self) -> bool {
        sys::take_count(self.0.as_fd()).is_ok_and(|count| count > 0)
    }

    /// Whether both descriptors are of one eventfd. False before Linux 5.2, which has no id.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.id().is_some_and(|id| other.id() == Some(id))
    }

    /// The kernel's id of the eventfd.
    fn id(&self) -> Option<u64> {
        let info = read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd())).ok()?;
        info.lines().find_map(|line| line.strip_prefix("eventfd-id:"))?.trim().parse().ok()
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_eventfd_is_refused() {
        let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let null = File::open("/dev/null").unwrap();
        let root = File::open("/").unwrap();
        for descriptor in [OwnedFd::from(socket), null.into(), root.into()] {
            assert_eq!(Eventfd::new(descriptor).err(), Some(Errno::EINVAL));
        }
    }

    #[test]
    fn an_eventfd_is_known_by_any_of_its_descriptors() {
        let one = sys::eventfd().unwrap();
        let same = Eventfd::new(one.try_clone().unwrap()).unwrap();
        let other = Eventfd::new(sys::eventfd().unwrap()).unwrap();
        let one = Eventfd::new(one).unwrap();
        assert!(one.is_same(&same) && !one.is_same(&other));
    }
}
