//! A session that several threads take part in: the client's own, and those of the device that wait for its memory.
//!
//! Whoever waits takes his turn at the transport: one thread at a time polls, receives, and hands what came to those it is
//! for; the others sleep until a turn is over. So memory that only the client can reach is had from any thread, also from
//! inside a call to the device while the client's own thread is busy there, and nobody waits for a thread that waits for him.
//!
//! One lock keeps the session. It is held while bytes are taken and given, which never waits, and never while a device is
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
use super::interrupts::Interrupts;
use super::state::Ending;
use super::transport::{Interest, Ready, Transport};
use crate::action::Action;
use crate::answer::{Introduced, Kind, Token};
use crate::capabilities::Terms;
use crate::refusal::SessionError;
use crate::session::Session;
use crate::settings::Settings;
use crate::transfer::{TransferError, TransferId};
use crate::wire::Header;

/// Bytes that are received at a time.
const RECEIVED: usize = 64 << 10;
/// How long a client that is let go of may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// What the client's thread is to do.
pub(crate) enum Next {
    /// Perform this.
    Action(Action<Descriptor>),
    /// See which unmaps are over.
    OnDrained,
    /// Let go of the client.
    Over(Ending),
}

/// A client's session, for all threads.
pub(crate) struct Conversation {
    transport: Box<dyn Transport>,
    patience: Option<Duration>,
    counts: Arc<Counts>,
    interrupts: OnceLock<Interrupts>,
    /// A mapping's last access has left. Written before the transport is woken and read after a wait, so the wake's own
    /// ordering is enough.
    drained: AtomicBool,
    inner: Mutex<Inner>,
    turned: Condvar,
}

struct Inner {
    session: Session<Descriptor>,
    received: Received,
    pending: VecDeque<Action<Descriptor>>,
    /// Transfers that are over, for the threads that asked.
    ended: BTreeMap<TransferId, Result<Vec<u8>, TransferError>>,
    /// Somebody is at the transport.
    reading: bool,
    /// Threads that sleep until he is done.
    sleepers: u32,
    /// Since when the client owes the rest of a message, and how many it had sent by then.
    owing: Option<(Instant, u64)>,
    over: Option<Ending>,
}

/// What one receive brought, until the session takes it: a client that asks for much at once is not listened to for a while,
/// in the middle of what it said if need be.
struct Received {
    buffer: Vec<u8>,
    /// Where what is left begins and ends.
    rest: Range<usize>,
    /// They belong to the last byte of it.
    descriptors: Vec<OwnedFd>,
    truncated: bool,
}

impl Received {
    fn new() -> Self {
        Self { buffer: vec![0; RECEIVED], rest: 0..0, descriptors: Vec::new(), truncated: false }
    }

    /// The next message, if it is all there, or else as much of one as there is; the descriptors with the last byte, and whether some of
    /// them were lost.
    fn take(&mut self, session: &Session<Descriptor>) -> (&[u8], Vec<OwnedFd>, bool) {
        let rest = self.buffer.get(self.rest.clone()).unwrap_or_default();
        let bytes = match rest.first_chunk() {
            // A size that no message has is the session's to judge.
            Some(head) if session.under_way().is_none() => Header::read(head).size.max(1) as usize,
            _ => session.wanted(),
        };
        let message = rest.get(..bytes).unwrap_or(rest);
        self.rest.start += message.len();
        if self.rest.is_empty() {
            (message, std::mem::take(&mut self.descriptors), self.truncated)
        } else {
            (message, Vec::new(), false)
        }
    }
}

impl Conversation {
    pub(crate) fn new(
        transport: Box<dyn Transport>,
        settings: Settings,
        patience: Option<Duration>,
        counts: Arc<Counts>,
    ) -> Self {
        let inner = Inner {
            session: Session::new(settings),
            received: Received::new(),
            pending: VecDeque::new(),
            ended: BTreeMap::new(),
            reading: false,
            sleepers: 0,
            owing: None,
            over: None,
        };
        Self {
            transport,
            patience,
            counts,
            interrupts: OnceLock::new(),
            drained: AtomicBool::new(false),
            inner: Mutex::new(inner),
            turned: Condvar::new(),
        }
    }

    /// A panic elsewhere leaves the session whole: nothing of a device's runs under the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The interrupts whose eventfds are waited for too; set once.
    pub(crate) fn interrupts(&self, interrupts: Interrupts) {
        // Only one is ever made.
        let _ = self.interrupts.set(interrupts);
    }

    /// Waits for something to do. For the client's own thread.
    pub(crate) fn next(&self) -> Next {
        let mut inner = self.lock();
        loop {
            if inner.over == Some(Ending::Stopped) {
                return Next::Over(Ending::Stopped);
            }
            if let Some(action) = inner.pending.pop_front() {
                // What may take long is not made to hold up answers that are there.
                if !matches!(action, Action::MapMemory { .. } | Action::UnmapMemory { .. }) {
                    self.flush(&mut inner);
                }
                return Next::Action(action);
            }
            if self.drained.load(Ordering::Relaxed) && self.drained.swap(false, Ordering::Acquire) {
                return Next::OnDrained;
            }
            if let Some(ending) = inner.over {
                return Next::Over(ending);
            }
            self.flush(&mut inner);
            if inner.over.is_none() {
                inner = self.turn(inner);
            }
        }
    }

    /// Answers a request.
    pub(crate) fn reply<K: Kind<Descriptor>>(&self, token: Token<K>, answer: Result<K::Answer<'_>, Errno>) {
        self.lock().session.reply(token, answer);
    }

    /// Answers a VERSION that there is no place for; nothing more is listened to.
    pub(crate) fn turn_away(&self, token: Token<Introduced>, errno: Errno) {
        let mut inner = self.lock();
        inner.session.reply(token, Err(errno));
        inner.over.get_or_insert(Ending::Broken(SessionError::TurnedAway { errno }));
    }

    /// What was agreed on.
    pub(crate) fn terms(&self) -> Option<Terms> {
        self.lock().session.terms().copied()
    }

    /// Stops, whatever is under way: transfers fail, nothing more is performed, sent or answered.
    pub(crate) fn stop(&self) {
        let mut inner = self.lock();
        inner.over = Some(Ending::Stopped);
        self.close(&mut inner);
        drop(inner);
        self.transport.wake();
    }

    /// Lets go of a client that has not introduced itself.
    pub(crate) fn cut(&self) {
        let mut inner = self.lock();
        inner.over.get_or_insert(Ending::Stalled);
        self.close(&mut inner);
        drop(inner);
        self.transport.wake();
    }

    /// Lets go of the client, after it was told what is to be told and had a moment to read it.
    pub(crate) fn farewell(&self) {
        let deadline = Instant::now() + FAREWELL;
        let mut inner = self.lock();
        loop {
            self.flush(&mut inner);
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.session.unsent().is_none() || left.is_zero() || inner.over == Some(Ending::Stopped) {
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
        inner.over.get_or_insert(Ending::Gone);
        self.close(&mut inner);
        drop(inner);
        self.transport.shut();
    }

    /// Waits for what the transport brings, or until somebody else's wait is over.
    fn turn<'a>(&'a self, mut inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        if inner.reading {
            inner.sleepers += 1;
            inner = self.turned.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.sleepers -= 1;
            return inner;
        }
        if !inner.received.rest.is_empty() && inner.session.wants_bytes() {
            self.feed(&mut inner);
            return inner;
        }
        let readable = inner.session.wants_bytes();
        let writable = inner.session.unsent().is_some();
        let time = self.time_left(&mut inner, readable);
        inner.reading = true;
        drop(inner);
        let switches =
            self.interrupts.get().and_then(|interrupts| Some((interrupts, interrupts.switches()?)));
        let eventfd = switches.as_ref().map(|(_, switches)| switches.as_fd());
        let ready = self.transport.wait(Interest { readable, writable, eventfd, time });
        if let (Ok(Ready { eventfd: true, .. }), Some((interrupts, switches))) = (&ready, &switches) {
            interrupts.switched(switches);
        }
        let mut inner = self.lock();
        inner.reading = false;
        match ready {
            Err(errno) => self.hang_up(&mut inner, Ending::Lost(errno)),
            Ok(ready) if ready.readable => self.receive(&mut inner),
            Ok(ready) if ready.over => self.hang_up(&mut inner, Ending::Gone),
            Ok(_) if self.time_left(&mut inner, readable) == Some(Duration::ZERO) => {
                self.hang_up(&mut inner, Ending::Stalled);
            }
            Ok(_) => {}
        }
        if writable {
            self.flush(&mut inner);
        }
        if inner.sleepers > 0 {
            self.turned.notify_all();
        }
        inner
    }

    /// How long the client may still owe a message; `None` when it owes none, or is not listened to.
    fn time_left(&self, inner: &mut Inner, readable: bool) -> Option<Duration> {
        let patience = self.patience?;
        let silent = inner.session.terms().is_none();
        if !silent && (!readable || inner.session.under_way().is_none()) {
            inner.owing = None;
            return None;
        }
        let messages = inner.session.messages();
        let since = match inner.owing {
            Some((since, sent)) if silent || sent == messages => since,
            _ => Instant::now(),
        };
        inner.owing = Some((since, messages));
        Some(patience.saturating_sub(since.elapsed()))
    }

    fn receive(&self, inner: &mut Inner) {
        let Received { buffer, rest, descriptors, truncated } = &mut inner.received;
        match self.transport.receive(buffer, descriptors) {
            Ok(received) if received.bytes == 0 => self.hang_up(inner, Ending::Gone),
            Ok(received) => {
                (*rest, *truncated) = (0..received.bytes, received.truncated);
                self.feed(inner);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => self.hang_up(inner, Ending::Lost(errno)),
        }
    }

    /// Gives the session what was received, message by message, as long as it wants more.
    fn feed(&self, inner: &mut Inner) {
        while !inner.received.rest.is_empty() && inner.session.wants_bytes() {
            let Inner { session, received, .. } = &mut *inner;
            let (message, descriptors, truncated) = received.take(session);
            let descriptors = descriptors.into_iter().map(Descriptor::Own);
            let result = if truncated {
                session.receive_truncated(message, descriptors)
            } else {
                session.receive(message, descriptors)
            };
            if let Err(error) = result {
                inner.over.get_or_insert(Ending::Broken(error));
            }
        }
        self.route(inner);
    }

    /// Hands what the session asks for to whom it is for. Refusals are only counted: nobody may let them pile up.
    fn route(&self, inner: &mut Inner) {
        while let Some(action) = inner.session.next_action() {
            match action {
                Action::TransferEnded { transfer, result } => {
                    inner.ended.insert(transfer, result);
                }
                Action::Refused { command, refusal, .. } => self.counts.refused(command, refusal.name()),
                action => inner.pending.push_back(action),
            }
        }
    }

    /// Sends what goes.
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
                    if inner.reading {
                        // He does not wait for room yet.
                        self.transport.wake();
                    }
                    return;
                }
                Err(errno) => {
                    drop(descriptors);
                    return self.hang_up(inner, Ending::Lost(errno));
                }
            }
        }
    }

    /// The client is gone, or is to be.
    fn hang_up(&self, inner: &mut Inner, ending: Ending) {
        let closed = inner.session.close();
        let ending = match closed {
            Err(error) if ending == Ending::Gone => Ending::Broken(error),
            _ => ending,
        };
        inner.over.get_or_insert(ending);
        self.close(inner);
    }

    fn close(&self, inner: &mut Inner) {
        // Why the session is over is known to the caller.
        let _ = inner.session.close();
        self.route(inner);
        self.turned.notify_all();
    }

    /// Has the client move bytes, and waits until it has.
    fn transfer(
        &self,
        start: impl FnOnce(&mut Session<Descriptor>) -> Result<TransferId, TransferError>,
    ) -> Result<Vec<u8>, RemoteError> {
        let mut inner = self.lock();
        let id = start(&mut inner.session).map_err(remote)?;
        self.flush(&mut inner);
        loop {
            if let Some(result) = inner.ended.remove(&id) {
                return result.map_err(remote);
            }
            inner = self.turn(inner);
        }
    }
}

fn remote(error: TransferError) -> RemoteError {
    match error {
        TransferError::Gone => RemoteError::Disconnected,
        error => RemoteError::Refused(error.errno()),
    }
}

impl Remote for Conversation {
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

impl OnDrained for Conversation {
    fn on_drained(&self) {
        // Pairs with the swap in `next`: what left before is seen to have left.
        self.drained.store(true, Ordering::Release);
        self.transport.wake();
    }
}
