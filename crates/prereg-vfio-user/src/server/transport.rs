//! The transport of a session: a Unix socket, or anything else that carries bytes and descriptors.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use prereg::Errno;

use crate::sys::{self, PollFd, Watch};

/// The result of a [`Transport::receive`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Bytes received; 0 at the end of the stream.
    pub bytes: usize,
    /// Some descriptors were lost.
    pub truncated: bool,
}

/// Events to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// Bytes to receive.
    pub readable: bool,
    /// Room to send.
    pub writable: bool,
    /// A count of this eventfd.
    pub eventfd: Option<BorrowedFd<'a>>,
    /// The timeout; `None` for none.
    pub time: Option<Duration>,
}

/// Events that occurred.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ready {
    /// There is something to receive, or the end of the stream.
    pub readable: bool,
    /// The client hung up; there may be something left to receive.
    pub over: bool,
    /// The eventfd has a count.
    pub eventfd: bool,
}

/// Carries a session's bytes and descriptors. Only [`Transport::wait`] blocks.
pub trait Transport: Send + Sync + 'static {
    /// Receives up to `into.len()` bytes and appends their descriptors.
    ///
    /// # Errors
    /// EAGAIN if there is nothing; any other ends the session.
    fn receive(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<Received, Errno>;

    /// Sends as much as possible, with the descriptors at the first byte; returns the number of bytes.
    ///
    /// # Errors
    /// EAGAIN if nothing can be sent; any other ends the session.
    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno>;

    /// Waits for one of `interest`, or for a [`Transport::wake`] since the last wait.
    ///
    /// # Errors
    /// Any error ends the session.
    fn wait(&self, interest: Interest<'_>) -> Result<Ready, Errno>;

    /// Ends the current wait, or the next one.
    fn wake(&self);

    /// Ends the connection in both directions; the other side sees that.
    fn shut(&self);
}

impl<T: Transport + ?Sized> Transport for Arc<T> {
    fn receive(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<Received, Errno> {
        (**self).receive(into, descriptors)
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        (**self).send(bytes, descriptors)
    }

    fn wait(&self, interest: Interest<'_>) -> Result<Ready, Errno> {
        (**self).wait(interest)
    }

    fn wake(&self) {
        (**self).wake();
    }

    fn shut(&self) {
        (**self).shut();
    }
}

/// A connected Unix socket.
pub struct Socket {
    stream: UnixStream,
    wake: OwnedFd,
    /// Of both.
    watch: Watch,
}

impl Socket {
    /// A transport over `stream`, blocking or not.
    ///
    /// # Errors
    /// The system's: no descriptor left.
    pub fn new(stream: UnixStream) -> Result<Self, Errno> {
        let wake = sys::eventfd()?;
        let watch = Watch::new([stream.as_fd(), wake.as_fd()])?;
        Ok(Self { stream, wake, watch })
    }

    /// Whether the other end was closed; bytes that it sent may be unread.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut waiting = [PollFd::new(self.stream.as_raw_fd(), false, false)];
        sys::poll(&mut waiting, Some(Duration::ZERO)).is_ok() && waiting[0].is_over()
    }

    /// Process and user at the other end when it connected.
    ///
    /// # Errors
    /// The system's.
    pub fn peer(&self) -> Result<(i32, u32), Errno> {
        sys::peer(self.stream.as_fd())
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.stream.as_raw_fd()).finish()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Transport for Socket {
    fn receive(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<Received, Errno> {
        let sys::Received { bytes, truncated } = sys::receive(self.stream.as_fd(), into, descriptors)?;
        Ok(Received { bytes, truncated })
    }

    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        sys::send(self.stream.as_fd(), bytes, descriptors)
    }

    fn wait(&self, interest: Interest<'_>) -> Result<Ready, Errno> {
        let Interest { readable, writable, eventfd, time } = interest;
        let [socket, woken, eventfd] = if readable && !writable && eventfd.is_none() {
            let [socket, woken] = self.watch.wait(time)?;
            [socket, woken, PollFd::new(-1, false, false)]
        } else {
            let eventfd = eventfd.map_or(-1, |eventfd| eventfd.as_raw_fd());
            let mut waiting = [
                PollFd::new(self.stream.as_raw_fd(), readable, writable),
                PollFd::new(self.wake.as_raw_fd(), true, false),
                PollFd::new(eventfd, true, false),
            ];
            sys::poll(&mut waiting, time)?;
            waiting
        };
        if woken.is_readable() {
            // Only this thread takes it, and the count does not matter.
            let _ = sys::take_count(self.wake.as_fd());
        }
        Ok(Ready {
            readable: readable && socket.is_readable(),
            over: socket.is_over(),
            eventfd: eventfd.is_readable(),
        })
    }

    fn wake(&self) {
        // A count that is full wakes as well.
        let _ = sys::add_one(self.wake.as_fd());
    }

    fn shut(&self) {
        // Fails if the client has disconnected.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
