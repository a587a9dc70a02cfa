//! The admin thread's admin_channel: the controller state to reach, and messages.
//!
//! A guest may write registers without waiting for replies, faster than they are served. So its requests are kept as a state to
//! reach and not as a list: disabling and enabling the controller a million times is done once. Stop and reset overtake
//! everything else. The messages are bounded: each kind of event and each namespace waits once, ranges to release are merged
//! above a limit, and io_threads reply only to orders.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prereg::Iova;

use crate::engine::async_event::AsyncEvent;
use crate::engine::registers::AdminQueueConfig;
use crate::spec::Status;

/// What the admin_thread is told.
#[derive(Debug)]
pub(super) enum AdminMsg {
    /// Begin to work; the configuration.
    Enable(AdminQueueConfig, u32),
    /// Stop, and forget everything.
    Disable,
    /// Make everything durable.
    Shutdown,
    /// As `Disable`, and put the registers back too; answered.
    Reset(Arc<ResetAck>),
    /// As `Disable`, then end, and all io_threads too.
    Stop,
    /// What does not change the state.
    Message(Message),
}

/// What does not change the controller's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// Give holds in this range back; 0 bytes are everything.
    Release(Iova, u64),
    /// Tell the guest.
    AsyncEvent(AsyncEvent),
    /// A namespace is not what it was.
    NamespaceChanged(u32),
    /// A io_thread's ack to an op.
    OpDone(Result<u32, Status>),
    /// A io_thread's ack to `Flush`.
    Flushed,
    /// A io_thread's ack to `Halt`, by its number.
    Halted(usize),
    /// A io_thread panicked, by its number: it has dropped its queues and holds, and acks nothing more.
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

/// The admin_thread's admin_channel.
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

/// The state to reach, by the steps that lead there: stop or reset, off, on, shut down.
#[derive(Debug, Default)]
struct TargetState {
    stop: bool,
    reset: Vec<Arc<ResetAck>>,
    disable: bool,
    enable: Option<(AdminQueueConfig, u32)>,
    shutdown: bool,
    /// Resets are answered at once: the thread that performs them has panicked.
    abandoned: bool,
}

/// Ranges that may wait to be released; with more, all memory is released.
const MAX_RANGES: usize = 64;

impl TargetState {
    /// Off, whatever was target before.
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
            // Kept once, however often it happens before it is taken.
            Message::AsyncEvent(_) | Message::NamespaceChanged(_) if self.messages.contains(&message) => {}
            message => self.messages.push_back(message),
        }
    }
}

impl AdminChannel {
    /// Leaves something.
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

    /// Leaves a message that does not change the state.
    pub(super) fn send_message(&self, message: Message) {
        self.send(AdminMsg::Message(message));
    }

    /// The admin_thread panicked: no caller waits for it any more.
    pub(super) fn abandon(&self) {
        let mut inner = self.lock();
        inner.target.abandoned = true;
        inner.target.reset.drain(..).for_each(|ack| ack.complete());
    }

    /// Something was left somewhere that the admin_thread should look at.
    pub(super) fn wake(&self) {
        self.lock().woken = true;
        self.changed.notify_one();
    }

    /// Takes all messages; what is left from here on wakes.
    pub(super) fn take(&self) -> VecDeque<Message> {
        let mut inner = self.lock();
        inner.woken = false;
        inner.ranges = 0;
        std::mem::take(&mut inner.messages)
    }

    /// Takes the next step to the state that is target. Beginning to work and shutting down are for a admin_thread that `may_begin`
    /// something; the others end whatever it does.
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
        // Every state of its fields is a good one.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something that one thread waits for and another one gives.
#[derive(Debug, Default)]
pub(super) struct ResetAck {
    completed: Mutex<bool>,
    changed: Condvar,
}

/// ResetAcks that are completed when this is dropped, also by a panic.
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
