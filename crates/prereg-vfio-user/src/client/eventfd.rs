//! Eventfds for interrupts.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use prereg::Errno;

use super::error::ClientError;
use crate::sys::{self, PollFd};

/// A non-blocking eventfd.
#[derive(Debug)]
pub struct Eventfd(OwnedFd);

impl Eventfd {
    /// A new eventfd with a count of 0.
    ///
    /// # Errors
    /// [`ClientError::System`].
    pub fn new() -> Result<Self, ClientError> {
        sys::eventfd().map(Self).map_err(|errno| ClientError::System { what: "make an eventfd", errno })
    }

    /// Takes the count.
    #[must_use]
    pub fn take(&self) -> u64 {
        sys::take_count(self.0.as_fd()).unwrap_or(0)
    }

    /// Adds one; false if the count is full.
    pub fn add(&self) -> bool {
        sys::add_one(self.0.as_fd()) != Err(Errno::EAGAIN)
    }

    /// Waits for a count and takes it; 0 at the timeout.
    #[must_use]
    pub fn wait(&self, time: Duration) -> u64 {
        let deadline = Instant::now() + time;
        loop {
            let count = self.take();
            let left = deadline.saturating_duration_since(Instant::now());
            if count > 0 || left.is_zero() {
                return count;
            }
            let mut waiting = [PollFd::new(self.0.as_raw_fd(), true, false)];
            if sys::poll(&mut waiting, Some(left)).is_err() {
                return 0;
            }
        }
    }
}

impl AsFd for Eventfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
