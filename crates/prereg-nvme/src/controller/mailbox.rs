//! How a worker is told things and woken: messages, and an eventfd that is rung only when the worker sleeps.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Errno, Iova};
use prereg_vfio_user::client::Eventfd;

use crate::engine::admin::Order;
use crate::engine::shadow::ShadowBuffers;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum ToWorker {
    /// Carry this out; answered.
    Order(Order),
    /// Make everything durable; answered.
    Flush,
    /// Forget all queues; answered when nothing is under way any more.
    Halt,
    /// Give holds in this range back; 0 bytes are everything.
    GiveBack(Iova, u64),
    /// The memory page that the guest chose.
    PageShift(u32),
    /// Use these shadow doorbells, as everybody does already.
    Shadow(ShadowBuffers),
    /// End.
    Stop,
}

/// A worker's mailbox.
#[derive(Debug)]
pub(super) struct Mailbox {
    messages: Mutex<Vec<ToWorker>>,
    any: AtomicBool,
    /// 0: awake. Otherwise the eventfd that the worker sleeps on, counted from 1.
    asleep: AtomicUsize,
    /// One for each disk, because each disk's queue listens to one of its own.
    kicks: Vec<Eventfd>,
}

/// Messages that may wait before those that only give holds back are put together.
const MANY: usize = 64;

impl Mailbox {
    /// For a worker with so many disks.
    ///
    /// # Errors
    /// The system's number.
    pub(super) fn new(disks: usize) -> Result<Self, Errno> {
        let kicks =
            (0..disks).map(|_| Eventfd::new()).collect::<Result<_, _>>().map_err(|error| error.errno())?;
        Ok(Self {
            messages: Mutex::default(),
            any: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            kicks,
        })
    }

    /// The eventfds, for those who listen to them.
    ///
    /// # Errors
    /// The system's number.
    pub(super) fn kicks(&self) -> Result<Vec<Arc<OwnedFd>>, Errno> {
        let another =
            |kick: &Eventfd| kick.as_fd().try_clone_to_owned().map(Arc::new).map_err(|_| Errno::ENFILE);
        self.kicks.iter().map(another).collect()
    }

    /// Leaves a message.
    pub(super) fn post(&self, message: ToWorker) {
        let mut messages = self.messages();
        if matches!(message, ToWorker::GiveBack(..)) && messages.len() >= MANY {
            // A client that unmaps faster than anybody looks makes no longer list: everything is given back.
            let everything = ToWorker::GiveBack(Iova::new(0), 0);
            if !messages.iter().any(|waiting| matches!(waiting, ToWorker::GiveBack(_, 0))) {
                messages.push(everything);
            }
        } else {
            messages.push(message);
        }
        // Release: pairs with `take`; the lock would do, this only spares it there.
        self.any.store(true, Ordering::Release);
        drop(messages);
        self.wake();
    }

    /// Takes all messages.
    pub(super) fn take(&self) -> Vec<ToWorker> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut messages = self.messages();
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut messages)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Something was left somewhere that the worker should look at.
    pub(super) fn wake(&self) {
        // The worker says that it sleeps, fences, and looks once more; here it is left, fenced, and asked whether it sleeps.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) != 0 {
            let at = self.asleep.swap(0, Ordering::Relaxed);
            if let Some(kick) = at.checked_sub(1).and_then(|at| self.kicks.get(at)) {
                // A count that is full rings as well as one more.
                kick.add();
            }
        }
    }

    /// Whether the worker sleeps, as far as can be told.
    pub(super) fn sleeps(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) != 0
    }

    /// The worker is about to sleep on eventfd `at`; it must look once more after this.
    pub(super) fn doze(&self, at: usize) {
        self.asleep.store(at + 1, Ordering::Relaxed);
        // See `wake`.
        fence(Ordering::SeqCst);
    }

    /// The worker is awake.
    pub(super) fn rise(&self) {
        self.asleep.store(0, Ordering::Relaxed);
    }

    fn messages(&self) -> MutexGuard<'_, Vec<ToWorker>> {
        // The list is whole between any two statements.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
