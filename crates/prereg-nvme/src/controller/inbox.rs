//! How the clerk is told things and woken.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prereg::Iova;

use crate::engine::event::Event;
use crate::engine::registers::AdminQueues;
use crate::spec::Status;

/// What the clerk is told.
#[derive(Debug)]
pub(super) enum ToClerk {
    /// Begin to work; the configuration.
    Enable(AdminQueues, u32),
    /// Stop, and forget everything.
    Disable,
    /// Make everything durable.
    Shutdown,
    /// As `Disable`, and put the registers back too; answered.
    Reset(Arc<Answer>),
    /// As `Disable`, then end, and all workers too.
    Stop,
    /// Give holds in this range back; 0 bytes are everything.
    GiveBack(Iova, u64),
    /// Tell the guest.
    Event(Event),
    /// A namespace is not what it was.
    NamespaceChanged(u32),
    /// A worker's answer to an order.
    OrderDone(Result<u32, Status>),
    /// A worker's answer to `Flush`.
    Flushed,
    /// A worker's answer to `Halt`.
    Halted,
}

/// The clerk's inbox.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    messages: VecDeque<ToClerk>,
    woken: bool,
}

/// Messages that may wait before those that can be left out are.
const MANY: usize = 64;

impl Inbox {
    /// Leaves a message.
    pub(super) fn post(&self, message: ToClerk) {
        let mut inner = self.lock();
        let is_crowded = inner.messages.len() >= MANY;
        match message {
            // Events of one kind are told once anyhow; a guest that makes thousands loses nothing.
            ToClerk::Event(_) if is_crowded => {}
            ToClerk::GiveBack(..) if is_crowded => {
                if !inner.messages.iter().any(|waiting| matches!(waiting, ToClerk::GiveBack(_, 0))) {
                    inner.messages.push_back(ToClerk::GiveBack(Iova::new(0), 0));
                }
            }
            message => inner.messages.push_back(message),
        }
        inner.woken = true;
        drop(inner);
        self.changed.notify_one();
    }

    /// Something was left somewhere that the clerk should look at.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_one();
    }

    /// Takes all messages; what is left from here on wakes.
    pub(super) fn take(&self) -> VecDeque<ToClerk> {
        let mut inner = self.lock();
        inner.woken = false;
        std::mem::take(&mut inner.messages)
    }

    /// Waits until something was left since [`take`](Self::take), at most so long.
    pub(super) fn wait(&self, limit: Option<Duration>) {
        let inner = self.lock();
        let asleep = |inner: &mut Inner| !inner.woken;
        match limit {
            Some(limit) => drop(self.changed.wait_timeout_while(inner, limit, asleep)),
            None => drop(self.changed.wait_while(inner, asleep)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every state of its two fields is a good one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that one thread waits for and another one gives.
#[derive(Debug, Default)]
pub(super) struct Answer {
    given: Mutex<bool>,
    changed: Condvar,
}

impl Answer {
    pub(super) fn give(&self) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(super) fn wait(&self) {
        let given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(given, |given| !*given));
    }
}
