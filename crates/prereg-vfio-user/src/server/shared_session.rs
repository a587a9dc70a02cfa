//! A session shared by several threads: the client's own, and device threads that wait for remote memory.
//!
//! One thread at a time polls and receives, and hands results to the threads they belong to; the others sleep until it is done.
//! So any thread can access remote memory, even inside a call to the device that keeps the client's thread busy, and no two
//! threads wait for each other.
//!
//! One lock protects the session. It is held while bytes are received and sent without blocking, and never while a device is
//! called, an eventfd written or the transport polled.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prereg::{Errno, Iova};
use prereg_iommu::iova::OnDrained;

use super::counts::Counts;
use super::descriptor::Descriptor;
use super::dma::{Remote, RemoteError};
use super::event::Event;
use super::interrupts::Interrupts;
use super::observer::Reporter;
use super::state::DisconnectReason;
use super::transport::{Interest, Ready, Transport};
use crate::action::Action;
use crate::capabilities::Negotiated;
use crate::reply::{Kind, Token, VersionReply};
use crate::request_error::SessionError;
use crate::session::Session;
use crate::settings::Settings;
use crate::transfer::{TransferError, TransferId};
use crate::wire::Header;

/// Bytes received at a time.
const RECEIVE_BYTES: usize = 64 << 10;
/// Time for a disconnected client to read the last replies.
const LINGER: Duration = Duration::from_secs(1);

/// The next task of the client's thread.
pub(crate) enum Next {
    /// Perform an action.
    Action(Action<Descriptor>),
    /// Reply to the unmaps that have completed.
    OnDrained,
    /// Disconnect the client.
    Over(DisconnectReason),
}

/// A client's session, for all threads.
pub(crate) struct SharedSession {
    transport: Box<dyn Transport>,
    stall_timeout: Option<Duration>,
    counts: Arc<Counts>,
    events: Reporter<Event>,
    interrupts: OnceLock<Interrupts>,
    /// The last access of a mapping was dropped. Stored before the transport is woken and read after a wait; the Release and
    /// Acquire of the swap pair.
    drained: AtomicBool,
    inner: Mutex<Inner>,
    polled: Condvar,
}

struct Inner {
    session: Session<Descriptor>,
    received: Received,
    pending: VecDeque<Action<Descriptor>>,
    /// Finished transfers, for the threads that started them.
    ended: BTreeMap<TransferId, Result<Vec<u8>, TransferError>>,
    /// A thread is polling the transport.
    polling: bool,
    /// Threads that wait for it.
    waiters: u32,
    /// The time since a message has been incomplete, and the number of messages before it.
    partial_since: Option<(Instant, u64)>,
    /// The time since a reply of the client has been due, and the number of replies before it.
    awaited_since: Option<(Instant, u64)>,
    over: Option<DisconnectReason>,
}

/// Received bytes that the session has not taken: while a client has too many unanswered requests its bytes stay here, even in
/// the middle of a message.
struct Received {
    buffer: Vec<u8>,
    /// The range of the bytes left.
    unread: Range<usize>,
    /// They belong to the last of these bytes.
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

impl Received {
    fn new() -> Self {
        Self { buffer: vec![0; RECEIVE_BYTES], unread: 0..0, descriptors: Vec::new(), truncated: false }
    }

    /// The next message or the part of it that was received; with the last byte the descriptors, and whether some were lost.
    fn take(&mut self, session: &Session<Descriptor>) -> (&[u8], Vec<OwnedFd>, bool) {
        let unread = self.buffer.get(self.unread.clone()).unwrap_or_default();
        let bytes = match unread.first_chunk() {
            // The session refuses an invalid size.
            Some(head) if session.under_way().is_none() => Header::read(head).size.max(1) as usize,
            _ => session.wanted(),
        };
        let message = unread.get(..bytes).unwrap_or(unread);
        self.unread.start += message.len();
        if self.unread.is_empty() {
            (message, std::mem::take(&mut self.descriptors), self.truncated)
        } else {
            (message, Vec::new(), false)
        }
    }
}

impl SharedSession {
    pub(crate) fn new(
        transport: Box<dyn Transport>,
        settings: Settings,
        stall_timeout: Option<Duration>,
        counts: Arc<Counts>,
        events: Reporter<Event>,
    ) -> Self {
        let inner = Inner {
            session: Session::new(settings),
            received: Received::new(),
            pending: VecDeque::new(),
            ended: BTreeMap::new(),
            polling: false,
            waiters: 0,
            partial_since: None,
            awaited_since: None,
            over: None,
        };
        Self {
            transport,
            stall_timeout,
            counts,
            events,
            interrupts: OnceLock::new(),
            drained: AtomicBool::new(false),
            inner: Mutex::new(inner),
            polled: Condvar::new(),
        }
    }

    /// A poisoned lock is consistent: no device code runs under it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the interrupts whose eventfds are polled too.
    pub(crate) fn interrupts(&self, interrupts: Interrupts) {
        // Called once.
        let _ = self.interrupts.set(interrupts);
    }

    /// Waits for the next task. For the client's thread.
    pub(crate) fn next(&self) -> Next {
        let mut inner = self.lock();
        loop {
            if inner.over == Some(DisconnectReason::Stopped) {
                return Next::Over(DisconnectReason::Stopped);
            }
            if let Some(action) = inner.pending.pop_front() {
                // Replies are sent before an action that may take long.
                if !matches!(action, Action::MapMemory { .. } | Action::UnmapMemory { .. }) {
                    self.flush(&mut inner);
                }
                return Next::Action(action);
            }
            if self.drained.load(Ordering::Relaxed) && self.drained.swap(false, Ordering::Acquire) {
                return Next::OnDrained;
            }
            if let Some(reason) = inner.over {
                return Next::Over(reason);
            }
            self.flush(&mut inner);
            if inner.over.is_none() {
                inner = self.poll_once(inner);
            }
        }
    }

    /// Replies to a request.
    pub(crate) fn reply<K: Kind<Descriptor>>(&self, token: Token<K>, answer: Result<K::Answer<'_>, Errno>) {
        self.lock().session.reply(token, answer);
    }

    /// Rejects a VERSION; nothing more is read.
    pub(crate) fn reject(&self, token: Token<VersionReply>, errno: Errno) {
        let mut inner = self.lock();
        inner.session.reply(token, Err(errno));
        inner.over.get_or_insert(DisconnectReason::Broken(SessionError::Rejected { errno }));
    }

    /// The negotiated capabilities.
    pub(crate) fn negotiated(&self) -> Option<Negotiated> {
        self.lock().session.negotiated().copied()
    }

    /// Stops at once: transfers fail, nothing more is performed, sent or answered.
    pub(crate) fn stop(&self) {
        let mut inner = self.lock();
        inner.over = Some(DisconnectReason::Stopped);
        self.close(&mut inner);
        drop(inner);
        self.transport.wake();
    }

    /// Disconnects a client that has not sent its VERSION.
    pub(crate) fn evict(&self) {
        let mut inner = self.lock();
        inner.over.get_or_insert(DisconnectReason::Stalled);
        self.close(&mut inner);
        drop(inner);
        self.transport.wake();
    }

    /// Disconnects the client after sending pending replies and giving it time to read them.
    pub(crate) fn close_gracefully(&self) {
        let deadline = Instant::now() + LINGER;
        let mut inner = self.lock();
        loop {
            self.flush(&mut inner);
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.session.unsent().is_none()
                || left.is_zero()
                || inner.over == Some(DisconnectReason::Stopped)
            {
                break;
            }
            drop(inner);
            let interest = Interest { readable: false, writable: true, eventfd: None, time: Some(left) };
            let over = self.transport.wait(interest).map_or(true, |ready| ready.over);
            inner = self.lock();
            if over {
                break;
            }
        }
        inner.over.get_or_insert(DisconnectReason::Gone);
        self.close(&mut inner);
        drop(inner);
        self.transport.shut();
    }

    /// Polls the transport once, or waits for another thread's poll.
    fn poll_once<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        if inner.polling {
            inner.waiters += 1;
            inner = self.polled.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.waiters -= 1;
            return inner;
        }
        if !inner.received.unread.is_empty() && inner.session.wants_bytes() {
            self.feed(&mut inner);
            return inner;
        }
        let readable = inner.session.wants_bytes();
        let writable = inner.session.unsent().is_some();
        // A reply is late only if this server reads.
        let reply_time = if readable { self.reply_time_left(&mut inner) } else { None };
        let time = self.time_left(&mut inner, readable).into_iter().chain(reply_time).min();
        inner.polling = true;
        drop(inner);
        let mask_eventfds =
            self.interrupts.get().and_then(|interrupts| Some((interrupts, interrupts.mask_eventfds()?)));
        let eventfd = mask_eventfds.as_ref().map(|(_, mask_eventfds)| mask_eventfds.as_fd());
        let ready = self.transport.wait(Interest { readable, writable, eventfd, time });
        if let (Ok(Ready { eventfd: true, .. }), Some((interrupts, mask_eventfds))) = (&ready, &mask_eventfds)
        {
            interrupts.handle_mask_eventfds(mask_eventfds);
        }
        let mut inner = self.lock();
        inner.polling = false;
        // The reply may be among messages that were not read yet.
        let mut has_more = !readable;
        match ready {
            Err(errno) => self.disconnect(&mut inner, DisconnectReason::Lost(errno)),
            Ok(ready) if ready.readable => has_more = self.receive(&mut inner),
            Ok(ready) if ready.over => self.disconnect(&mut inner, DisconnectReason::Gone),
            Ok(_) if self.time_left(&mut inner, readable) == Some(Duration::ZERO) => {
                self.disconnect(&mut inner, DisconnectReason::Stalled);
            }
            Ok(_) => {}
        }
        has_more |= !inner.received.unread.is_empty();
        if !has_more && self.reply_time_left(&mut inner) == Some(Duration::ZERO) {
            self.disconnect(&mut inner, DisconnectReason::Stalled);
        }
        if writable {
            self.flush(&mut inner);
        }
        if inner.waiters > 0 {
            self.polled.notify_all();
        }
        inner
    }

    /// Time left for the client to complete a message; `None` if none is incomplete or the client is not read from.
    fn time_left(&self, inner: &mut Inner, readable: bool) -> Option<Duration> {
        let stall_timeout = self.stall_timeout?;
        let silent = inner.session.negotiated().is_none();
        if !silent && (!readable || inner.session.under_way().is_none()) {
            inner.partial_since = None;
            return None;
        }
        let messages = inner.session.messages();
        let since = match inner.partial_since {
            Some((since, sent)) if silent || sent == messages => since,
            _ => Instant::now(),
        };
        inner.partial_since = Some((since, messages));
        Some(stall_timeout.saturating_sub(since.elapsed()))
    }

    /// Time left for the client to reply to a DMA_READ or DMA_WRITE; `None` if no reply is due.
    fn reply_time_left(&self, inner: &mut Inner) -> Option<Duration> {
        let stall_timeout = self.stall_timeout?;
        let replies = inner.session.awaited_reply();
        inner.awaited_since = match (replies, inner.awaited_since) {
            (Some(replies), Some((since, before))) if before == replies => Some((since, before)),
            (Some(replies), _) => Some((Instant::now(), replies)),
            (None, _) => None,
        };
        let (since, _) = inner.awaited_since?;
        Some(stall_timeout.saturating_sub(since.elapsed()))
    }

    /// Receives what fits the buffer; returns whether there may be more.
    fn receive(&self, inner: &mut Inner) -> bool {
        let Received { buffer, unread, descriptors, truncated } = &mut inner.received;
        match self.transport.receive(buffer, descriptors) {
            Ok(received) if received.bytes == 0 => self.disconnect(inner, DisconnectReason::Gone),
            Ok(received) => {
                (*unread, *truncated) = (0..received.bytes, received.truncated);
                let is_full = received.bytes == buffer.len();
                self.feed(inner);
                return is_full;
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => self.disconnect(inner, DisconnectReason::Lost(errno)),
        }
        false
    }

    /// Passes received messages to the session as long as it accepts more.
    fn feed(&self, inner: &mut Inner) {
        while !inner.received.unread.is_empty() && inner.session.wants_bytes() {
            let Inner { session, received, .. } = &mut *inner;
            let (message, descriptors, truncated) = received.take(session);
            let descriptors = descriptors.into_iter().map(Descriptor::Own);
            let result = if truncated {
                session.receive_truncated(message, descriptors)
            } else {
                session.receive(message, descriptors)
            };
            if let Err(error) = result {
                inner.over.get_or_insert(DisconnectReason::Broken(error));
            }
        }
        self.route(inner);
    }

    /// Passes actions on. Refusals are counted and reported here, so they cannot pile up.
    fn route(&self, inner: &mut Inner) {
        while let Some(action) = inner.session.next_action() {
            match action {
                Action::TransferEnded { transfer, result } => {
                    inner.ended.insert(transfer, result);
                }
                Action::Refused { command, error, .. } => {
                    self.counts.refused(command, error.name());
                    let command = command.name().unwrap_or("unknown");
                    self.events.report(&Event::RequestRefused { command, error });
                }
                action => inner.pending.push_back(action),
            }
        }
    }

    /// Sends what the transport accepts.
    fn flush(&self, inner: &mut Inner) {
        while let Some((bytes, descriptors)) = inner.session.unsent() {
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            match self.transport.send(bytes, &descriptors) {
                Ok(sent) => {
                    drop(descriptors);
                    inner.session.sent(sent);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    if inner.polling {
                        // The polling thread does not wait for writability yet.
                        self.transport.wake();
                    }
                    return;
                }
                Err(errno) => {
                    drop(descriptors);
                    return self.disconnect(inner, DisconnectReason::Lost(errno));
                }
            }
        }
    }

    /// Ends the session, because the client is gone or to be disconnected.
    fn disconnect(&self, inner: &mut Inner, reason: DisconnectReason) {
        let closed = inner.session.close();
        let reason = match closed {
            Err(error) if reason == DisconnectReason::Gone => DisconnectReason::Broken(error),
            _ => reason,
        };
        inner.over.get_or_insert(reason);
        self.close(inner);
    }

    fn close(&self, inner: &mut Inner) {
        // The caller knows the reason.
        let _ = inner.session.close();
        self.route(inner);
        self.polled.notify_all();
    }

    /// Starts a transfer and waits for its end.
    fn transfer(
        &self,
        start: impl FnOnce(&mut Session<Descriptor>) -> Result<TransferId, TransferError>,
    ) -> Result<Vec<u8>, RemoteError> {
        let mut inner = self.lock();
        let id = start(&mut inner.session).map_err(remote)?;
        self.flush(&mut inner);
        if inner.polling && inner.awaited_since.is_none() {
            // The polling thread does not know of a deadline yet.
            self.transport.wake();
        }
        loop {
            if let Some(result) = inner.ended.remove(&id) {
                return result.map_err(remote);
            }
            inner = self.poll_once(inner);
        }
    }
}

fn remote(error: TransferError) -> RemoteError {
    match error {
        TransferError::Gone => RemoteError::Disconnected,
        error => RemoteError::Refused(error.errno()),
    }
}

impl Remote for SharedSession {
    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), RemoteError> {
        if into.is_empty() {
            return Ok(());
        }
        let data = self.transfer(|session| session.dma_read(iova, into.len()))?;
        self.counts.transferred(data.len());
        if data.len() != into.len() {
            return Err(RemoteError::Refused(Errno::EIO));
        }
        into.copy_from_slice(&data);
        Ok(())
    }

    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), RemoteError> {
        if from.is_empty() {
            return Ok(());
        }
        self.transfer(|session| session.dma_write(iova, from))?;
        self.counts.transferred(from.len());
        Ok(())
    }
}

impl OnDrained for SharedSession {
    fn on_drained(&self) {
        // Pairs with the swap in `next`: the thread that sees it sees the access as ended.
        self.drained.store(true, Ordering::Release);
        self.transport.wake();
    }
}
