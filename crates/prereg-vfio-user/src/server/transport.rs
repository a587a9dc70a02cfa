//! How a session's bytes travel: a Unix socket, or whatever else carries bytes and descriptors.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use prereg::Errno;

use crate::sys::{self, Waiting, Watch};

/// What one [`Transport::receive`] brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// How many bytes; 0 when the client is gone.
    pub bytes: usize,
    /// Descriptors were sent that did not arrive.
    pub truncated: bool,
}

/// What to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// Something to receive.
    pub readable: bool,
    /// Room to send.
    pub writable: bool,
    /// An eventfd with a count.
    pub eventfd: Option<BorrowedFd<'a>>,
    /// Until then; `None` for ever.
    pub time: Option<Duration>,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ready {
    /// There is something to receive, the end included.
    pub readable: bool,
    /// The client is gone, whether or not there is something to receive.
    pub over: bool,
    /// The eventfd has a count.
    pub eventfd: bool,
}

/// Carries a session's bytes and descriptors. Only [`Transport::wait`] waits.
pub trait Transport: Send + Sync + 'static {
    /// Takes what there is, up to `into`, and appends its descriptors.
    ///
    /// # Errors
    /// EAGAIN when there is nothing; anything else is the end.
    fn receive(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<Received, Errno>;

    /// Sends as much as goes, with the descriptors at its first byte; says how much that was.
    ///
    /// # Errors
    /// EAGAIN when nothing goes; anything else is the end.
    fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Errno>;

    /// Waits until something of `interest` happened, or [`Transport::wake`] was called since the last wait.
    ///
    /// # Errors
    /// The end.
    fn wait(&self, interest: Interest<'_>) -> Result<Ready, Errno>;

    /// Ends the wait that is under way, or else the next one.
    fn wake(&self);

    /// Ends the connection: nothing is received or sent any more, and the other side sees that.
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
    /// For both of them.
    watch: Watch,
}

impl Socket {
    /// Over `stream`, whose flags do not matter.
    ///
    /// # Errors
    /// The system's: no descriptor left.
    pub fn new(stream: UnixStream) -> Result<Self, Errno> {
        let wake = sys::eventfd()?;
        let watch = Watch::new([stream.as_fd(), wake.as_fd()])?;
        Ok(Self { stream, wake, watch })
    }

    /// Whether the other end was closed, though what it sent before may not have been read.
    pub(crate) fn is_hung_up(&self) -> bool {
        let mut waiting = [Waiting::new(self.stream.as_raw_fd(), false, false)];
        sys::poll(&mut waiting, Some(Duration::ZERO)).is_ok() && waiting[0].is_over()
    }

    /// The process and the user at the other end, as they were when it connected.
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
            [socket, woken, Waiting::new(-1, false, false)]
        } else {
            let eventfd = eventfd.map_or(-1, |eventfd| eventfd.as_raw_fd());
            let mut waiting = [
                Waiting::new(self.stream.as_raw_fd(), readable, writable),
                Waiting::new(self.wake.as_raw_fd(), true, false),
                Waiting::new(eventfd, true, false),
            ];
            sys::poll(&mut waiting, time)?;
            waiting
        };
        if woken.is_readable() {
            // Nobody else takes it; that it was there is all that matters.
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
        // Fails where the client did so before.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
