//! The admin thread: serves the admin queue, and enables and disables the controller.
//!
//! It does not wait for I/O threads: it sends an operation and receives the result as a message. While it halts the controller,
//! later requests stay in its channel, where they are merged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::admin_channel::{Change, Message, ResetAcks};
use super::disks::DiskQueues;
use super::event::NvmeEvent;
use super::guest::Guest;
use super::io_channel::IoMsg;
use super::io_thread::IoThread;
use super::poll_schedule;
use super::shared::{ADMIN_THREAD, ControllerShared};
use super::unmap_watch::WatchedMemory;
use crate::engine::admin::QueueOp;
use crate::engine::admin_queue::AdminQueue;
use crate::engine::identify::Identity;
use crate::engine::log_page::Health;
use crate::engine::registers::{AdminQueueConfig, Registers};
use crate::engine::shadow::ShadowBuffers;
use crate::spec::Status;
use crate::spec::number::{COMPLETION_BYTES, SUBMISSION_BYTES};
use crate::spec::register::page_shift;

/// The shortest pause between polls of mapped doorbells, in nanoseconds: the admin queue's, and those of I/O threads that
/// sleep.
const FIRST_PAUSE: u64 = 50_000;
const FIRST_PAUSE_OF_IO_THREADS: u64 = 1_000_000;

/// The state of the admin thread.
enum Stage {
    Open,
    /// I/O threads execute an operation.
    Executing {
        op: QueueOp,
        left: usize,
        result: Result<u32, Status>,
    },
    /// An I/O thread flushes the disks.
    ShuttingDown,
    /// These I/O threads finish their requests in flight.
    Halting {
        left: BTreeSet<usize>,
        after: AfterHalt,
    },
}

enum AfterHalt {
    Disabled,
    Reset(ResetAcks),
    Stop,
}

/// The admin thread.
pub(super) struct AdminThread {
    shared: Arc<ControllerShared>,
    admin_queue: AdminQueue<Guest>,
    health: Box<dyn Fn() -> Health + Send>,
    io_threads: Vec<Option<JoinHandle<()>>>,
    shadow: Option<ShadowBuffers>,
    stage: Stage,
    stopped: bool,
    /// An I/O thread panicked: nothing is served until a reset.
    failed: bool,
    /// When to try the admin queues again, whose memory could not be reached.
    until: Option<u64>,
    /// The doorbells' values when they were last polled.
    seen: Vec<u32>,
    /// When all I/O threads were last woken to poll by themselves.
    last_wake_all: u64,
    /// When an admin command was last executed, and when a doorbell of an I/O thread last changed.
    last_command: u64,
    last_doorbell: u64,
}

impl Drop for AdminThread {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.fatal("its admin thread panicked");
            self.shared.io_threads.iter().for_each(|io_thread| io_thread.io_channel.send(IoMsg::Stop));
            self.shared.admin_channel.abandon();
            for io_thread in self.io_threads.drain(..).flatten() {
                // As at the end of `run`.
                let _ = io_thread.join();
            }
        }
    }
}

impl AdminThread {
    pub(super) fn new(
        shared: Arc<ControllerShared>,
        identity: Identity,
        health: Box<dyn Fn() -> Health + Send>,
    ) -> Self {
        let admin_queue = AdminQueue::new(Arc::clone(&shared.engine), identity, shared.guest.clone());
        let io_threads = shared.io_threads.iter().map(|_| None).collect();
        let seen = vec![0; shared.engine.queue_table.doorbells()];
        Self {
            shared,
            admin_queue,
            health,
            io_threads,
            shadow: None,
            stage: Stage::Open,
            stopped: false,
            failed: false,
            until: None,
            seen,
            last_command: 0,
            last_doorbell: 0,
            last_wake_all: 0,
        }
    }

    /// Serves the admin queue until it receives Stop.
    pub(super) fn run(mut self) {
        loop {
            for message in self.shared.admin_channel.take() {
                self.handle(message);
            }
            self.apply_changes();
            if self.stopped {
                break;
            }
            if self.poll() {
                self.last_command = self.shared.now();
                continue;
            }
            self.sleep();
        }
        for io_thread in &self.shared.io_threads {
            io_thread.io_channel.send(IoMsg::Stop);
        }
        for io_thread in self.io_threads.drain(..).flatten() {
            // An I/O thread that panicked has dropped its holds too.
            let _ = io_thread.join();
        }
    }

    fn poll(&mut self) -> bool {
        if !self.can_poll() {
            return false;
        }
        let cc = self.shared.registers().configuration();
        self.admin_queue.reconfigure(cc);
        let polled = self.admin_queue.poll(self.shared.now(), &self.health);
        self.until = polled.until;
        if polled.signal {
            self.shared.irq.signal(0, 0);
        } else if self.shared.irq.uses_pin() {
            self.shared.irq.update_pin(0);
        }
        if polled.fatal {
            self.shared.fatal("the memory of its admin queues cannot be reached");
        }
        if let Some(op) = polled.op {
            self.dispatch(op);
        }
        polled.progress
    }

    /// Whether to poll the admin queue: not while bus mastering is disabled, nor during a halt or a shutdown.
    fn can_poll(&self) -> bool {
        matches!(self.stage, Stage::Open | Stage::Executing { .. })
            && self.shared.may_bus_master()
            && !self.failed
    }

    fn sleep(&mut self) {
        let can_poll = self.can_poll();
        if can_poll && !self.admin_queue.may_sleep() {
            return;
        }
        let now = self.shared.now();
        let retry =
            self.until.filter(|_| can_poll).map(|until| Duration::from_nanos(until.saturating_sub(now)));
        let looks = self.shared.polls_doorbells() && self.admin_queue.is_open();
        let pause = looks.then(|| Duration::from_nanos(self.poll_doorbells(now)));
        self.shared.admin_channel.wait(retry.into_iter().chain(pause).min());
    }

    /// Wakes the I/O threads whose mapped doorbells changed; returns the time until the next poll.
    fn poll_doorbells(&mut self, now: u64) -> u64 {
        let shared = Arc::clone(&self.shared);
        let last_doorbell = &mut self.last_doorbell;
        shared.engine.queue_table.poll_doorbells(&mut self.seen, |poll_group| {
            if let Some(io_thread) = shared.io_threads.get(poll_group as usize) {
                *last_doorbell = now;
                io_thread.io_channel.wake();
            }
        });
        // Polling misses a write of the same value, and one to the shadow doorbell alone.
        let idle = |since: u64| now.saturating_sub(since);
        if idle(self.last_wake_all) >= poll_schedule::wake_all(idle(self.last_doorbell)) {
            self.last_wake_all = now;
            self.started().for_each(|io_thread| shared.io_threads[io_thread].io_channel.wake());
        }
        let own = poll_schedule::pause(idle(self.last_command), FIRST_PAUSE);
        // Those that are awake poll by themselves.
        let sleep = self.started().any(|io_thread| shared.io_threads[io_thread].io_channel.is_asleep());
        let others = poll_schedule::pause(idle(self.last_doorbell), FIRST_PAUSE_OF_IO_THREADS);
        if sleep { own.min(others) } else { own }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Release(iova, bytes) => self.admin_queue.release_in(iova, bytes),
            // A disabled controller reports no events.
            Message::AsyncEvent(_) | Message::NamespaceChanged(_) if !self.admin_queue.is_open() => {}
            Message::AsyncEvent(event) => self.admin_queue.admin().raise(event),
            Message::NamespaceChanged(nsid) => self.admin_queue.admin().namespace_changed(nsid),
            Message::OpDone(how) => self.op_done(how),
            Message::Flushed => {
                if matches!(self.stage, Stage::ShuttingDown) {
                    self.finish_shutdown();
                    self.stage = Stage::Open;
                }
            }
            Message::Halted(io_thread) => self.halted(io_thread),
            Message::IoThreadPanicked(io_thread) => self.io_thread_panicked(io_thread),
        }
    }

    /// Performs the changes of state that were asked for, as far as possible without waiting.
    fn apply_changes(&mut self) {
        while !self.stopped && !matches!(self.stage, Stage::Halting { .. }) {
            match self.shared.admin_channel.next_change(matches!(self.stage, Stage::Open)) {
                None => return,
                Some(Change::Disable) => self.halt(AfterHalt::Disabled),
                Some(Change::Reset(acks)) => self.halt(AfterHalt::Reset(acks)),
                Some(Change::Stop) => self.halt(AfterHalt::Stop),
                Some(Change::Enable(queues, cc)) => self.enable(queues, cc),
                Some(Change::Shutdown) => self.shut_down(),
            }
        }
    }

    fn enable(&mut self, queues: AdminQueueConfig, cc: u32) {
        let shared = Arc::clone(&self.shared);
        let submission = u64::from(queues.submission_entries) * SUBMISSION_BYTES;
        let completion = u64::from(queues.completion_entries) * COMPLETION_BYTES;
        shared.unmap_watch.watch(WatchedMemory::Admin, Some(ADMIN_THREAD), (queues.submission, submission));
        shared.unmap_watch.watch(WatchedMemory::Admin, Some(ADMIN_THREAD), (queues.completion, completion));
        shared.engine.queue_table.open_submission(0, queues.submission_entries, ADMIN_THREAD);
        shared.engine.queue_table.open_completion(0, queues.completion_entries, Some(0), ADMIN_THREAD);
        match self.admin_queue.open(queues, cc) {
            Ok(()) => {
                for io_thread in
                    shared.io_threads.iter().zip(&self.io_threads).filter(|(_, thread)| thread.is_some())
                {
                    io_thread.0.io_channel.send(IoMsg::PageShift(page_shift(cc)));
                }
                shared.registers().ready();
                shared.events.report(&NvmeEvent::Enabled);
            }
            Err(_) => {
                shared.engine.queue_table.close_all();
                shared.unmap_watch.clear();
                shared.fatal("it was enabled with admin queues in memory that cannot be reached");
            }
        }
    }

    /// One I/O thread is enough: a flush covers completed writes of all queues.
    fn shut_down(&mut self) {
        let io_thread = self.started().next();
        match io_thread {
            Some(io_thread) => {
                self.stage = Stage::ShuttingDown;
                self.shared.io_threads[io_thread].io_channel.send(IoMsg::Flush);
            }
            None => self.finish_shutdown(),
        }
    }

    fn finish_shutdown(&self) {
        self.shared.registers().shut_down();
        self.shared.events.report(&NvmeEvent::ShutDown);
    }

    fn started(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.io_threads.len()).filter(|io_thread| self.io_threads[*io_thread].is_some())
    }

    fn halt(&mut self, after: AfterHalt) {
        self.admin_queue.close();
        let left: BTreeSet<usize> = self.started().collect();
        for io_thread in &left {
            self.shared.io_threads[*io_thread].io_channel.send(IoMsg::Halt);
        }
        let is_halted = left.is_empty();
        self.stage = Stage::Halting { left, after };
        if is_halted {
            self.finish_halt();
        }
    }

    fn halted(&mut self, io_thread: usize) {
        if let Stage::Halting { left, .. } = &mut self.stage {
            if left.remove(&io_thread) && left.is_empty() {
                self.finish_halt();
            }
        }
    }

    /// The thread's queues are lost, so the controller fails until its guest resets it. The thread is started again when it is
    /// next needed.
    fn io_thread_panicked(&mut self, io_thread: usize) {
        self.failed = true;
        self.shared.fatal("an I/O thread panicked");
        if let Some(thread) = self.io_threads[io_thread].take() {
            // The panic was printed.
            let _ = thread.join();
        }
        // Messages that it had not received are not for the next one.
        drop(self.shared.io_threads[io_thread].io_channel.take());
        if matches!(self.stage, Stage::Executing { .. } | Stage::ShuttingDown) {
            self.stage = Stage::Open;
        }
        self.halted(io_thread);
    }

    /// No thread uses guest memory any more.
    fn finish_halt(&mut self) {
        let shared = Arc::clone(&self.shared);
        shared.engine.queue_table.close_all();
        shared.unmap_watch.clear();
        shared.irq.clear();
        self.shadow = None;
        self.failed = false;
        if let Stage::Halting { after, .. } = std::mem::replace(&mut self.stage, Stage::Open) {
            match after {
                AfterHalt::Disabled => {
                    shared.reset_registers(Registers::stopped);
                    shared.events.report(&NvmeEvent::Reset);
                }
                AfterHalt::Reset(acks) => {
                    shared.reset_registers(Registers::reset);
                    shared.events.report(&NvmeEvent::Reset);
                    drop(acks);
                }
                AfterHalt::Stop => self.stopped = true,
            }
        }
    }

    /// Sends an operation to the I/O threads that have to execute it.
    fn dispatch(&mut self, op: QueueOp) {
        let targets: Vec<usize> = match op {
            QueueOp::CreateCompletion { id, .. } => {
                let io_thread = self.io_thread_of(id);
                if let Err(status) = self.start(io_thread) {
                    self.finish_op(op, Err(status));
                    return;
                }
                vec![io_thread]
            }
            QueueOp::DeleteCompletion { id } => vec![self.io_thread_of(id)],
            QueueOp::CreateSubmission { cq, .. }
            | QueueOp::DeleteSubmission { cq, .. }
            | QueueOp::Abort { cq, .. } => {
                vec![self.io_thread_of(cq)]
            }
            QueueOp::Shadow(_) => self.started().collect(),
            QueueOp::Flush => self.started().take(1).collect(),
        };
        self.watch(op);
        if targets.is_empty() {
            self.finish_op(op, Ok(0));
            return;
        }
        self.stage = Stage::Executing { op, left: targets.len(), result: Ok(0) };
        for io_thread in targets {
            self.shared.io_threads[io_thread].io_channel.send(IoMsg::Op(op));
        }
    }

    /// Registers the memory that an operation will hold, before it is held.
    fn watch(&self, op: QueueOp) {
        let watch = |what, io_thread: Option<usize>, range| {
            self.shared.unmap_watch.watch(what, io_thread.map(|io_thread| io_thread as u32), range);
        };
        match op {
            QueueOp::CreateCompletion { id, entries, iova, .. } => {
                let bytes = u64::from(entries) * COMPLETION_BYTES;
                watch(WatchedMemory::Completion(id), Some(self.io_thread_of(id)), (iova, bytes));
            }
            QueueOp::CreateSubmission { id, cq, entries, iova } => {
                let bytes = u64::from(entries) * SUBMISSION_BYTES;
                watch(WatchedMemory::Submission(id), Some(self.io_thread_of(cq)), (iova, bytes));
            }
            QueueOp::Shadow(ShadowBuffers { doorbells, events, bytes }) => {
                watch(WatchedMemory::Shadow, None, (doorbells, bytes));
                watch(WatchedMemory::Shadow, None, (events, bytes));
            }
            _ => {}
        }
    }

    fn op_done(&mut self, how: Result<u32, Status>) {
        let Stage::Executing { op, left, result } = &mut self.stage else { return };
        *left -= 1;
        if result.is_ok() {
            *result = how;
        }
        if *left == 0 {
            let (op, result) = (*op, *result);
            self.finish_op(op, result);
            self.stage = Stage::Open;
        }
    }

    /// An operation ended.
    fn finish_op(&mut self, op: QueueOp, result: Result<u32, Status>) {
        let unmap_watch = &self.shared.unmap_watch;
        match (op, result.is_ok()) {
            (QueueOp::Shadow(buffers), true) => self.shadow = Some(buffers),
            // Earlier buffers stay in use; the ranges watched for these do no harm.
            (QueueOp::Shadow(_), false) => {}
            (QueueOp::CreateCompletion { id, .. }, false) | (QueueOp::DeleteCompletion { id }, true) => {
                unmap_watch.unwatch(WatchedMemory::Completion(id));
            }
            (QueueOp::CreateSubmission { id, .. }, false) | (QueueOp::DeleteSubmission { id, .. }, true) => {
                unmap_watch.unwatch(WatchedMemory::Submission(id));
            }
            _ => {}
        }
        if let (QueueOp::DeleteCompletion { id }, true) = (op, self.shared.irq.uses_pin()) {
            self.shared.irq.update_pin(id);
        }
        self.admin_queue.op_done(result);
    }

    /// The I/O thread of completion queue `id` and of its submission queues.
    fn io_thread_of(&self, id: u16) -> usize {
        usize::from(id.saturating_sub(1)) % self.io_threads.len()
    }

    /// Starts an I/O thread, unless it runs.
    fn start(&mut self, io_thread: usize) -> Result<(), Status> {
        if self.io_threads[io_thread].is_some() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let io_channel = &shared.io_threads[io_thread].io_channel;
        let kicks = io_channel.kicks().map_err(|_| Status::INTERNAL)?;
        let disks =
            DiskQueues::new(&shared.disks, &kicks, shared.events.clone()).map_err(|_| Status::INTERNAL)?;
        io_channel.send(IoMsg::PageShift(page_shift(self.admin_queue.configuration())));
        let runner = IoThread::new(Arc::clone(&shared), io_thread as u32, disks);
        let thread = thread::Builder::new().name(format!("nvme-io-{io_thread}")).spawn(move || runner.run());
        self.io_threads[io_thread] = Some(thread.map_err(|_| Status::INTERNAL)?);
        if let Some(buffers) = self.shadow {
            io_channel.send(IoMsg::Shadow(buffers));
        }
        Ok(())
    }
}
