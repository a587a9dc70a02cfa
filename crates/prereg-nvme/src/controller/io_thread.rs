//! An I/O thread, which runs a poll group.

use std::sync::Arc;
use std::time::Duration;

use super::admin_channel::Message;
use super::disks::DiskQueues;
use super::guest::Guest;
use super::io_channel::IoMsg;
use super::shared::ControllerShared;
use crate::engine::admin::QueueOp;
use crate::engine::poll_group::{PollGroup, PollResult};

/// The first and the longest pause between polls of mapped doorbells.
const FIRST_PAUSE: Duration = Duration::from_micros(20);
const MAX_PAUSE: Duration = Duration::from_millis(1);
/// Polls before the first pause: a busy guest writes the next doorbell within microseconds.
const SPIN_POLLS: u32 = 64;
/// Pauses before the admin thread polls for this one: about 20 ms in all.
const PAUSED_POLLS: u32 = 24;

/// An I/O thread.
pub(super) struct IoThread {
    shared: Arc<ControllerShared>,
    number: u32,
    poll_group: PollGroup<Guest, DiskQueues>,
    polled: PollResult,
    /// A submission queue that is being deleted.
    closing: Option<u16>,
    flush: Option<FlushFor>,
    halting: bool,
    idle: u32,
}

#[derive(Clone, Copy)]
enum FlushFor {
    Op,
    Shutdown,
}

impl Drop for IoThread {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The admin thread joins this thread, whose queues and holds are dropped by then.
            self.shared.admin_channel.send_message(Message::IoThreadPanicked(self.number as usize));
        }
    }
}

impl IoThread {
    pub(super) fn new(shared: Arc<ControllerShared>, number: u32, disks: DiskQueues) -> Self {
        let counters = Arc::clone(&shared.io_threads[number as usize].counters);
        let poll_group = PollGroup::new(Arc::clone(&shared.engine), counters, shared.guest.clone(), disks);
        Self {
            shared,
            number,
            poll_group,
            polled: PollResult::default(),
            closing: None,
            flush: None,
            halting: false,
            idle: 0,
        }
    }

    /// Runs the poll group until it receives Stop.
    pub(super) fn run(mut self) {
        loop {
            for message in self.shared.io_threads[self.number as usize].io_channel.take() {
                if matches!(message, IoMsg::Stop) {
                    return;
                }
                self.handle(message);
            }
            let now = self.shared.now();
            let has_memory = self.shared.may_bus_master();
            let polled = if has_memory {
                self.poll_group.poll(now, &mut self.polled)
            } else {
                // Requests in flight complete, for a shutdown or a reset that waits for them.
                self.poll_group.poll_without_memory(now, &mut self.polled)
            };
            if polled.is_err() {
                // Wait for the kernel's accesses to guest memory before commands are completed.
                self.poll_group.storage().drop_queues();
                self.poll_group.fail_all(now, &mut self.polled);
            }
            self.report();
            if self.polled.progress {
                self.idle = 0;
            } else if has_memory {
                self.sleep(now);
            } else {
                self.pause();
            }
        }
    }

    fn handle(&mut self, message: IoMsg) {
        let now = self.shared.now();
        match message {
            IoMsg::Op(op) => {
                let mut polled = PollResult::default();
                let how = self.poll_group.execute(op, self.number, now, &mut polled);
                match (how, op) {
                    (Some(how), _) => self.shared.admin_channel.send_message(Message::OpDone(how)),
                    (None, QueueOp::DeleteSubmission { id, .. }) => self.closing = Some(id),
                    (None, _) => self.flush = Some(FlushFor::Op),
                }
                self.durable(&polled);
            }
            IoMsg::Flush => {
                let mut polled = PollResult::default();
                self.flush = Some(FlushFor::Shutdown);
                self.poll_group.flush(now, &mut polled);
                self.durable(&polled);
            }
            IoMsg::Halt => {
                self.poll_group.halt();
                self.closing = None;
                self.flush = None;
                self.halting = true;
            }
            IoMsg::Release(iova, bytes) => self.poll_group.release_in(iova, bytes),
            IoMsg::PageShift(shift) => self.poll_group.set_page_shift(shift),
            // Without them the registers are polled; the command that named the buffers succeeded, so they can be reached.
            IoMsg::Shadow(buffers) => drop(self.poll_group.set_shadow(buffers)),
            IoMsg::Stop => {}
        }
    }

    /// Reports the results of a poll.
    fn report(&mut self) {
        for (cq, vector) in &self.polled.signals {
            self.shared.irq.signal(*cq, *vector);
        }
        let uses_pin = self.shared.irq.uses_pin();
        self.poll_group.watch_heads(uses_pin);
        if uses_pin {
            for cq in self.poll_group.completion_ids() {
                self.shared.irq.update_pin(cq);
            }
        }
        for failed in self.polled.failed.drain(..) {
            self.shared.events.report(&failed.into());
        }
        for event in &self.polled.events {
            self.shared.admin_channel.send_message(Message::AsyncEvent(*event));
        }
        if self.closing.is_some_and(|id| self.polled.closed.contains(&id)) {
            self.closing = None;
            self.shared.admin_channel.send_message(Message::OpDone(Ok(0)));
        }
        let polled = std::mem::take(&mut self.polled);
        self.durable(&polled);
        self.polled = polled;
        if self.halting && self.poll_group.in_flight() == 0 {
            self.halting = false;
            // If this fails, commands fail until the next reset tries again.
            let _ = self.poll_group.storage().open();
            self.shared.admin_channel.send_message(Message::Halted(self.number as usize));
        }
    }

    fn durable(&mut self, polled: &PollResult) {
        let Some(status) = polled.durable else { return };
        match self.flush.take() {
            Some(FlushFor::Op) => {
                let how = if status.is_success() { Ok(0) } else { Err(status) };
                self.shared.admin_channel.send_message(Message::OpDone(how));
            }
            Some(FlushFor::Shutdown) => self.shared.admin_channel.send_message(Message::Flushed),
            None => {}
        }
    }

    /// Sleeps until there is a message, or bus mastering is enabled again.
    fn pause(&mut self) {
        let io_channel = &self.shared.io_threads[self.number as usize].io_channel;
        let at = self.poll_group.storage().next_kick();
        io_channel.prepare_sleep(at);
        // After the store that shows that this thread sleeps, as for `may_sleep`.
        if io_channel.is_empty() && !self.shared.may_bus_master() {
            self.poll_group.storage().wait(at, None);
        }
        io_channel.set_awake();
    }

    fn sleep(&mut self, now: u64) {
        self.idle = self.idle.saturating_add(1);
        let mut limit = self.polled.until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
        if self.shared.polls_doorbells() && self.idle < SPIN_POLLS + PAUSED_POLLS {
            if self.idle < SPIN_POLLS {
                std::hint::spin_loop();
                return;
            }
            let pause = FIRST_PAUSE.saturating_mul(1 << (self.idle - SPIN_POLLS).min(10)).min(MAX_PAUSE);
            limit = Some(limit.map_or(pause, |limit| limit.min(pause)));
        }
        let io_channel = &self.shared.io_threads[self.number as usize].io_channel;
        let at = self.poll_group.storage().next_kick();
        io_channel.prepare_sleep(at);
        if io_channel.is_empty() && self.poll_group.may_sleep() {
            self.poll_group.storage().wait(at, limit);
        }
        io_channel.set_awake();
    }
}
