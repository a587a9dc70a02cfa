//! The admin thread's channel: the controller state to reach, and messages.
//!
//! A guest may write registers without waiting for replies, faster than they are served. So its requests are kept as a target
//! state and not as a list: a million enables and disables are performed once. Stop and reset come before everything else.
//! Messages are bounded: each kind of event and each namespace waits once, ranges to release are merged above a limit, and I/O
//! threads reply only to operations.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prereg::Iova;

use crate::engine::async_event::AsyncEvent;
use crate::engine::registers::AdminQueueConfig;
use crate::spec::Status;

/// A message to the admin thread.
#[derive(Debug)]
pub(super) enum AdminMsg {
    /// Enable the controller; the value of CC.
    Enable(AdminQueueConfig, u32),
    /// Disable it and reset all state.
    Disable,
    /// Flush all disks.
    Shutdown,
    /// As `Disable`, and reset the registers; acknowledged.
    Reset(Arc<ResetAck>),
    /// As `Disable`, then end all threads.
    Stop,
    /// A message that does not change the controller's state.
    Message(Message),
}

/// A message that does not change the controller's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// Release holds in this range; 0 bytes are all memory.
    Release(Iova, u64),
    /// Report an event to the guest.
    AsyncEvent(AsyncEvent),
    /// Report that a namespace changed.
    NamespaceChanged(u32),
    /// An I/O thread's result of an operation.
    OpDone(Result<u32, Status>),
    /// An I/O thread's reply to `Flush`.
    Flushed,
    /// An I/O thread's reply to `Halt`, by its number.
    Halted(usize),
    /// An I/O thread panicked, by its number: it has dropped its queues and holds, and sends no more replies.
    IoThreadPanicked(usize),
}

/// The next change of state.
#[derive(Debug)]
pub(super) enum Change {
    Enable(AdminQueueConfig, u32),
    Disable,
    Shutdown,
    Reset(ResetAcks),
    Stop,
}

/// The admin thread's channel.
#[derive(Debug, Default)]
pub(super) struct AdminChannel {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    target: TargetState,
    messages: VecDeque<Message>,
    /// Ranges to release among the messages.
    ranges: usize,
    woken: bool,
}

/// The state to reach, by the steps that lead there: stop or reset, disable, enable, shut down.
#[derive(Debug, Default)]
struct TargetState {
    stop: bool,
    reset: Vec<Arc<ResetAck>>,
    disable: bool,
    enable: Option<(AdminQueueConfig, u32)>,
    shutdown: bool,
    /// Resets are acknowledged at once: the admin thread panicked.
    abandoned: bool,
}

/// Ranges to release that may wait; above this, all memory is released.
const MAX_RANGES: usize = 64;

impl TargetState {
    /// Drops everything that was asked for before.
    fn clear(&mut self) {
        (self.disable, self.enable, self.shutdown) = (false, None, false);
    }
}

impl Inner {
    fn push(&mut self, message: Message) {
        match message {
            Message::Release(..) if self.ranges > MAX_RANGES => {}
            Message::Release(..) if self.ranges == MAX_RANGES => {
                self.ranges += 1;
                self.messages.push_back(Message::Release(Iova::new(0), 0));
            }
            Message::Release(..) => {
                self.ranges += 1;
                self.messages.push_back(message);
            }
            // Kept once, however often it happens before it is received.
            Message::AsyncEvent(_) | Message::NamespaceChanged(_) if self.messages.contains(&message) => {}
            message => self.messages.push_back(message),
        }
    }
}

impl AdminChannel {
    /// Sends a message.
    pub(super) fn send(&self, message: AdminMsg) {
        let mut inner = self.lock();
        let target = &mut inner.target;
        match message {
            AdminMsg::Stop => {
                target.clear();
                target.stop = true;
            }
            AdminMsg::Reset(ack) if target.abandoned => ack.complete(),
            AdminMsg::Reset(ack) => {
                target.clear();
                target.reset.push(ack);
            }
            AdminMsg::Disable => {
                target.clear();
                target.disable = true;
            }
            AdminMsg::Enable(queues, cc) => target.enable = Some((queues, cc)),
            AdminMsg::Shutdown => target.shutdown = true,
            AdminMsg::Message(message) => inner.push(message),
        }
        inner.woken = true;
        drop(inner);
        self.changed.notify_one();
    }

    /// Sends a message that does not change the controller's state.
    pub(super) fn send_message(&self, message: Message) {
        self.send(AdminMsg::Message(message));
    }

    /// The admin thread panicked: completes all waiting and later resets.
    pub(super) fn abandon(&self) {
        let mut inner = self.lock();
        inner.target.abandoned = true;
        inner.target.reset.drain(..).for_each(|ack| ack.complete());
    }

    /// Wakes the admin thread to look for work.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_one();
    }

    /// Takes all messages; what is sent from here on wakes.
    pub(super) fn take(&self) -> VecDeque<Message> {
        let mut inner = self.lock();
        inner.woken = false;
        inner.ranges = 0;
        std::mem::take(&mut inner.messages)
    }

    /// The next step to the target state. Enable and shutdown are only returned if `may_begin`; the others interrupt whatever
    /// the admin thread does.
    pub(super) fn next_change(&self, may_begin: bool) -> Option<Change> {
        let target = &mut self.lock().target;
        if std::mem::take(&mut target.stop) {
            return Some(Change::Stop);
        }
        if !target.reset.is_empty() {
            return Some(Change::Reset(ResetAcks(std::mem::take(&mut target.reset))));
        }
        if std::mem::take(&mut target.disable) {
            return Some(Change::Disable);
        }
        if !may_begin {
            return None;
        }
        if let Some((queues, cc)) = target.enable.take() {
            return Some(Change::Enable(queues, cc));
        }
        std::mem::take(&mut target.shutdown).then_some(Change::Shutdown)
    }

    /// Waits until something was sent since [`take`](Self::take), at most for `limit`.
    pub(super) fn wait(&self, limit: Option<Duration>) {
        let inner = self.lock();
        let asleep = |inner: &mut Inner| !inner.woken;
        match limit {
            Some(limit) => drop(self.changed.wait_timeout_while(inner, limit, asleep)),
            None => drop(self.changed.wait_while(inner, asleep)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every state of its fields is valid.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An acknowledgement that one thread waits for.
#[derive(Debug, Default)]
pub(super) struct ResetAck {
    completed: Mutex<bool>,
    changed: Condvar,
}

/// Acknowledgements that are completed when this is dropped, also by a panic.
#[derive(Debug)]
pub(super) struct ResetAcks(Vec<Arc<ResetAck>>);

impl Drop for ResetAcks {
    fn drop(&mut self) {
        self.0.iter().for_each(|ack| ack.complete());
    }
}

impl ResetAck {
    pub(super) fn complete(&self) {
        *self.completed.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub(super) fn wait(&self) {
        let completed = self.completed.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(completed, |completed| !*completed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUES: AdminQueueConfig = AdminQueueConfig {
        submission: Iova::new(0x1000),
        submission_entries: 2,
        completion: Iova::new(0x2000),
        completion_entries: 2,
    };

    fn changes(admin_channel: &AdminChannel) -> Vec<String> {
        let name = |change| match change {
            Change::Enable(_, cc) => format!("enable {cc}"),
            Change::Disable => "disable".to_owned(),
            Change::Shutdown => "shutdown".to_owned(),
            Change::Reset(acks) => format!("reset {}", acks.0.len()),
            Change::Stop => "stop".to_owned(),
        };
        std::iter::from_fn(|| admin_channel.next_change(true)).map(name).collect()
    }

    #[test]
    fn a_million_changes_of_state_are_the_steps_to_the_last_one() {
        let admin_channel = AdminChannel::default();
        for round in 0..1_000_000 {
            admin_channel.send(AdminMsg::Disable);
            admin_channel.send(AdminMsg::Enable(QUEUES, round));
            admin_channel.send(AdminMsg::Shutdown);
        }
        assert_eq!(changes(&admin_channel), ["disable", "enable 999999", "shutdown"]);
        admin_channel.send(AdminMsg::Enable(QUEUES, 1));
        admin_channel.send(AdminMsg::Shutdown);
        admin_channel.send(AdminMsg::Disable);
        assert_eq!(changes(&admin_channel), ["disable"], "nothing of before is left");
    }

    #[test]
    fn stop_and_reset_overtake() {
        let admin_channel = AdminChannel::default();
        admin_channel.send(AdminMsg::Disable);
        admin_channel.send(AdminMsg::Enable(QUEUES, 1));
        admin_channel.send(AdminMsg::Reset(Arc::default()));
        assert_eq!(changes(&admin_channel), ["reset 1"]);
        admin_channel.send(AdminMsg::Disable);
        admin_channel.send(AdminMsg::Reset(Arc::default()));
        admin_channel.send(AdminMsg::Stop);
        assert_eq!(changes(&admin_channel), ["stop", "reset 1"]);
    }

    #[test]
    fn nothing_begins_while_something_else_is_under_way() {
        let admin_channel = AdminChannel::default();
        admin_channel.send(AdminMsg::Enable(QUEUES, 1));
        assert!(admin_channel.next_change(false).is_none());
        admin_channel.send(AdminMsg::Disable);
        assert!(matches!(admin_channel.next_change(false), Some(Change::Disable)));
    }

    #[test]
    fn a_million_messages_of_every_kind_are_few() {
        let admin_channel = AdminChannel::default();
        for round in 0..1_000_000u64 {
            admin_channel.send_message(Message::AsyncEvent(AsyncEvent::InvalidDoorbellRegister));
            admin_channel.send_message(Message::AsyncEvent(AsyncEvent::InvalidDoorbellValue));
            admin_channel.send_message(Message::NamespaceChanged((round % 4) as u32));
            admin_channel.send_message(Message::Release(Iova::new(round << 12), 0x1000));
        }
        let messages = admin_channel.take();
        assert_eq!(messages.len(), 2 + 4 + MAX_RANGES + 1);
        assert!(messages.contains(&Message::Release(Iova::new(0), 0)), "everything, beyond the first");
        admin_channel.send_message(Message::Release(Iova::new(7), 1));
        assert_eq!(admin_channel.take(), [Message::Release(Iova::new(7), 1)]);
    }
}
