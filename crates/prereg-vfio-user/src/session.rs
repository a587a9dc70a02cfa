//! One client: everything that was said and is to be said.

use std::collections::VecDeque;
use std::fmt;

use prereg::{Errno, Iova};

use crate::action::Action;
use crate::answer::{Introduced, Kind, Ticket, Token};
use crate::capabilities::{Terms, negotiate};
use crate::dispatch::{Handler, Request, Row};
use crate::inbox::{Descriptors, Inbox, Message};
use crate::outbox::Outbox;
use crate::refusal::{Refusal, SessionError};
use crate::settings::Settings;
use crate::transfer::{Ended, TransferError, TransferId, Transfers};
use crate::wire::{Command, Header, MessageType, Version};

/// What every unanswered request is reckoned to hold, besides its data and descriptors.
const REQUEST_HELD: usize = 256;
/// What an unanswered descriptor is reckoned to hold: there are fewer of them than of bytes.
const DESCRIPTOR_HELD: usize = 4096;

/// A client's session, server side. `F` is a descriptor; dropping one closes it.
pub struct Session<F> {
    settings: Settings,
    terms: Option<Terms>,
    inbox: Inbox<F>,
    outbox: Outbox<F>,
    actions: VecDeque<Action<F>>,
    transfers: Transfers,
    /// By requests that are not answered.
    held: usize,
    messages: u64,
    over: Option<SessionError>,
}

impl<F: 'static> Session<F> {
    /// A session that waits for its client's VERSION.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        let transfer = settings.capabilities.max_data_xfer_size.max(settings.transfer_window);
        // Even a server that moves no data reads a VERSION.
        let longest = transfer.max(4096).saturating_add(2 * Header::BYTES as u32);
        Self {
            settings,
            terms: None,
            inbox: Inbox::new(longest),
            outbox: Outbox::new(),
            actions: VecDeque::new(),
            transfers: Transfers::new(settings.transfer_window),
            held: 0,
            messages: 0,
            over: None,
        }
    }

    /// What was agreed on; `None` before the client's VERSION.
    #[must_use]
    pub fn terms(&self) -> Option<&Terms> {
        self.terms.as_ref()
    }

    /// Takes what one `recvmsg` brought: bytes of the stream, cut anywhere, and the descriptors that came with them.
    ///
    /// The descriptors are taken to belong to the message that holds the last of these bytes: Linux hands out bytes of
    /// earlier messages together with the first ones that have descriptors, but nothing beyond those. For a client that
    /// sends several messages and descriptors in one `sendmsg` there is no telling; who wants to, asks for no more than
    /// [`Session::wanted`] at a time.
    ///
    /// # Errors
    /// The session is over: what was asked before is still to be done and what is unsent to be sent, nothing more is read,
    /// and further calls fail in the same way. The descriptors are dropped.
    pub fn receive(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = F>,
    ) -> Result<(), SessionError> {
        self.take(bytes, descriptors, false)
    }

    /// The same when the system had no room for all descriptors (MSG_CTRUNC): their message is refused with EMFILE,
    /// where it would otherwise be taken for one that never had any.
    ///
    /// # Errors
    /// As [`Session::receive`].
    pub fn receive_truncated(
        &mut self,
        bytes: &[u8],
        descriptors: impl IntoIterator<Item = F>,
    ) -> Result<(), SessionError> {
        self.take(bytes, descriptors, true)
    }

    /// How many bytes complete the header that is under way, or the message once its header is there. Never 0.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.inbox.wanted()
    }

    /// Whether to go on reading from the client. False while it has too much unanswered or leaves too many replies unread,
    /// and when the session is over.
    #[must_use]
    pub fn wants_bytes(&self) -> bool {
        let most = self.settings.held_bytes;
        // A request may wait for a transfer, whose reply comes behind everything that the client has sent.
        let patient = self.held < most || !self.transfers.is_empty();
        self.over.is_none() && self.outbox.bytes() < most && patient
    }

    /// How many bytes of a message have come that is not whole yet, and how many it has; of its header itself where that is
    /// not whole. `None` between messages.
    #[must_use]
    pub fn under_way(&self) -> Option<(u32, u32)> {
        self.inbox.under_way()
    }

    /// How many messages have come whole, replies included.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.messages
    }

    /// What to do next. Ask after every [`Session::receive`] until there is nothing.
    pub fn next_action(&mut self) -> Option<Action<F>> {
        self.actions.pop_front()
    }

    /// Answers a request, unless the client wanted no answer. A failure's errno is sent as it is, but 0 and less as EIO.
    pub fn reply<K: Kind<F>>(&mut self, token: Token<K>, answer: Result<K::Answer<'_>, Errno>) {
        let Token { ticket, kind } = token;
        self.held = self.held.saturating_sub(ticket.held);
        if !ticket.wants_reply || self.is_closed() {
            return;
        }
        let room = self.terms.map_or(0, |terms| terms.client_max_msg_fds as usize);
        let header = Header::reply(ticket.id, ticket.command);
        let written = answer.and_then(|answer| {
            self.outbox.frame(&header, |out, descriptors| kind.write(answer, room, out, descriptors))
        });
        if let Err(errno) = written {
            self.fail(&ticket, errno);
            if ticket.command == Command::VERSION && self.over.is_none() {
                self.end(SessionError::TurnedAway { errno });
            }
        }
    }

    /// What to send next, and the descriptors that go with its first byte. Ask after every [`Session::receive`],
    /// [`Session::reply`], [`Session::dma_read`] and [`Session::dma_write`].
    #[must_use]
    pub fn unsent(&self) -> Option<(&[u8], &[F])> {
        self.outbox.front()
    }

    /// The first `bytes` of [`Session::unsent`] were sent, and all its descriptors, which are dropped now, if it was any.
    pub fn sent(&mut self, bytes: usize) {
        self.outbox.sent(bytes);
    }

    /// Bytes not sent yet, in all.
    #[must_use]
    pub fn unsent_bytes(&self) -> usize {
        self.outbox.bytes()
    }

    /// Asks the client for `bytes` of its memory at `iova`; [`Action::TransferEnded`] brings them.
    ///
    /// # Errors
    /// [`TransferError::NotNegotiated`], [`TransferError::Range`], [`TransferError::OutOfMemory`],
    /// [`TransferError::Gone`].
    pub fn dma_read(&mut self, iova: Iova, bytes: usize) -> Result<TransferId, TransferError> {
        self.may_transfer()?;
        let mut data = Transfers::room(iova, bytes)?;
        data.resize(bytes, 0);
        let id = self.transfers.start(Command::DMA_READ, iova, data);
        self.transfers.ask(&mut self.outbox);
        Ok(id)
    }

    /// Has the client write `data` to its memory at `iova`; [`Action::TransferEnded`] says when it has.
    ///
    /// # Errors
    /// As [`Session::dma_read`].
    pub fn dma_write(&mut self, iova: Iova, data: &[u8]) -> Result<TransferId, TransferError> {
        self.may_transfer()?;
        let mut copy = Transfers::room(iova, data.len())?;
        copy.extend_from_slice(data);
        let id = self.transfers.start(Command::DMA_WRITE, iova, copy);
        self.transfers.ask(&mut self.outbox);
        Ok(id)
    }

    /// The client is gone, or is to be: every transfer ends ([`Action::TransferEnded`]), nothing more is read, sent or
    /// answered. Tokens may still be given back; nothing comes of it.
    ///
    /// # Errors
    /// [`SessionError::MidMessage`] when a message was under way; or what ended the session before.
    pub fn close(&mut self) -> Result<(), SessionError> {
        let reason = match (self.over, self.inbox.under_way()) {
            (Some(reason), _) => Some(reason),
            (None, Some((found, size))) => Some(SessionError::MidMessage { found, size }),
            (None, None) => None,
        };
        self.inbox.claim();
        self.outbox = Outbox::new();
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
        match (self.over, self.terms) {
            (Some(_), _) => Err(TransferError::Gone),
            (None, None) => Err(TransferError::NotNegotiated),
            (None, Some(_)) => Ok(()),
        }
    }

    fn take(
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
            let message = self.inbox.take(&mut input).map_err(|reason| self.end(reason))?;
            if input.is_empty() {
                if let Some(more) = descriptors.take() {
                    self.inbox.descriptors.add(more, self.settings.capabilities.max_msg_fds);
                    self.inbox.descriptors.lost |= lost;
                }
            }
            if let Some(message) = message {
                self.messages += 1;
                let own = self.inbox.claim();
                self.message(&message, own);
            }
        }
        self.over.map_or(Ok(()), Err)
    }

    /// Nothing more is read. Transfers end, for their replies would not be.
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
            self.transfers.ask(&mut self.outbox);
            return;
        }
        if let Err(refusal) = self.command(message, descriptors) {
            let ticket = self.ticket(header, 0);
            if ticket.wants_reply {
                self.fail(&ticket, refusal.errno());
            }
            self.actions.push_back(Action::Refused { id: header.id, command: header.command, refusal });
            if let Refusal::Version { major, minor } = refusal {
                self.end(SessionError::Version { major, minor });
            }
        }
    }

    fn command(&mut self, message: &Message<'_>, descriptors: Descriptors<F>) -> Result<(), Refusal> {
        let (header, body) = (&message.header, &*message.body);
        // Whatever else stands there: only replies have an error, and later versions may have more bits.
        if header.message_type() != MessageType::Command {
            return Err(Refusal::Header { flags: header.flags, error: header.error });
        }
        let row = Row::<F>::find(header.command)?;
        if message.oversized {
            return Err(Refusal::Oversized { size: header.size, most: self.inbox.longest() });
        }
        row.admit(body.len())?;
        let kept = if row.takes_descriptors() {
            let Descriptors { kept, too_many, lost } = descriptors;
            if lost {
                return Err(Refusal::DescriptorsLost);
            }
            if too_many {
                let expected = self.settings.capabilities.max_msg_fds;
                return Err(Refusal::Descriptors { found: expected.saturating_add(1), expected });
            }
            kept
        } else {
            // A client may send along what the request does not need; it is closed here.
            drop(descriptors);
            Vec::new()
        };
        match (&row.handler, self.terms) {
            (Handler::Version, None) => self.version(header, body),
            (Handler::Version, Some(_)) => Err(Refusal::Negotiated),
            (Handler::Action(_), None) => Err(Refusal::NotNegotiated),
            (Handler::Action(handler), Some(terms)) => {
                let mut ticket = self.ticket(header, body.len() + kept.len() * DESCRIPTOR_HELD);
                let request = Request { terms: &terms, ticket: &mut ticket, body, descriptors: kept };
                let action = handler(request)?;
                let held = self.held.saturating_add(ticket.held);
                if held > self.settings.held_bytes.saturating_mul(2) {
                    return Err(Refusal::Busy { held: self.held });
                }
                self.held = held;
                self.actions.push_back(action);
                Ok(())
            }
        }
    }

    fn version(&mut self, header: &Header, body: &[u8]) -> Result<(), Refusal> {
        let Version { major, minor, data } = Version::read(body)?;
        let (terms, data) = negotiate(&self.settings.capabilities, major, minor, data)?;
        if header.wants_no_reply() {
            // It would never learn what it agreed to.
            return Err(Refusal::Header { flags: header.flags, error: header.error });
        }
        self.transfers.limit(terms.client_max_data_xfer_size);
        self.terms = Some(terms);
        let ticket = self.ticket(header, body.len());
        self.held = self.held.saturating_add(ticket.held);
        let token = Token { ticket, kind: Introduced { minor: terms.minor, data } };
        self.actions.push_back(Action::Negotiated { terms, token });
        Ok(())
    }

    fn ticket(&self, header: &Header, held: usize) -> Ticket {
        Ticket {
            id: header.id,
            command: header.command,
            wants_reply: !header.wants_no_reply(),
            held: REQUEST_HELD + held,
        }
    }

    fn fail(&mut self, ticket: &Ticket, errno: Errno) {
        let header = Header::failure(ticket.id, ticket.command, errno);
        let written: Result<(), std::convert::Infallible> = self.outbox.frame(&header, |_, _| Ok(()));
        let Ok(()) = written;
    }
}

fn transfer_ended<F>((transfer, result): Ended) -> Action<F> {
    Action::TransferEnded { transfer, result }
}

impl<F> fmt::Debug for Session<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("terms", &self.terms)
            .field("held", &self.held)
            .field("unsent", &self.outbox.bytes())
            .field("actions", &self.actions.len())
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
