//! Messages to an I/O thread, and eventfds that wake it, which are only written when it sleeps.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Errno, Iova};
use prereg_vfio_user::client::Eventfd;

use crate::engine::admin::QueueOp;
use crate::engine::shadow::ShadowBuffers;

/// A message to an I/O thread.
#[derive(Debug)]
pub(super) enum IoMsg {
    /// Execute this; the result is sent back.
    Op(QueueOp),
    /// Flush all disks; acknowledged.
    Flush,
    /// Drop all queues; acknowledged when no request is in flight.
    Halt,
    /// Release holds in this range; 0 bytes are all memory.
    Release(Iova, u64),
    /// The memory page size (CC.MPS).
    PageShift(u32),
    /// Use these shadow doorbells, as the other threads do already.
    Shadow(ShadowBuffers),
    /// End.
    Stop,
}

/// The channel of an I/O thread.
#[derive(Debug)]
pub(super) struct IoChannel {
    messages: Mutex<Vec<IoMsg>>,
    any: AtomicBool,
    /// 0: awake. Otherwise the eventfd that the thread sleeps on, counted from 1.
    asleep: AtomicUsize,
    /// One for each disk: each disk queue polls one of its own.
    kicks: Vec<Eventfd>,
}

/// Messages that may wait before ranges to release are merged.
const MAX_MESSAGES: usize = 64;

impl IoChannel {
    /// For an I/O thread with this many disks.
    ///
    /// # Errors
    /// The system's error number.
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

    /// The eventfds, for the disk queues.
    ///
    /// # Errors
    /// The system's error number.
    pub(super) fn kicks(&self) -> Result<Vec<Arc<OwnedFd>>, Errno> {
        let another =
            |kick: &Eventfd| kick.as_fd().try_clone_to_owned().map(Arc::new).map_err(|_| Errno::ENFILE);
        self.kicks.iter().map(another).collect()
    }

    /// Sends a message.
    pub(super) fn send(&self, message: IoMsg) {
        let mut messages = self.messages();
        if matches!(message, IoMsg::Release(..)) && messages.len() >= MAX_MESSAGES {
            // The list stays short if a client unmaps faster than messages are received: all memory is released.
            let everything = IoMsg::Release(Iova::new(0), 0);
            if !messages.iter().any(|waiting| matches!(waiting, IoMsg::Release(_, 0))) {
                messages.push(everything);
            }
        } else {
            messages.push(message);
        }
        // Release: pairs with `take`; it only saves taking the lock there.
        self.any.store(true, Ordering::Release);
        drop(messages);
        self.wake();
    }

    /// Takes all messages.
    pub(super) fn take(&self) -> Vec<IoMsg> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut messages = self.messages();
        self.any.store(false, Ordering::Relaxed);
        std::mem::take(&mut messages)
    }

    /// Whether there is no message.
    pub(super) fn is_empty(&self) -> bool {
        !self.any.load(Ordering::Acquire)
    }

    /// Wakes the thread to look for work.
    pub(super) fn wake(&self) {
        // The thread stores that it sleeps, fences, and looks once more; here the work was stored, then a fence, and the load
        // of whether it sleeps.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) != 0 {
            let at = self.asleep.swap(0, Ordering::Relaxed);
            if let Some(kick) = at.checked_sub(1).and_then(|at| self.kicks.get(at)) {
                // A counter at its limit wakes too.
                kick.add();
            }
        }
    }

    /// Whether the thread sleeps, approximately.
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) != 0
    }

    /// The thread is about to sleep on eventfd `at`; it must look for work once more after this.
    pub(super) fn prepare_sleep(&self, at: usize) {
        self.asleep.store(at + 1, Ordering::Relaxed);
        // See `wake`.
        fence(Ordering::SeqCst);
    }

    /// The thread is awake.
    pub(super) fn set_awake(&self) {
        self.asleep.store(0, Ordering::Relaxed);
    }

    fn messages(&self) -> MutexGuard<'_, Vec<IoMsg>> {
        // The list is valid after every statement.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
