//! The protocol state of one client.

use std::collections::VecDeque;
use std::fmt;

use prereg::{Errno, Iova};

use crate::action::Action;
use crate::capabilities::{Negotiated, negotiate};
use crate::dispatch::{CommandSpec, Handler, Request};
use crate::frame_reader::{Descriptors, FrameReader, Message};
use crate::reply::{Kind, RequestMeta, Token, VersionReply};
use crate::request_error::{RequestError, SessionError};
use crate::send_queue::SendQueue;
use crate::settings::Settings;
use crate::transfer::{Finished, TransferError, TransferId, Transfers};
use crate::wire::{Command, Header, MessageType, Version};

/// Bytes counted for every unanswered request, besides its data and descriptors.
const REQUEST_HELD: usize = 256;
/// Bytes counted for an unanswered descriptor: there are fewer of them than of bytes.
const DESCRIPTOR_HELD: usize = 4096;

/// The server side of a client's session. `F` is a descriptor; dropping one closes it.
pub struct Session<F> {
    settings: Settings,
    negotiated: Option<Negotiated>,
    frame_reader: FrameReader<F>,
    send_queue: SendQueue<F>,
    actions: VecDeque<Action<F>>,
    transfers: Transfers,
    /// Bytes held by unanswered requests.
    held: usize,
    messages: u64,
    over: Option<SessionError>,
}

impl<F: 'static> Session<F> {
    /// A session that waits for its client's VERSION.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let transfer = settings.capabilities.max_data_xfer_size.max(settings.transfer_window);
        // A server that moves no data still reads a VERSION.
        let max_size = transfer.max(4096).saturating_add(2 * Header::BYTES as u32);
        Self {
            settings,
            negotiated: None,
            frame_reader: FrameReader::new(max_size),
            send_queue: SendQueue::new(),
            actions: VecDeque::new(),
            transfers: Transfers::new(settings.transfer_window),
            held: 0,
            messages: 0,
            over: None,
        }
    }

    /// The negotiated capabilities; `None` before the client's VERSION.
    #[must_use]
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.as_ref()
    }

    /// Takes the result of one `recvmsg`: bytes of the stream, split anywhere, and the descriptors that came with them.
    ///
    /// The descriptors are assigned to the message that contains the last of these bytes: Linux returns bytes of earlier
    /// messages together with the first bytes that carry descriptors, but nothing beyond those. Several messages with
    /// descriptors in one `sendmsg` cannot be distinguished, unless no more than [`Session::wanted`] bytes are received at a time.
    ///
    /// # Errors
    /// The session has ended: earlier requests are still to be performed and unsent frames to be sent, but nothing more is
    /// read, and further calls fail with this error. The descriptors are dropped.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = F>,
    ) -> Result<(), SessionError> {
        self.receive_bytes(bytes, descriptors, false)
    }

    /// [`receive`](Self::receive) after the system dropped descriptors (MSG_CTRUNC): their message is refused with EMFILE,
    /// instead of being taken for one without descriptors.
    ///
    /// # Errors
    /// As [`Session::receive`].
    pub fn receive_truncated(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = F>,
    ) -> Result<(), SessionError> {
        self.receive_bytes(bytes, descriptors, true)
    }

    /// Bytes missing for the header, or for the message once its header is complete. Never 0.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.frame_reader.wanted()
    }

    /// Whether to read more from the client. False while it has too many unanswered requests or unread replies, and after the
    /// session ended.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        let most = self.settings.held_bytes;
        // A request may wait for a transfer, whose reply comes after everything that the client has sent.
        let patient = self.held < most || !self.transfers.is_empty();
        self.over.is_none() && self.send_queue.bytes() < most && patient
    }

    /// Received bytes of an incomplete message, and its size; of the header while that is incomplete. `None` between messages.
    pub(crate) fn under_way(&self) -> Option<(u32, u32)> {
        self.frame_reader.under_way()
    }

    /// Complete messages received, including replies.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// The next action. Call it after every [`Session::receive`] until it returns `None`.
    pub fn next_action(&mut self) -> Option<Action<F>> {
        self.actions.pop_front()
    }

    /// Replies to a request, unless the client wants no reply. A failure's errno is sent as it is, but 0 and negative ones as
    /// EIO.
    pub fn reply<K: Kind<F>>(&mut self, token: Token<K>, answer: Result<K::Answer<'_>, Errno>) {
        let Token { meta, kind } = token;
        self.held = self.held.saturating_sub(meta.held);
        if !meta.wants_reply || self.is_closed() {
            return;
        }
        let buffer = self.negotiated.map_or(0, |negotiated| negotiated.client_max_msg_fds as usize);
        let header = Header::reply(meta.id, meta.command);
        let written = answer.and_then(|answer| {
            self.send_queue.frame(&header, |out, descriptors| kind.write(answer, buffer, out, descriptors))
        });
        if let Err(errno) = written {
            self.fail(&meta, errno);
            if meta.command == Command::VERSION && self.over.is_none() {
                self.end(SessionError::Rejected { errno });
            }
        }
    }

    /// The next bytes to send, and the descriptors that go with the first of them. Call it after every [`Session::receive`],
    /// [`Session::reply`], [`Session::dma_read`] and [`Session::dma_write`].
    #[must_use]
    pub fn unsent(&self) -> Option<(&[u8], &[F])> {
        self.send_queue.front()
    }

    /// Reports that the first `bytes` of [`Session::unsent`] were sent. If any were, its descriptors were sent too and are
    /// dropped.
    pub fn sent(&mut self, bytes: usize) {
        self.send_queue.sent(bytes);
    }

    /// All unsent bytes.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.send_queue.bytes()
    }

    /// The number of replies to DMA_READs and DMA_WRITEs so far, if another one is due.
    pub(crate) fn awaited_reply(&self) -> Option<u64> {
        self.transfers.awaited()
    }

    /// Starts to read `bytes` of the client's memory at `iova`; [`Action::TransferEnded`] has the data.
    ///
    /// # Errors
    /// [`TransferError::NotNegotiated`], [`TransferError::Range`], [`TransferError::OutOfMemory`], [`TransferError::Gone`].
    pub fn dma_read(&mut self, iova: Iova, bytes: usize) -> Result<TransferId, TransferError> {
        self.may_transfer()?;
        let mut data = Transfers::buffer(iova, bytes)?;
        data.resize(bytes, 0);
        let id = self.transfers.start(Command::DMA_READ, iova, data);
        self.transfers.send_next(&mut self.send_queue);
        Ok(id)
    }

    /// Starts to write `data` to the client's memory at `iova`; [`Action::TransferEnded`] has the result.
    ///
    /// # Errors
    /// As [`Session::dma_read`].
    pub fn dma_write(&mut self, iova: Iova, data: &[u8]) -> Result<TransferId, TransferError> {
        self.may_transfer()?;
        let mut copy = Transfers::buffer(iova, data.len())?;
        copy.extend_from_slice(data);
        let id = self.transfers.start(Command::DMA_WRITE, iova, copy);
        self.transfers.send_next(&mut self.send_queue);
        Ok(id)
    }

    /// Ends the session, because the client is gone or to be disconnected: every transfer ends ([`Action::TransferEnded`]),
    /// nothing more is read, sent or answered. Later replies are ignored.
    ///
    /// # Errors
    /// [`SessionError::MidMessage`] if a message was incomplete; or the error that ended the session before.
    pub fn close(&mut self) -> Result<(), SessionError> {
        let reason = match (self.over, self.frame_reader.under_way()) {
            (Some(reason), _) => Some(reason),
            (None, Some((found, size))) => Some(SessionError::MidMessage { found, size }),
            (None, None) => None,
        };
        self.frame_reader.take_descriptors();
        self.send_queue = SendQueue::new();
        let ended = self.transfers.end();
        self.actions.extend(ended.into_iter().map(transfer_ended));
        self.over = Some(SessionError::Closed);
        match reason {
            None | Some(SessionError::Closed) => Ok(()),
            Some(reason) => Err(reason),
        }
    }

    fn is_closed(&self) -> bool {
        self.over == Some(SessionError::Closed)
    }

    fn may_transfer(&self) -> Result<(), TransferError> {
        match (self.over, self.negotiated) {
            (Some(_), _) => Err(TransferError::Gone),
            (None, None) => Err(TransferError::NotNegotiated),
            (None, Some(_)) => Ok(()),
        }
    }

    fn receive_bytes(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = F>,
        lost: bool,
    ) -> Result<(), SessionError> {
        let mut descriptors = Some(descriptors);
        let mut input = bytes;
        while !input.is_empty() {
            if let Some(reason) = self.over {
                return Err(reason);
            }
            let message = self.frame_reader.take(&mut input).map_err(|reason| self.end(reason))?;
            if input.is_empty() {
                if let Some(more) = descriptors.take() {
                    self.frame_reader.descriptors.add(more, self.settings.capabilities.max_msg_fds);
                    self.frame_reader.descriptors.lost |= lost;
                }
            }
            if let Some(message) = message {
                self.messages += 1;
                let own = self.frame_reader.take_descriptors();
                self.message(&message, own);
            }
        }
        self.over.map_or(Ok(()), Err)
    }

    /// Stops reading. Transfers end, because their replies would not be read.
    fn end(&mut self, reason: SessionError) -> SessionError {
        self.over = Some(reason);
        let ended = self.transfers.end();
        self.actions.extend(ended.into_iter().map(transfer_ended));
        reason
    }

    fn message(&mut self, message: &Message<'_>, descriptors: Descriptors<F>) {
        let header = &message.header;
        if header.message_type() == MessageType::Reply {
            let body = (!message.oversized).then_some(&*message.body);
            let ended = self.transfers.reply(header, body);
            self.actions.extend(ended.map(transfer_ended));
            self.transfers.send_next(&mut self.send_queue);
            return;
        }
        if let Err(error) = self.command(message, descriptors) {
            let meta = self.meta(header, 0);
            if meta.wants_reply {
                self.fail(&meta, error.errno());
            }
            self.actions.push_back(Action::Refused { id: header.id, command: header.command, error });
            if let RequestError::Version { major, minor } = error {
                self.end(SessionError::Version { major, minor });
            }
        }
    }

    fn command(&mut self, message: &Message<'_>, descriptors: Descriptors<F>) -> Result<(), RequestError> {
        let (header, body) = (&message.header, &*message.body);
        // Other fields are ignored: only replies have an error, and later versions may have more bits.
        if header.message_type() != MessageType::Command {
            return Err(RequestError::Header { flags: header.flags, error: header.error });
        }
        let spec = CommandSpec::<F>::find(header.command)?;
        if message.oversized {
            return Err(RequestError::Oversized { size: header.size, most: self.frame_reader.max_size() });
        }
        spec.check_length(body.len())?;
        let kept = if spec.takes_descriptors() {
            let Descriptors { kept, too_many, lost } = descriptors;
            if lost {
                return Err(RequestError::DescriptorsLost);
            }
            if too_many {
                let expected = self.settings.capabilities.max_msg_fds;
                return Err(RequestError::Descriptors { found: expected.saturating_add(1), expected });
            }
            kept
        } else {
            // Descriptors that the request does not use are closed.
            drop(descriptors);
            Vec::new()
        };
        match (&spec.handler, self.negotiated) {
            (Handler::Version, None) => self.version(header, body),
            (Handler::Version, Some(_)) => Err(RequestError::Negotiated),
            (Handler::Action(_), None) => Err(RequestError::NotNegotiated),
            (Handler::Action(handler), Some(negotiated)) => {
                let mut meta = self.meta(header, body.len() + kept.len() * DESCRIPTOR_HELD);
                let request = Request { negotiated: &negotiated, meta: &mut meta, body, descriptors: kept };
                let action = handler(request)?;
                let held = self.held.saturating_add(meta.held);
                if held > self.settings.held_bytes.saturating_mul(2) {
                    return Err(RequestError::Busy { held: self.held });
                }
                self.held = held;
                self.actions.push_back(action);
                Ok(())
            }
        }
    }

    fn version(&mut self, header: &Header, body: &[u8]) -> Result<(), RequestError> {
        let Version { major, minor, data } = Version::read(body)?;
        let (negotiated, data) = negotiate(&self.settings.capabilities, major, minor, data)?;
        if header.wants_no_reply() {
            // The client would never see the negotiated capabilities.
            return Err(RequestError::Header { flags: header.flags, error: header.error });
        }
        self.transfers.limit(negotiated.client_max_data_xfer_size);
        self.negotiated = Some(negotiated);
        let meta = self.meta(header, body.len());
        self.held = self.held.saturating_add(meta.held);
        let token = Token { meta, kind: VersionReply { minor: negotiated.minor, data } };
        self.actions.push_back(Action::Negotiated { negotiated, token });
        Ok(())
    }

    fn meta(&self, header: &Header, held: usize) -> RequestMeta {
        RequestMeta {
            id: header.id,
            command: header.command,
            wants_reply: !header.wants_no_reply(),
            held: REQUEST_HELD + held,
        }
    }

    fn fail(&mut self, meta: &RequestMeta, errno: Errno) {
        let header = Header::failure(meta.id, meta.command, errno);
        let written: Result<(), std::convert::Infallible> = self.send_queue.frame(&header, |_, _| Ok(()));
        let Ok(()) = written;
    }
}

fn transfer_ended<F>((transfer, result): Finished) -> Action<F> {
    Action::TransferEnded { transfer, result }
}

impl<F> fmt::Debug for Session<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("negotiated", &self.negotiated)
            .field("held", &self.held)
            .field("unsent", &self.send_queue.bytes())
            .field("actions", &self.actions.len())
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
