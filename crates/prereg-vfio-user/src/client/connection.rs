//! The connection: sends requests, receives replies, serves the server's requests meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use prereg::Errno;

use super::error::ClientError;
use super::memory::ServedMemory;
use crate::sys::{self, PollFd};
use crate::wire::{Command, DmaAccess, DmaDone, Header, MessageType};

/// The longest message that a client accepts: the largest data and its header.
const LONGEST: u32 = (64 << 20) + 64;

/// A request without a reply yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a reply that nobody waits for is kept"]
pub struct Posted {
    id: u16,
    command: Command,
}

/// A successful reply.
#[derive(Debug)]
pub struct Reply {
    /// The bytes after the header.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
}

type Answer = (Header, Reply);

/// A connection to a server.
pub struct Client {
    stream: UnixStream,
    next_id: u16,
    timeout: Duration,
    memory: Option<Box<dyn ServedMemory>>,
    /// Replies that were not waited for yet.
    answers: BTreeMap<u16, Answer>,
}

impl Client {
    /// Connects to the server at `path` and negotiates the version.
    ///
    /// # Errors
    /// [`ClientError`]; EBUSY or ENFILE of a server that takes no further client.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|error| system("connect", &error))?;
        let mut client = Self::over(stream);
        client.negotiate()?;
        Ok(client)
    }

    /// Uses a connected socket. Sends nothing yet.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        let timeout = Duration::from_secs(60);
        Self { stream, next_id: 0, timeout, memory: None, answers: BTreeMap::new() }
    }

    /// The id of the process that listens at the other end.
    ///
    /// # Errors
    /// [`ClientError::System`].
    pub fn server_process(&self) -> Result<u32, ClientError> {
        let (process, _) = sys::peer(self.stream.as_fd())
            .map_err(|errno| ClientError::System { what: "SO_PEERCRED", errno })?;
        Ok(process.unsigned_abs())
    }

    /// Sets the timeout of replies; 60 seconds by default.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Serves the server's DMA_READ and DMA_WRITE from `memory`; without it they fail with EFAULT.
    pub fn serve_from(&mut self, memory: impl ServedMemory + 'static) {
        self.memory = Some(Box::new(memory));
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are, with descriptors at the first of them.
    ///
    /// # Errors
    /// [`ClientError::Closed`], [`ClientError::TimedOut`] if the server does not read them, [`ClientError::System`].
    pub fn send_raw(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let deadline = Instant::now() + self.timeout;
        let (mut rest, mut descriptors) = (bytes, descriptors);
        while !rest.is_empty() {
            match sys::send(self.stream.as_fd(), rest, descriptors) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    descriptors = &[];
                }
                Err(Errno::EAGAIN) => self.wait_for(deadline, false)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(lost("send", errno)),
            }
        }
        Ok(())
    }

    /// Receives the next message of any kind.
    ///
    /// # Errors
    /// [`ClientError::Closed`], [`ClientError::TimedOut`], [`ClientError::Frame`], [`ClientError::System`].
    pub fn receive_raw(&mut self) -> Result<(Header, Reply), ClientError> {
        let deadline = Instant::now() + self.timeout;
        let mut head = [0; Header::BYTES];
        let mut descriptors = Vec::new();
        self.fill(&mut head, &mut descriptors, deadline)?;
        let header = Header::read(&head);
        let bytes = header.size.checked_sub(Header::BYTES as u32).filter(|_| header.size <= LONGEST);
        let bytes = bytes.ok_or(ClientError::Frame { size: header.size })?;
        let mut body = vec![0; bytes as usize];
        self.fill(&mut body, &mut descriptors, deadline)?;
        Ok((header, Reply { body, descriptors }))
    }

    /// Fills `room` and reads no further byte: descriptors come with the bytes of their message.
    fn fill(
        &mut self,
        mut room: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        deadline: Instant,
    ) -> Result<(), ClientError> {
        while !room.is_empty() {
            match sys::receive(self.stream.as_fd(), room, descriptors) {
                Ok(received) if received.bytes == 0 => return Err(ClientError::Closed),
                Ok(received) => room = room.get_mut(received.bytes..).unwrap_or_default(),
                Err(Errno::EAGAIN) => self.wait_for(deadline, true)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(lost("receive", errno)),
            }
        }
        Ok(())
    }

    fn wait_for(&self, deadline: Instant, readable: bool) -> Result<(), ClientError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::TimedOut);
        }
        let mut waiting = [PollFd::new(self.stream.as_raw_fd(), readable, !readable)];
        sys::poll(&mut waiting, Some(left)).map_err(|errno| lost("wait", errno))?;
        Ok(())
    }

    /// Sends a request without waiting for the reply.
    ///
    /// # Errors
    /// As [`Client::send_raw`].
    pub fn post(
        &mut self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Posted, ClientError> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut bytes = Vec::new();
        Header::command(id, command).frame(&mut bytes, body);
        self.send_raw(&bytes, descriptors)?;
        Ok(Posted { id, command })
    }

    /// Sends a request without reply.
    ///
    /// # Errors
    /// As [`Client::send_raw`].
    pub fn send_no_reply(
        &mut self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), ClientError> {
        let mut bytes = Vec::new();
        Header::command(self.next_id, command).without_reply().frame(&mut bytes, body);
        self.next_id = self.next_id.wrapping_add(1);
        self.send_raw(&bytes, descriptors)
    }

    /// Waits for the reply to a request.
    ///
    /// # Errors
    /// [`ClientError::Refused`], and as [`Client::receive_raw`].
    pub fn wait(&mut self, posted: Posted) -> Result<Reply, ClientError> {
        let Posted { id, command } = posted;
        loop {
            if let Some((header, reply)) = self.answers.remove(&id) {
                return match header.errno() {
                    Some(errno) => Err(ClientError::Refused { command, errno }),
                    None => Ok(reply),
                };
            }
            self.process_one()?;
        }
    }

    /// Whether the reply to a request was received; does not block.
    ///
    /// # Errors
    /// As [`Client::receive_raw`].
    pub fn is_answered(&mut self, posted: Posted) -> Result<bool, ClientError> {
        while !self.answers.contains_key(&posted.id) {
            let mut waiting = [PollFd::new(self.stream.as_raw_fd(), true, false)];
            sys::poll(&mut waiting, Some(Duration::ZERO)).map_err(|errno| lost("wait", errno))?;
            if !waiting[0].is_readable() {
                return Ok(false);
            }
            self.process_one()?;
        }
        Ok(true)
    }

    /// Sends a request and waits for the reply.
    ///
    /// # Errors
    /// As [`Client::post`] and [`Client::wait`].
    pub fn request(
        &mut self,
        command: Command,
        descriptors: &[BorrowedFd<'_>],
        body: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Reply, ClientError> {
        let posted = self.post(command, descriptors, body)?;
        self.wait(posted)
    }

    /// Waits for one message and processes it: keeps a reply, answers a request of the server.
    ///
    /// # Errors
    /// As [`Client::receive_raw`] and [`Client::send_raw`].
    pub fn process_one(&mut self) -> Result<(), ClientError> {
        let (header, reply) = self.receive_raw()?;
        if header.message_type() == MessageType::Reply {
            self.answers.insert(header.id, (header, reply));
            return Ok(());
        }
        let answer = self.serve(&header, &reply.body);
        if header.wants_no_reply() {
            return Ok(());
        }
        let mut bytes = Vec::new();
        match answer {
            Ok(body) => {
                Header::reply(header.id, header.command)
                    .frame(&mut bytes, |out| out.extend_from_slice(&body));
            }
            Err(errno) => Header::failure(header.id, header.command, errno).frame(&mut bytes, |_| ()),
        }
        self.send_raw(&bytes, &[])
    }

    fn serve(&mut self, header: &Header, body: &[u8]) -> Result<Vec<u8>, Errno> {
        let DmaAccess { iova, bytes, data } = DmaAccess::read(body).map_err(|why| why.errno())?;
        let mut out = Vec::new();
        match header.command {
            Command::DMA_READ => {
                let room = usize::try_from(bytes).ok().filter(|bytes| *bytes <= 1 << 20);
                let mut data = vec![0; room.ok_or(Errno::E2BIG)?];
                self.memory.as_mut().ok_or(Errno::EFAULT)?.read(iova, &mut data)?;
                DmaAccess { iova, bytes, data: &data }.write(&mut out);
            }
            Command::DMA_WRITE => {
                if data.len() as u64 != bytes {
                    return Err(Errno::EINVAL);
                }
                self.memory.as_mut().ok_or(Errno::EFAULT)?.write(iova, data)?;
                DmaDone { iova, bytes }.write(&mut out);
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(out)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("next_id", &self.next_id).finish_non_exhaustive()
    }
}

fn system(what: &'static str, error: &std::io::Error) -> ClientError {
    ClientError::System { what, errno: sys::errno_of(error) }
}

/// Maps the errnos of a closed connection to one error.
fn lost(what: &'static str, errno: Errno) -> ClientError {
    match errno.raw() {
        libc::EPIPE | libc::ECONNRESET => ClientError::Closed,
        _ => ClientError::System { what, errno },
    }
}
