//! The admin queue pair. Commands are executed one at a time.
//!
//! An [`AdminQueue`] fetches a command, has `Admin` execute it, and posts the completion. A command that needs a poll group
//! returns a `QueueOp`; no other command is fetched until [`op_done`](AdminQueue::op_done) reports its result.

use std::sync::Arc;

use super::admin::{Admin, Outcome, QueueOp};
use super::async_event::AsyncEvent;
use super::backoff::Backoff;
use super::completion::CompletionQueue;
use super::doorbell::DoorbellValue;
use super::identify::Identity;
use super::log_page::Health;
use super::memory::GuestMemory;
use super::queue_table::{BadDoorbell, head_of, tail_of};
use super::registers::AdminQueueConfig;
use super::shadow::{Shadow, ShadowBuffers, retry_at};
use super::shared::Shared;
use super::submission::SubmissionQueue;
use crate::spec::{Command, Completion, Status};

/// The vector of the admin completion queue.
const VECTOR: u16 = 0;
/// Commands that one [`AdminQueue::poll`] executes at most.
const BATCH: usize = 16;

/// The result of [`AdminQueue::poll`].
#[derive(Debug, Default)]
pub struct AdminPollResult {
    /// Completions were posted: interrupt vector 0.
    pub signal: bool,
    /// An operation to execute; then call [`AdminQueue::op_done`].
    pub op: Option<QueueOp>,
    /// The admin queue's memory cannot be reached for too long: set CSTS.CFS.
    pub fatal: bool,
    /// There was something to do: poll again before sleeping.
    pub progress: bool,
    /// When to poll again without a doorbell.
    pub until: Option<u64>,
}

/// The admin queue pair, and the state of admin commands.
#[derive(Debug)]
pub struct AdminQueue<M: GuestMemory> {
    shared: Arc<Shared>,
    memory: M,
    admin: Admin,
    queues: Option<(SubmissionQueue<M>, CompletionQueue<M>)>,
    backoff: Backoff,
    shadow: Option<Shadow<M>>,
    /// When to retry the shadow doorbells, whose memory could not be reached.
    shadow_retry: Option<u64>,
    cc: u32,
    pending_op: Option<(Command, QueueOp)>,
    commands: Vec<Command>,
}

impl<M: GuestMemory> AdminQueue<M> {
    /// Closed: without queues.
    pub fn new(shared: Arc<Shared>, identity: Identity, memory: M) -> Self {
        Self {
            admin: Admin::new(Arc::clone(&shared), identity),
            shared,
            memory,
            queues: None,
            backoff: Backoff::default(),
            shadow: None,
            shadow_retry: None,
            cc: 0,
            pending_op: None,
            commands: Vec::new(),
        }
    }

    /// The state of admin commands.
    pub fn admin(&mut self) -> &mut Admin {
        &mut self.admin
    }

    /// The CC register when the queues were opened.
    #[must_use]
    pub fn configuration(&self) -> u32 {
        self.cc
    }

    /// Sets CC: the guest changed it while the controller is enabled (queue entry sizes).
    pub fn reconfigure(&mut self, cc: u32) {
        self.cc = cc;
    }

    /// Opens the admin queues.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when their memory cannot be reached; they stay closed.
    pub fn open(&mut self, queues: AdminQueueConfig, cc: u32) -> Result<(), Status> {
        let mut submission = SubmissionQueue::new(0, 0, queues.submission_entries, queues.submission);
        let mut completion =
            CompletionQueue::new(0, queues.completion_entries, queues.completion, Some(VECTOR));
        submission.ring_memory().hold(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        completion.ring_memory().hold(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        self.cc = cc;
        self.queues = Some((submission, completion));
        self.end_batch();
        Ok(())
    }

    /// Closes the queues and resets all state.
    pub fn close(&mut self) {
        self.queues = None;
        self.backoff = Backoff::default();
        self.shadow = None;
        self.shadow_retry = None;
        self.pending_op = None;
        self.commands.clear();
        self.admin.reset();
    }

    /// Whether the queues are open.
    pub(crate) fn is_open(&self) -> bool {
        self.queues.is_some()
    }

    /// Releases holds of queue memory in a range that is about to be unmapped.
    pub fn release_in(&mut self, iova: prereg::Iova, bytes: u64) {
        if let Some((submission, completion)) = &mut self.queues {
            submission.ring_memory().release_in(iova, bytes);
            completion.ring_memory().release_in(iova, bytes);
        }
        for buffer in self.shadow.iter_mut().flat_map(Shadow::buffers) {
            buffer.release_in(iova, bytes);
        }
    }

    /// Executes commands and posts completions.
    pub fn poll(&mut self, now: u64, health: &dyn Fn() -> Health) -> AdminPollResult {
        let mut polled = AdminPollResult::default();
        self.update_doorbells(now);
        if self.pending_op.is_none() {
            self.take(now, health, &mut polled);
        }
        self.deliver(now, &mut polled);
        self.end_batch();
        polled.until = self.next();
        polled
    }

    /// Reports the result of the operation that [`poll`](Self::poll) returned.
    pub fn op_done(&mut self, how: Result<u32, Status>) {
        let Some((command, op)) = self.pending_op.take() else { return };
        let (result, status) = self.admin.op_done(&command, op, how);
        if let (QueueOp::Shadow(buffers), true) = (op, status.is_success()) {
            self.init_shadow(buffers);
        }
        self.answer(command.cid(), result, status);
    }

    /// Whether no doorbell was written since the last [`poll`](Self::poll). To be called after the store that shows writers of
    /// doorbells that this thread sleeps.
    pub fn may_sleep(&mut self) -> bool {
        let Some((submission, completion)) = &mut self.queues else { return true };
        let is_awaited = completion.backlog() > 0;
        self.shared.queue_table.await_head(0, is_awaited);
        let (register, tail) = (self.shared.queue_table.tail(0), submission.tail());
        let shadow = Shadow::armed_value(&mut self.shadow, &self.memory, tail_of(0), tail);
        let news = submission.has_changed(register, shadow) && self.backoff.next().is_none();
        let (register, head) = (self.shared.queue_table.head(0), completion.head());
        let shadow = Shadow::armed_value(&mut self.shadow, &self.memory, head_of(0), head);
        let room = is_awaited && completion.has_changed(register, shadow);
        self.end_batch();
        // An operation in progress is no reason to stay awake: its end is reported.
        !news && !room
    }

    fn init_shadow(&mut self, buffers: ShadowBuffers) {
        let Some((submission, completion)) = &mut self.queues else { return };
        let mut shadow = Shadow::new(buffers);
        // A buffer that cannot be reached is reported by the poll groups; the registers still work.
        let _ = shadow.init(&self.memory, tail_of(0), submission.tail());
        let _ = shadow.init(&self.memory, head_of(0), completion.head());
        submission.doorbell.init(submission.tail());
        completion.doorbell.init(completion.head());
        self.shadow = Some(shadow);
    }

    fn update_doorbells(&mut self, now: u64) {
        let Some((submission, completion)) = &mut self.queues else { return };
        let register = self.shared.queue_table.tail(0);
        let shadow = Shadow::value(&mut self.shadow, &self.memory, tail_of(0));
        self.shadow_retry = retry_at(shadow, now);
        let tail = submission.update_doorbell(register, shadow, now);
        let register = self.shared.queue_table.head(0);
        let shadow = Shadow::value(&mut self.shadow, &self.memory, head_of(0));
        let head = completion.update_doorbell(register, shadow, now);
        match head {
            Ok(Some(DoorbellValue::Shadow(head))) => self.shared.queue_table.set_shadow_head(0, Some(head)),
            Ok(Some(DoorbellValue::Register(_))) => self.shared.queue_table.set_shadow_head(0, None),
            Ok(None) | Err(_) => {}
        }
        for bad in [tail.err(), head.err()].into_iter().flatten() {
            self.report(bad);
        }
    }

    /// When to poll again without being woken.
    fn next(&self) -> Option<u64> {
        let (submission, completion) = self.queues.as_ref()?;
        let is_waiting = completion.backlog() > 0 || submission.waiting() > 0 && self.pending_op.is_none();
        let backoff = self.backoff.next().filter(|_| is_waiting);
        let doorbells = [submission.doorbell.due(), completion.doorbell.due(), self.shadow_retry];
        doorbells.into_iter().chain([backoff]).flatten().min()
    }

    fn report(&mut self, bad: BadDoorbell) {
        self.admin.raise(AsyncEvent::from(bad));
    }

    fn take(&mut self, now: u64, health: &dyn Fn() -> Health, polled: &mut AdminPollResult) {
        for _ in 0..BATCH {
            let Some((submission, completion)) = &mut self.queues else { return };
            if submission.waiting() == 0 || completion.backlog() > 0 || !self.backoff.may_try(now) {
                return;
            }
            // One at a time: the next command may depend on the result of this one's operation.
            let mut commands = std::mem::take(&mut self.commands);
            let fetched = submission.fetch(&self.memory, 1, &mut commands);
            let command = commands.pop();
            self.commands = commands;
            match (fetched, command) {
                (Ok(()), Some(command)) => {
                    self.backoff.reset();
                    polled.progress = true;
                    self.execute(&command, health, polled);
                }
                _ => {
                    submission.ring_memory().release();
                    polled.fatal |= self.backoff.failed(now);
                    return;
                }
            }
            if self.pending_op.is_some() {
                return;
            }
            self.deliver(now, polled);
        }
    }

    fn execute(&mut self, command: &Command, health: &dyn Fn() -> Health, polled: &mut AdminPollResult) {
        match self.admin.execute(command, self.cc, &self.memory, health) {
            Outcome::Complete(result, status) => self.answer(command.cid(), result, status),
            Outcome::Pending => {}
            Outcome::Op(op) => {
                self.pending_op = Some((*command, op));
                polled.op = Some(op);
            }
        }
    }

    fn answer(&mut self, cid: u16, result: u32, status: Status) {
        if let Some((submission, completion)) = &mut self.queues {
            completion.push(Completion { result, sq_head: submission.head(), sq_id: 0, cid, status });
        }
    }

    fn deliver(&mut self, now: u64, polled: &mut AdminPollResult) {
        while self.queues.is_some() {
            match self.admin.next_aer_completion() {
                Some(aer_completion) => {
                    self.answer(aer_completion.cid, aer_completion.result, aer_completion.status);
                }
                None => break,
            }
        }
        let Some((_, completion)) = &mut self.queues else { return };
        if completion.backlog() == 0 || !self.backoff.may_try(now) {
            return;
        }
        let mut put = 0;
        match completion.deliver(&self.memory, &mut put) {
            Ok(()) => self.backoff.reset(),
            Err(_) => {
                completion.ring_memory().release();
                polled.fatal |= self.backoff.failed(now);
            }
        }
        if put > 0 {
            polled.signal = true;
            polled.progress = true;
            self.shared.queue_table.set_posted(0, completion.tail());
        }
    }

    fn end_batch(&mut self) {
        if let Some((submission, completion)) = &mut self.queues {
            submission.ring_memory().end_batch();
            completion.ring_memory().end_batch();
        }
        for buffer in self.shadow.iter_mut().flat_map(Shadow::buffers) {
            buffer.end_batch();
        }
    }
}
