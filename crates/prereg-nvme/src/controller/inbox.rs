//! The admin thread's inbox: the controller state to reach, and messages.
//!
//! A guest may write registers without waiting for replies, faster than they are served. So its requests are kept as a state to
//! reach and not as a list: disabling and enabling the controller a million times is done once. Stop and reset overtake
//! everything else. The messages are bounded: each kind of event and each namespace waits once, ranges to release are merged
//! above a limit, and workers reply only to orders.

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
    /// What does not change the state.
    Message(Message),
}

/// What does not change the controller's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
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
    /// A worker's answer to `Halt`, by its number.
    Halted(usize),
    /// A worker panicked, by its number: it has dropped its queues and holds, and answers nothing more.
    WorkerPanicked(usize),
}

/// The next change of state.
#[derive(Debug)]
pub(super) enum Change {
    Enable(AdminQueues, u32),
    Disable,
    Shutdown,
    Reset(Answers),
    Stop,
}

/// The clerk's inbox.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: Wanted,
    messages: VecDeque<Message>,
    /// Ranges to release among the messages.
    ranges: usize,
    woken: bool,
}

/// The state to reach, by the steps that lead there: stop or reset, off, on, shut down.
#[derive(Debug, Default)]
struct Wanted {
    stop: bool,
    reset: Vec<Arc<Answer>>,
    disable: bool,
    enable: Option<(AdminQueues, u32)>,
    shutdown: bool,
    /// Resets are answered at once: the thread that performs them has panicked.
    abandoned: bool,
}

/// Ranges that may wait to be released; with more, all memory is released.
const MANY: usize = 64;

impl Wanted {
    /// Off, whatever was wanted before.
    fn clear(&mut self) {
        (self.disable, self.enable, self.shutdown) = (false, None, false);
    }
}

impl Inner {
    fn message(&mut self, message: Message) {
        match message {
            Message::GiveBack(..) if self.ranges > MANY => {}
            Message::GiveBack(..) if self.ranges == MANY => {
                self.ranges += 1;
                self.messages.push_back(Message::GiveBack(Iova::new(0), 0));
            }
            Message::GiveBack(..) => {
                self.ranges += 1;
                self.messages.push_back(message);
            }
            // Kept once, however often it happens before it is taken.
            Message::Event(_) | Message::NamespaceChanged(_) if self.messages.contains(&message) => {}
            message => self.messages.push_back(message),
        }
    }
}

impl Inbox {
    /// Leaves something.
    pub(super) fn post(&self, message: ToClerk) {
        let mut inner = self.lock();
        let wanted = &mut inner.wanted;
        match message {
            ToClerk::Stop => {
                wanted.clear();
                wanted.stop = true;
            }
            ToClerk::Reset(answer) if wanted.abandoned => answer.give(),
            ToClerk::Reset(answer) => {
                wanted.clear();
                wanted.reset.push(answer);
            }
            ToClerk::Disable => {
                wanted.clear();
                wanted.disable = true;
            }
            ToClerk::Enable(queues, cc) => wanted.enable = Some((queues, cc)),
            ToClerk::Shutdown => wanted.shutdown = true,
            ToClerk::Message(message) => inner.message(message),
        }
        inner.woken = true;
        drop(inner);
        self.changed.notify_one();
    }

    /// Leaves a message that does not change the state.
    pub(super) fn tell(&self, message: Message) {
        self.post(ToClerk::Message(message));
    }

    /// The clerk panicked: no caller waits for it any more.
    pub(super) fn abandon(&self) {
        let mut inner = self.lock();
        inner.wanted.abandoned = true;
        inner.wanted.reset.drain(..).for_each(|answer| answer.give());
    }

    /// Something was left somewhere that the clerk should look at.
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

    /// Takes the next step to the state that is wanted. Beginning to work and shutting down are for a clerk that `may_begin`
    /// something; the others end whatever it does.
    pub(super) fn next_change(&self, may_begin: bool) -> Option<Change> {
        let wanted = &mut self.lock().wanted;
        if std::mem::take(&mut wanted.stop) {
            return Some(Change::Stop);
        }
        if !wanted.reset.is_empty() {
            return Some(Change::Reset(Answers(std::mem::take(&mut wanted.reset))));
        }
        if std::mem::take(&mut wanted.disable) {
            return Some(Change::Disable);
        }
        if !may_begin {
            return None;
        }
        if let Some((queues, cc)) = wanted.enable.take() {
            return Some(Change::Enable(queues, cc));
        }
        std::mem::take(&mut wanted.shutdown).then_some(Change::Shutdown)
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
pub(super) struct Answer {
    given: Mutex<bool>,
    changed: Condvar,
}

/// Answers that are given when this is dropped, also by a panic.
#[derive(Debug)]
pub(super) struct Answers(Vec<Arc<Answer>>);

impl Drop for Answers {
    fn drop(&mut self) {
        self.0.iter().for_each(|answer| answer.give());
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUES: AdminQueues = AdminQueues {
        submission: Iova::new(0x1000),
        submission_entries: 2,
        completion: Iova::new(0x2000),
        completion_entries: 2,
    };

    fn changes(inbox: &Inbox) -> Vec<String> {
        let name = |change| match change {
            Change::Enable(_, cc) => format!("enable {cc}"),
            Change::Disable => "disable".to_owned(),
            Change::Shutdown => "shutdown".to_owned(),
            Change::Reset(answers) => format!("reset {}", answers.0.len()),
            Change::Stop => "stop".to_owned(),
        };
        std::iter::from_fn(|| inbox.next_change(true)).map(name).collect()
    }

    #[test]
    fn a_million_changes_of_state_are_the_steps_to_the_last_one() {
        let inbox = Inbox::default();
        for round in 0..1_000_000 {
            inbox.post(ToClerk::Disable);
            inbox.post(ToClerk::Enable(QUEUES, round));
            inbox.post(ToClerk::Shutdown);
        }
        assert_eq!(changes(&inbox), ["disable", "enable 999999", "shutdown"]);
        inbox.post(ToClerk::Enable(QUEUES, 1));
        inbox.post(ToClerk::Shutdown);
        inbox.post(ToClerk::Disable);
        assert_eq!(changes(&inbox), ["disable"], "nothing of before is left");
    }

    #[test]
    fn stop_and_reset_overtake() {
        let inbox = Inbox::default();
        inbox.post(ToClerk::Disable);
        inbox.post(ToClerk::Enable(QUEUES, 1));
        inbox.post(ToClerk::Reset(Arc::default()));
        assert_eq!(changes(&inbox), ["reset 1"]);
        inbox.post(ToClerk::Disable);
        inbox.post(ToClerk::Reset(Arc::default()));
        inbox.post(ToClerk::Stop);
        assert_eq!(changes(&inbox), ["stop", "reset 1"]);
    }

    #[test]
    fn nothing_begins_while_something_else_is_under_way() {
        let inbox = Inbox::default();
        inbox.post(ToClerk::Enable(QUEUES, 1));
        assert!(inbox.next_change(false).is_none());
        inbox.post(ToClerk::Disable);
        assert!(matches!(inbox.next_change(false), Some(Change::Disable)));
    }

    #[test]
    fn a_million_messages_of_every_kind_are_few() {
        let inbox = Inbox::default();
        for round in 0..1_000_000u64 {
            inbox.tell(Message::Event(Event::InvalidDoorbellRegister));
            inbox.tell(Message::Event(Event::InvalidDoorbellValue));
            inbox.tell(Message::NamespaceChanged((round % 4) as u32));
            inbox.tell(Message::GiveBack(Iova::new(round << 12), 0x1000));
        }
        let messages = inbox.take();
        assert_eq!(messages.len(), 2 + 4 + MANY + 1);
        assert!(messages.contains(&Message::GiveBack(Iova::new(0), 0)), "everything, beyond the first");
        inbox.tell(Message::GiveBack(Iova::new(7), 1));
        assert_eq!(inbox.take(), [Message::GiveBack(Iova::new(7), 1)]);
    }
}
