//! A client's eventfd: written to without trust.
//!
//! An eventfd that came over a socket is still the client's. It can be filled up, and whether a write then waits is a flag
//! that the client may change at any time. So a write may be held up, by that client alone and as long as it stays; when it is
//! gone, [`Eventfd::release`] takes the count away until nobody waits any more.

use std::fs::{File, read_link};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use prereg::Errno;

use crate::sys::{self, Waiting};

/// A client's eventfd.
#[derive(Debug)]
pub(crate) struct Eventfd {
    descriptor: OwnedFd,
    /// It waited for room when it came.
    blocks: bool,
    released: AtomicBool,
    /// Threads that are writing.
    writers: AtomicU32,
}

impl Eventfd {
    /// Takes a descriptor for what it is said to be.
    ///
    /// # Errors
    /// EINVAL for one that is no eventfd.
    pub(crate) fn new(descriptor: OwnedFd) -> Result<Self, Errno> {
        let file = File::from(descriptor);
        // What has no name has no type either: eventfds, epoll sets and the like, none of which a write could hurt.
        let kind = file.metadata().map_err(|error| sys::errno_of(&error))?.mode() & libc::S_IFMT;
        let link = read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if kind != 0 || link.is_ok_and(|link| link != Path::new("anon_inode:[eventfd]")) {
            return Err(Errno::EINVAL);
        }
        let descriptor = OwnedFd::from(file);
        let blocks = sys::blocks(descriptor.as_fd());
        Ok(Self { descriptor, blocks, released: AtomicBool::new(false), writers: AtomicU32::new(0) })
    }

    /// Adds one. What has been told more often than it can count is not told again. False when it was released, and nothing
    /// was added.
    pub(crate) fn signal(&self) -> bool {
        // Both this and `release` write one and then read the other, in one order for all: either the release sees the
        // writer, or the writer sees the release.
        self.writers.fetch_add(1, Ordering::SeqCst);
        let is_wanted = !self.released.load(Ordering::SeqCst);
        if is_wanted && self.has_room() {
            // What can go wrong is a count that is full.
            let _ = sys::add_one(self.descriptor.as_fd());
        }
        // Nobody reads anything that was written before this.
        self.writers.fetch_sub(1, Ordering::Relaxed);
        is_wanted
    }

    fn has_room(&self) -> bool {
        let mut room = [Waiting::new(self.descriptor.as_raw_fd(), false, true)];
        !self.blocks || sys::poll(&mut room, Some(Duration::ZERO)) != Ok(0)
    }

    /// Whether it was signalled since the last time.
    pub(crate) fn take(&self) -> bool {
        sys::take_count(self.descriptor.as_fd()).is_ok_and(|count| count > 0)
    }

    /// Signals no more, and frees whoever is held up in doing so.
    pub(crate) fn release(&self) {
        // See `signal`.
        self.released.store(true, Ordering::SeqCst);
        let mut tries = 0;
        while self.writers.load(Ordering::SeqCst) > 0 {
            // A writer that nobody holds up is gone in a moment, and the client's count is left alone.
            if tries > 20 {
                self.take();
            }
            tries += 1;
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    /// An eventfd twice: as the server has it, and as the client does.
    fn shared() -> (Eventfd, File) {
        let ours = sys::eventfd().unwrap();
        let theirs = File::from(ours.try_clone().unwrap());
        (Eventfd::new(ours).unwrap(), theirs)
    }

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
    fn a_full_eventfd_that_does_not_wait_is_passed_over() {
        let (eventfd, mut theirs) = shared();
        theirs.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        assert!(eventfd.signal());
        assert!(eventfd.take() && !eventfd.take());
    }

    #[test]
    fn a_writer_that_the_client_holds_up_is_freed_by_the_release() {
        let (eventfd, mut theirs) = shared();
        theirs.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        // What a client can do after the eventfd was looked at.
        let wait = sys::set_blocking(theirs.as_fd());
        assert_eq!(wait, Ok(()));
        let eventfd = Arc::new(eventfd);
        let writer = Arc::clone(&eventfd);
        let held_up = std::thread::spawn(move || writer.signal());
        while eventfd.writers.load(Ordering::SeqCst) == 0 && !held_up.is_finished() {
            std::thread::yield_now();
        }
        eventfd.release();
        held_up.join().unwrap();
        assert!(!eventfd.signal());
        assert_eq!(eventfd.writers.load(Ordering::SeqCst), 0, "nobody writes after the release");
    }
}
