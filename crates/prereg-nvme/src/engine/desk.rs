//! The admin queue pair, and the commands that come through it, one at a time.
//!
//! A [`Desk`] takes a command, has [`Admin`] judge it, and puts the answer. A command that needs a lane stops the desk: it
//! gives the order and takes no other command before it was told how that went.

use std::sync::Arc;

use super::admin::{Admin, Order, Verdict};
use super::board::{BadDoorbell, head_of, tail_of};
use super::completion::CompletionQueue;
use super::doorbell::Rung;
use super::event::Event;
use super::identity::Identity;
use super::log_page::Health;
use super::memory::GuestMemory;
use super::outage::Outage;
use super::registers::AdminQueues;
use super::shadow::{Shadow, ShadowBuffers, look_again};
use super::shared::Shared;
use super::submission::SubmissionQueue;
use crate::spec::{Command, Completion, Status};

/// The vector that the admin completion queue interrupts.
const VECTOR: u16 = 0;
/// Commands a [`Desk::serve`] takes.
const BATCH: usize = 16;

/// What the desk wants done, and what it found.
#[derive(Debug, Default)]
pub struct Attended {
    /// The admin completion queue has news: interrupt vector 0.
    pub signal: bool,
    /// An order to carry out; then [`Desk::carried_out`].
    pub order: Option<Order>,
    /// The admin queue cannot be reached for good: CSTS.CFS.
    pub fatal: bool,
    /// Something moved: serve again before sleeping.
    pub progress: bool,
    /// When to serve again even if nothing rings.
    pub until: Option<u64>,
}

/// The admin queue pair and the state behind it.
#[derive(Debug)]
pub struct Desk<M: GuestMemory> {
    shared: Arc<Shared>,
    memory: M,
    admin: Admin,
    queues: Option<(SubmissionQueue<M>, CompletionQueue<M>)>,
    outage: Outage,
    shadow: Option<Shadow<M>>,
    /// When to look for the shadow's memory, which was away.
    shadow_again: Option<u64>,
    cc: u32,
    ordered: Option<(Command, Order)>,
    commands: Vec<Command>,
}

impl<M: GuestMemory> Desk<M> {
    /// Without queues: closed.
    pub fn new(shared: Arc<Shared>, identity: Identity, memory: M) -> Self {
        Self {
            admin: Admin::new(Arc::clone(&shared), identity),
            shared,
            memory,
            queues: None,
            outage: Outage::default(),
            shadow: None,
            shadow_again: None,
            cc: 0,
            ordered: None,
            commands: Vec::new(),
        }
    }

    /// The state that admin commands work on.
    pub fn admin(&mut self) -> &mut Admin {
        &mut self.admin
    }

    /// The configuration that was in force when the desk opened.
    #[must_use]
    pub fn configuration(&self) -> u32 {
        self.cc
    }

    /// The guest changed the configuration while the controller works: the entry sizes of queues.
    pub fn reconfigure(&mut self, cc: u32) {
        self.cc = cc;
    }

    /// Opens with the admin queues of `queues`.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when they cannot be reached; the desk stays closed.
    pub fn open(&mut self, queues: AdminQueues, cc: u32) -> Result<(), Status> {
        let mut submission = SubmissionQueue::new(0, 0, queues.submission_entries, queues.submission);
        let mut completion =
            CompletionQueue::new(0, queues.completion_entries, queues.completion, Some(VECTOR));
        submission.window().reach(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        completion.window().reach(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        self.cc = cc;
        self.queues = Some((submission, completion));
        self.rest();
        Ok(())
    }

    /// Closes, and forgets everything that was set.
    pub fn close(&mut self) {
        self.queues = None;
        self.outage = Outage::default();
        self.shadow = None;
        self.shadow_again = None;
        self.ordered = None;
        self.commands.clear();
        self.admin.reset();
    }

    /// Whether it is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.queues.is_some()
    }

    /// Gives holds of the queues back that lie in what is about to be unmapped.
    pub fn give_back_in(&mut self, iova: prereg::Iova, bytes: u64) {
        if let Some((submission, completion)) = &mut self.queues {
            submission.window().give_back_in(iova, bytes);
            completion.window().give_back_in(iova, bytes);
        }
        for window in self.shadow.iter_mut().flat_map(Shadow::windows) {
            window.give_back_in(iova, bytes);
        }
    }

    /// Does what there is to do.
    pub fn serve(&mut self, now: u64, health: &dyn Fn() -> Health) -> Attended {
        let mut attended = Attended::default();
        self.listen(now);
        if self.ordered.is_none() {
            self.take(now, health, &mut attended);
        }
        self.deliver(now, &mut attended);
        self.rest();
        attended.until = self.next();
        attended
    }

    /// The order that [`serve`](Self::serve) gave was carried out, or not.
    pub fn carried_out(&mut self, how: Result<u32, Status>) {
        let Some((command, order)) = self.ordered.take() else { return };
        let (result, status) = self.admin.carried_out(&command, order, how);
        if let (Order::Shadow(buffers), true) = (order, status.is_success()) {
            self.begin_shadow(buffers);
        }
        self.answer(command.cid(), result, status);
    }

    /// Whether nothing was rung since the last [`serve`](Self::serve). To be called after whoever rings can see that the
    /// desk sleeps.
    pub fn may_sleep(&mut self) -> bool {
        let Some((submission, completion)) = &mut self.queues else { return true };
        let is_awaited = completion.backlog() > 0;
        self.shared.board.await_head(0, is_awaited);
        let (register, tail) = (self.shared.board.tail(0), submission.tail());
        let word = Shadow::word_from(&mut self.shadow, &self.memory, tail_of(0), tail);
        let news = submission.is_news(register, word) && self.outage.next().is_none();
        let (register, head) = (self.shared.board.head(0), completion.head());
        let word = Shadow::word_from(&mut self.shadow, &self.memory, head_of(0), head);
        let room = is_awaited && completion.is_news(register, word);
        self.rest();
        // An order under way is no reason to stay awake: its end is reported.
        !news && !room
    }

    fn begin_shadow(&mut self, buffers: ShadowBuffers) {
        let Some((submission, completion)) = &mut self.queues else { return };
        let mut shadow = Shadow::new(buffers);
        // A buffer that cannot be reached concerns the lanes, which report it; the registers go on.
        let _ = shadow.begin(&self.memory, tail_of(0), submission.tail());
        let _ = shadow.begin(&self.memory, head_of(0), completion.head());
        submission.doorbell.begin(submission.tail());
        completion.doorbell.begin(completion.head());
        self.shadow = Some(shadow);
    }

    fn listen(&mut self, now: u64) {
        let Some((submission, completion)) = &mut self.queues else { return };
        let register = self.shared.board.tail(0);
        let word = Shadow::word(&mut self.shadow, &self.memory, tail_of(0));
        self.shadow_again = look_again(word, now);
        let tail = submission.listen(register, word, now);
        let register = self.shared.board.head(0);
        let word = Shadow::word(&mut self.shadow, &self.memory, head_of(0));
        let head = completion.listen(register, word, now);
        match head {
            Ok(Some(Rung::Memory(head))) => self.shared.board.note_head(0, Some(head)),
            Ok(Some(Rung::Register(_))) => self.shared.board.note_head(0, None),
            Ok(None) | Err(_) => {}
        }
        for bad in [tail.err(), head.err()].into_iter().flatten() {
            self.report(bad);
        }
    }

    /// When to serve again without being woken.
    fn next(&self) -> Option<u64> {
        let (submission, completion) = self.queues.as_ref()?;
        let is_waiting = completion.backlog() > 0 || submission.waiting() > 0 && self.ordered.is_none();
        let outage = self.outage.next().filter(|_| is_waiting);
        let doorbells = [submission.doorbell.due(), completion.doorbell.due(), self.shadow_again];
        doorbells.into_iter().chain([outage]).flatten().min()
    }

    fn report(&mut self, bad: BadDoorbell) {
        self.admin.raise(Event::from(bad));
    }

    fn take(&mut self, now: u64, health: &dyn Fn() -> Health, attended: &mut Attended) {
        for _ in 0..BATCH {
            let Some((submission, completion)) = &mut self.queues else { return };
            if submission.waiting() == 0 || completion.backlog() > 0 || !self.outage.may_try(now) {
                return;
            }
            // One at a time: the next one may depend on what an order of this one comes to.
            let mut commands = std::mem::take(&mut self.commands);
            let fetched = submission.fetch(&self.memory, 1, &mut commands);
            let command = commands.pop();
            self.commands = commands;
            match (fetched, command) {
                (Ok(()), Some(command)) => {
                    self.outage.over();
                    attended.progress = true;
                    self.execute(&command, health, attended);
                }
                _ => {
                    submission.window().give_back();
                    attended.fatal |= self.outage.met(now);
                    return;
                }
            }
            if self.ordered.is_some() {
                return;
            }
            self.deliver(now, attended);
        }
    }

    fn execute(&mut self, command: &Command, health: &dyn Fn() -> Health, attended: &mut Attended) {
        match self.admin.execute(command, self.cc, &self.memory, health) {
            Verdict::Answer(result, status) => self.answer(command.cid(), result, status),
            Verdict::Held => {}
            Verdict::Order(order) => {
                self.ordered = Some((*command, order));
                attended.order = Some(order);
            }
        }
    }

    fn answer(&mut self, cid: u16, result: u32, status: Status) {
        if let Some((submission, completion)) = &mut self.queues {
            completion.push(Completion { result, sq_head: submission.head(), sq_id: 0, cid, status });
        }
    }

    fn deliver(&mut self, now: u64, attended: &mut Attended) {
        while self.queues.is_some() {
            match self.admin.late() {
                Some(late) => self.answer(late.cid, late.result, late.status),
                None => break,
            }
        }
        let Some((_, completion)) = &mut self.queues else { return };
        if completion.backlog() == 0 || !self.outage.may_try(now) {
            return;
        }
        let mut put = 0;
        match completion.deliver(&self.memory, &mut put) {
            Ok(()) => self.outage.over(),
            Err(_) => {
                completion.window().give_back();
                attended.fatal |= self.outage.met(now);
            }
        }
        if put > 0 {
            attended.signal = true;
            attended.progress = true;
            self.shared.board.posted(0, completion.tail());
        }
    }

    fn rest(&mut self) {
        if let Some((submission, completion)) = &mut self.queues {
            submission.window().rest();
            completion.window().rest();
        }
        for window in self.shadow.iter_mut().flat_map(Shadow::windows) {
            window.rest();
        }
    }
}
