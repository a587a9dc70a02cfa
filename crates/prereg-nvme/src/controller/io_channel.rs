//! How a io_thread is told things and woken: messages, and an eventfd that is rung only when the io_thread is_asleep.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Errno, Iova};
use prereg_vfio_user::client::Eventfd;

use crate::engine::admin::QueueOp;
use crate::engine::shadow::ShadowBuffers;

/// What a io_thread is told.
#[derive(Debug)]
pub(super) enum IoMsg {
    /// Carry this out; answered.
    Op(QueueOp),
    /// Make everything durable; answered.
    Flush,
    /// Forget all queues; answered when nothing is under way any more.
    Halt,
    /// Give holds in this range back; 0 bytes are everything.
    Release(Iova, u64),
    /// The memory page that the guest chose.
    PageShift(u32),
    /// Use these shadow doorbells, as everybody does already.
    Shadow(ShadowBuffers),
    /// End.
    Stop,
}

/// A io_thread's io_channel.
#[derive(Debug)]
pub(super) struct IoChannel {
    messages: Mutex<Vec<IoMsg>>,
    any: AtomicBool,
    /// 0: awake. Otherwise the eventfd that the io_thread is_asleep on, counted from 1.
    asleep: AtomicUsize,
    /// One for each disk, because each disk's queue listens to one of its own.
    kicks: Vec<Eventfd>,
}

/// Messages that may wait before those that only give holds back are put together.
const MAX_MESSAGES: usize = 64;

impl IoChannel {
    /// For a io_thread with so many disks.
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

    /// The eventfds, for those who update_doorbell to them.
    ///
    /// # Errors
    /// The system's number.
    pub(super) fn kicks(&self) -> Result<Vec<Arc<OwnedFd>>, Errno> {
        let another =
            |kick: &Eventfd| kick.as_fd().try_clone_to_owned().map(Arc::new).map_err(|_| Errno::ENFILE);
        self.kicks.iter().map(another).collect()
    }

    /// Leaves a message.
    pub(super) fn send(&self, message: IoMsg) {
        let mut messages = self.messages();
        if matches!(message, IoMsg::Release(..)) && messages.len() >= MAX_MESSAGES {
            // A client that unmaps faster than anybody looks makes no longer list: everything is given back.
            let everything = IoMsg::Release(Iova::new(0), 0);
            if !messages.iter().any(|waiting| matches!(waiting, IoMsg::Release(_, 0))) {
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
    pub(super) fn take(&self) -> Vec<IoMsg> {
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

    /// Something was left somewhere that the io_thread should look at.
    pub(super) fn wake(&self) {
        // The io_thread says that it is_asleep, fences, and looks once more; here it is left, fenced, and asked whether it is_asleep.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) != 0 {
            let at = self.asleep.swap(0, Ordering::Relaxed);
            if let Some(kick) = at.checked_sub(1).and_then(|at| self.kicks.get(at)) {
                // A count that is full rings as well as one more.
                kick.add();
            }
        }
    }

    /// Whether the io_thread is_asleep, as far as can be told.
    pub(super) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed) != 0
    }

    /// The io_thread is about to sleep on eventfd `at`; it must look once more after this.
    pub(super) fn prepare_sleep(&self, at: usize) {
        self.asleep.store(at + 1, Ordering::Relaxed);
        // See `wake`.
        fence(Ordering::SeqCst);
    }

    /// The io_thread is awake.
    pub(super) fn set_awake(&self) {
        self.asleep.store(0, Ordering::Relaxed);
    }

    fn messages(&self) -> MutexGuard<'_, Vec<IoMsg>> {
        // The list is whole between any two statements.
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
