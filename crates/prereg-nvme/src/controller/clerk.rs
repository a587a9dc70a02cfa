//! The clerk: the thread that serves the admin queue, and turns the controller on and off.
//!
//! It does not wait for workers: it gives an order, goes on listening, and hears the answer in its inbox. While it stops the
//! controller, what is to come next stays in the inbox, where the last word counts.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::disks::DiskQueues;
use super::guest::Guest;
use super::hub::{CLERK, Hub};
use super::inbox::{Answers, Change, Message};
use super::mailbox::ToWorker;
use super::notices::Watched;
use super::poll_schedule;
use super::worker::Worker;
use crate::engine::admin::Order;
use crate::engine::desk::Desk;
use crate::engine::identity::Identity;
use crate::engine::log_page::Health;
use crate::engine::registers::{AdminQueues, Registers};
use crate::engine::shadow::ShadowBuffers;
use crate::spec::Status;
use crate::spec::number::{COMPLETION_BYTES, SUBMISSION_BYTES};
use crate::spec::register::page_shift;

/// How soon to look again for mapped doorbells, in nanoseconds: the admin queue's, and those of workers that sleep.
const FIRST_NAP: u64 = 50_000;
const FIRST_NAP_OF_WORKERS: u64 = 1_000_000;

/// What the clerk is in the middle of.
enum Stage {
    Open,
    /// Workers carry an order out.
    Ordered {
        order: Order,
        left: usize,
        result: Result<u32, Status>,
    },
    /// A worker makes everything durable.
    ShuttingDown,
    /// These workers end what they have begun.
    Halting {
        left: BTreeSet<usize>,
        then: Then,
    },
}

enum Then {
    Disabled,
    Reset(Answers),
    Stop,
}

/// The clerk.
pub(super) struct Clerk {
    hub: Arc<Hub>,
    desk: Desk<Guest>,
    health: Box<dyn Fn() -> Health + Send>,
    workers: Vec<Option<JoinHandle<()>>>,
    shadow: Option<ShadowBuffers>,
    stage: Stage,
    stopped: bool,
    /// A worker panicked: nothing is served until a reset.
    failed: bool,
    /// When to try the admin queues again that could not be reached.
    until: Option<u64>,
    /// The doorbells' values when they were last looked at.
    seen: Vec<u32>,
    /// When all workers were last woken to look for themselves.
    woken: u64,
    /// When an admin command was last served, and when a doorbell of a worker was last found rung.
    served: u64,
    rung: u64,
}

impl Drop for Clerk {
    fn drop(&mut self) {
        if thread::panicking() {
            self.hub.registers().fatal();
            self.hub.workers.iter().for_each(|worker| worker.mailbox.post(ToWorker::Stop));
            self.hub.inbox.abandon();
            for worker in self.workers.drain(..).flatten() {
                // As at the end of `run`.
                let _ = worker.join();
            }
        }
    }
}

impl Clerk {
    pub(super) fn new(hub: Arc<Hub>, identity: Identity, health: Box<dyn Fn() -> Health + Send>) -> Self {
        let desk = Desk::new(Arc::clone(&hub.shared), identity, hub.guest.clone());
        let workers = hub.workers.iter().map(|_| None).collect();
        let seen = vec![0; hub.shared.board.doorbells()];
        Self {
            hub,
            desk,
            health,
            workers,
            shadow: None,
            stage: Stage::Open,
            stopped: false,
            failed: false,
            until: None,
            seen,
            served: 0,
            rung: 0,
            woken: 0,
        }
    }

    /// Serves until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            for message in self.hub.inbox.take() {
                self.hear(message);
            }
            self.change();
            if self.stopped {
                break;
            }
            if self.serve() {
                self.served = self.hub.now();
                continue;
            }
            self.sleep();
        }
        for worker in &self.hub.workers {
            worker.mailbox.post(ToWorker::Stop);
        }
        for worker in self.workers.drain(..).flatten() {
            // A worker that panicked has dropped what it held all the same.
            let _ = worker.join();
        }
    }

    fn serve(&mut self) -> bool {
        if !self.serves() {
            return false;
        }
        let cc = self.hub.registers().configuration();
        self.desk.reconfigure(cc);
        let attended = self.desk.serve(self.hub.now(), &self.health);
        self.until = attended.until;
        if attended.signal {
            self.hub.line.signal(0, 0);
        } else if self.hub.line.uses_pin() {
            self.hub.line.look(0);
        }
        if attended.fatal {
            self.hub.registers().fatal();
        }
        if let Some(order) = attended.order {
            self.place(order);
        }
        attended.progress
    }

    /// Whether the admin queue is served. A device that may not reach memory has nothing to do, whatever rings, and nothing to try
    /// again; nor has one that halts or shuts down.
    fn serves(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Ordered { .. }) && self.hub.may_bus_master() && !self.failed
    }

    fn sleep(&mut self) {
        let serves = self.serves();
        if serves && !self.desk.may_sleep() {
            return;
        }
        let now = self.hub.now();
        let retry =
            self.until.filter(|_| serves).map(|until| Duration::from_nanos(until.saturating_sub(now)));
        let looks = self.hub.has_silent_doorbells() && self.desk.is_open();
        let nap = looks.then(|| Duration::from_nanos(self.look_around(now)));
        self.hub.inbox.wait(retry.into_iter().chain(nap).min());
    }

    /// Wakes the workers whose doorbells rang without a message; gives when to look again.
    fn look_around(&mut self, now: u64) -> u64 {
        let hub = Arc::clone(&self.hub);
        let rung = &mut self.rung;
        hub.shared.board.look_around(&mut self.seen, |lane| {
            if let Some(worker) = hub.workers.get(lane as usize) {
                *rung = now;
                worker.mailbox.wake();
            }
        });
        // A doorbell that was written with the value it had, or in the shadow alone, looks like none.
        let idle = |since: u64| now.saturating_sub(since);
        if idle(self.woken) >= poll_schedule::wake_all(idle(self.rung)) {
            self.woken = now;
            self.started().for_each(|worker| hub.workers[worker].mailbox.wake());
        }
        let own = poll_schedule::pause(idle(self.served), FIRST_NAP);
        // Those that are awake look for themselves.
        let sleep = self.started().any(|worker| hub.workers[worker].mailbox.sleeps());
        let others = poll_schedule::pause(idle(self.rung), FIRST_NAP_OF_WORKERS);
        if sleep { own.min(others) } else { own }
    }

    fn hear(&mut self, message: Message) {
        match message {
            Message::GiveBack(iova, bytes) => self.desk.give_back_in(iova, bytes),
            // A guest that has not begun finds everything as it is when it does.
            Message::Event(_) | Message::NamespaceChanged(_) if !self.desk.is_open() => {}
            Message::Event(event) => self.desk.admin().raise(event),
            Message::NamespaceChanged(nsid) => self.desk.admin().namespace_changed(nsid),
            Message::OrderDone(how) => self.order_done(how),
            Message::Flushed => {
                if matches!(self.stage, Stage::ShuttingDown) {
                    self.hub.registers().shut_down();
                    self.stage = Stage::Open;
                }
            }
            Message::Halted(worker) => self.halted(worker),
            Message::WorkerPanicked(worker) => self.worker_panicked(worker),
        }
    }

    /// Goes on to the state that is wanted, as far as that goes without waiting.
    fn change(&mut self) {
        while !self.stopped && !matches!(self.stage, Stage::Halting { .. }) {
            match self.hub.inbox.next_change(matches!(self.stage, Stage::Open)) {
                None => return,
                Some(Change::Disable) => self.halt(Then::Disabled),
                Some(Change::Reset(answers)) => self.halt(Then::Reset(answers)),
                Some(Change::Stop) => self.halt(Then::Stop),
                Some(Change::Enable(queues, cc)) => self.enable(queues, cc),
                Some(Change::Shutdown) => self.shut_down(),
            }
        }
    }

    fn enable(&mut self, queues: AdminQueues, cc: u32) {
        let hub = Arc::clone(&self.hub);
        let submission = u64::from(queues.submission_entries) * SUBMISSION_BYTES;
        let completion = u64::from(queues.completion_entries) * COMPLETION_BYTES;
        hub.notices.watch(Watched::Admin, Some(CLERK), (queues.submission, submission));
        hub.notices.watch(Watched::Admin, Some(CLERK), (queues.completion, completion));
        hub.shared.board.open_submission(0, queues.submission_entries, CLERK);
        hub.shared.board.open_completion(0, queues.completion_entries, Some(0), CLERK);
        match self.desk.open(queues, cc) {
            Ok(()) => {
                for worker in hub.workers.iter().zip(&self.workers).filter(|(_, thread)| thread.is_some()) {
                    worker.0.mailbox.post(ToWorker::PageShift(page_shift(cc)));
                }
                hub.registers().ready();
            }
            Err(_) => {
                hub.shared.board.close_all();
                hub.notices.clear();
                hub.registers().fatal();
            }
        }
    }

    /// Any worker will do: a flush covers what was done by all.
    fn shut_down(&mut self) {
        let worker = self.started().next();
        match worker {
            Some(worker) => {
                self.stage = Stage::ShuttingDown;
                self.hub.workers[worker].mailbox.post(ToWorker::Flush);
            }
            None => self.hub.registers().shut_down(),
        }
    }

    fn started(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.workers.len()).filter(|worker| self.workers[*worker].is_some())
    }

    fn halt(&mut self, then: Then) {
        self.desk.close();
        let left: BTreeSet<usize> = self.started().collect();
        for worker in &left {
            self.hub.workers[*worker].mailbox.post(ToWorker::Halt);
        }
        let is_quiet = left.is_empty();
        self.stage = Stage::Halting { left, then };
        if is_quiet {
            self.quiet();
        }
    }

    fn halted(&mut self, worker: usize) {
        if let Stage::Halting { left, .. } = &mut self.stage {
            if left.remove(&worker) && left.is_empty() {
                self.quiet();
            }
        }
    }

    /// Its queues are lost, so the controller is, until its guest resets it. The worker is started anew when it is needed again.
    fn worker_panicked(&mut self, worker: usize) {
        self.failed = true;
        self.hub.registers().fatal();
        if let Some(thread) = self.workers[worker].take() {
            // Why is known, and printed where it happened.
            let _ = thread.join();
        }
        // Nothing of what it had not taken is for the next one.
        drop(self.hub.workers[worker].mailbox.take());
        if matches!(self.stage, Stage::Ordered { .. } | Stage::ShuttingDown) {
            self.stage = Stage::Open;
        }
        self.halted(worker);
    }

    /// Nobody uses the guest's memory any more.
    fn quiet(&mut self) {
        let hub = Arc::clone(&self.hub);
        hub.shared.board.close_all();
        hub.notices.clear();
        hub.line.clear();
        self.shadow = None;
        self.failed = false;
        if let Stage::Halting { then, .. } = std::mem::replace(&mut self.stage, Stage::Open) {
            match then {
                Then::Disabled => hub.reset_registers(Registers::stopped),
                Then::Reset(answers) => {
                    hub.reset_registers(Registers::reset);
                    drop(answers);
                }
                Then::Stop => self.stopped = true,
            }
        }
    }

    /// Gives an order to those it concerns.
    fn place(&mut self, order: Order) {
        let concerned: Vec<usize> = match order {
            Order::CreateCompletion { id, .. } => {
                let worker = self.worker_of(id);
                if let Err(status) = self.start(worker) {
                    self.finish(order, Err(status));
                    return;
                }
                vec![worker]
            }
            Order::DeleteCompletion { id } => vec![self.worker_of(id)],
            Order::CreateSubmission { cq, .. }
            | Order::DeleteSubmission { cq, .. }
            | Order::Abort { cq, .. } => {
                vec![self.worker_of(cq)]
            }
            Order::Shadow(_) => self.started().collect(),
            Order::Flush => self.started().take(1).collect(),
        };
        self.watch(order);
        if concerned.is_empty() {
            self.finish(order, Ok(0));
            return;
        }
        self.stage = Stage::Ordered { order, left: concerned.len(), result: Ok(0) };
        for worker in concerned {
            self.hub.workers[worker].mailbox.post(ToWorker::Order(order));
        }
    }

    /// Notes what an order will hold for long, before it is held.
    fn watch(&self, order: Order) {
        let watch = |what, worker: Option<usize>, range| {
            self.hub.notices.watch(what, worker.map(|worker| worker as u32), range);
        };
        match order {
            Order::CreateCompletion { id, entries, iova, .. } => {
                let bytes = u64::from(entries) * COMPLETION_BYTES;
                watch(Watched::Completion(id), Some(self.worker_of(id)), (iova, bytes));
            }
            Order::CreateSubmission { id, cq, entries, iova } => {
                let bytes = u64::from(entries) * SUBMISSION_BYTES;
                watch(Watched::Submission(id), Some(self.worker_of(cq)), (iova, bytes));
            }
            Order::Shadow(ShadowBuffers { doorbells, events, bytes }) => {
                watch(Watched::Shadow, None, (doorbells, bytes));
                watch(Watched::Shadow, None, (events, bytes));
            }
            _ => {}
        }
    }

    fn order_done(&mut self, how: Result<u32, Status>) {
        let Stage::Ordered { order, left, result } = &mut self.stage else { return };
        *left -= 1;
        if result.is_ok() {
            *result = how;
        }
        if *left == 0 {
            let (order, result) = (*order, *result);
            self.finish(order, result);
            self.stage = Stage::Open;
        }
    }

    /// An order was carried out, or not.
    fn finish(&mut self, order: Order, result: Result<u32, Status>) {
        let notices = &self.hub.notices;
        match (order, result.is_ok()) {
            (Order::Shadow(buffers), true) => self.shadow = Some(buffers),
            // Buffers of before, if there were any, stay in use; what is watched in vain does no harm.
            (Order::Shadow(_), false) => {}
            (Order::CreateCompletion { id, .. }, false) | (Order::DeleteCompletion { id }, true) => {
                notices.unwatch(Watched::Completion(id));
            }
            (Order::CreateSubmission { id, .. }, false) | (Order::DeleteSubmission { id, .. }, true) => {
                notices.unwatch(Watched::Submission(id));
            }
            _ => {}
        }
        if let (Order::DeleteCompletion { id }, true) = (order, self.hub.line.uses_pin()) {
            self.hub.line.look(id);
        }
        self.desk.carried_out(result);
    }

    /// The worker of completion queue `id`, and of the submission queues that it answers.
    fn worker_of(&self, id: u16) -> usize {
        usize::from(id.saturating_sub(1)) % self.workers.len()
    }

    /// Starts a worker that has not been needed before.
    fn start(&mut self, worker: usize) -> Result<(), Status> {
        if self.workers[worker].is_some() {
            return Ok(());
        }
        let hub = Arc::clone(&self.hub);
        let mailbox = &hub.workers[worker].mailbox;
        let kicks = mailbox.kicks().map_err(|_| Status::INTERNAL)?;
        let disks = DiskQueues::new(&hub.disks, &kicks).map_err(|_| Status::INTERNAL)?;
        mailbox.post(ToWorker::PageShift(page_shift(self.desk.configuration())));
        let served = Worker::new(Arc::clone(&hub), worker as u32, disks);
        let thread = thread::Builder::new().name(format!("nvme-io-{worker}")).spawn(move || served.run());
        self.workers[worker] = Some(thread.map_err(|_| Status::INTERNAL)?);
        if let Some(buffers) = self.shadow {
            mailbox.post(ToWorker::Shadow(buffers));
        }
        Ok(())
    }
}
