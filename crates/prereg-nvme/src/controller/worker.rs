//! A worker: the thread that serves a lane.

use std::sync::Arc;
use std::time::Duration;

use super::disks::DiskQueues;
use super::guest::Guest;
use super::hub::Hub;
use super::inbox::Message;
use super::mailbox::ToWorker;
use crate::engine::admin::Order;
use crate::engine::lane::{Lane, Served};

/// How often to look for mapped doorbells at first, and how seldom at last.
const FIRST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_millis(1);
/// Looks before the first nap: a guest that works rings again within moments.
const LOOKS: u32 = 64;
/// Naps before the clerk is left to look for doorbells: some 20 ms in all.
const NAPS: u32 = 24;

/// A worker.
pub(super) struct Worker {
    hub: Arc<Hub>,
    number: u32,
    lane: Lane<Guest, DiskQueues>,
    served: Served,
    /// A submission queue whose deletion was ordered.
    closing: Option<u16>,
    flush: Option<FlushFor>,
    halting: bool,
    idle: u32,
}

#[derive(Clone, Copy)]
enum FlushFor {
    Order,
    Shutdown,
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The clerk waits for the end of the thread, with which its queues and holds are dropped.
            self.hub.inbox.tell(Message::WorkerPanicked(self.number as usize));
        }
    }
}

impl Worker {
    pub(super) fn new(hub: Arc<Hub>, number: u32, disks: DiskQueues) -> Self {
        let counters = Arc::clone(&hub.workers[number as usize].counters);
        let lane = Lane::new(Arc::clone(&hub.shared), counters, hub.guest.clone(), disks);
        Self {
            hub,
            number,
            lane,
            served: Served::default(),
            closing: None,
            flush: None,
            halting: false,
            idle: 0,
        }
    }

    /// Serves until it is told to stop.
    pub(super) fn run(mut self) {
        loop {
            for message in self.hub.workers[self.number as usize].mailbox.take() {
                if matches!(message, ToWorker::Stop) {
                    return;
                }
                self.hear(message);
            }
            let now = self.hub.now();
            let has_memory = self.hub.may_bus_master();
            let served = if has_memory {
                self.lane.serve(now, &mut self.served)
            } else {
                // What is under way ends, for a shutdown or a reset that waits for it.
                self.lane.serve_without_memory(now, &mut self.served)
            };
            if served.is_err() {
                // What the kernel still does with the guest's memory is waited for before anybody is answered.
                self.lane.storage().give_up();
                self.lane.fail_all(now, &mut self.served);
            }
            self.tell();
            if self.served.progress {
                self.idle = 0;
            } else if has_memory {
                self.sleep(now);
            } else {
                self.pause();
            }
        }
    }

    fn hear(&mut self, message: ToWorker) {
        let now = self.hub.now();
        match message {
            ToWorker::Order(order) => {
                let mut served = Served::default();
                let how = self.lane.carry_out(order, self.number, now, &mut served);
                match (how, order) {
                    (Some(how), _) => self.hub.inbox.tell(Message::OrderDone(how)),
                    (None, Order::DeleteSubmission { id, .. }) => self.closing = Some(id),
                    (None, _) => self.flush = Some(FlushFor::Order),
                }
                self.durable(&served);
            }
            ToWorker::Flush => {
                let mut served = Served::default();
                self.flush = Some(FlushFor::Shutdown);
                self.lane.flush(now, &mut served);
                self.durable(&served);
            }
            ToWorker::Halt => {
                self.lane.halt();
                self.closing = None;
                self.flush = None;
                self.halting = true;
            }
            ToWorker::GiveBack(iova, bytes) => self.lane.give_back_in(iova, bytes),
            ToWorker::PageShift(shift) => self.lane.set_page_shift(shift),
            // Without them the doorbells themselves are looked at; who named the buffers was told that they can be reached.
            ToWorker::Shadow(buffers) => drop(self.lane.set_shadow(buffers)),
            ToWorker::Stop => {}
        }
    }

    /// Passes on what the lane found.
    fn tell(&mut self) {
        for (cq, vector) in &self.served.signals {
            self.hub.line.signal(*cq, *vector);
        }
        let uses_pin = self.hub.line.uses_pin();
        self.lane.watch_heads(uses_pin);
        if uses_pin {
            for cq in self.lane.completion_ids() {
                self.hub.line.look(cq);
            }
        }
        for event in &self.served.events {
            self.hub.inbox.tell(Message::Event(*event));
        }
        if self.closing.is_some_and(|id| self.served.closed.contains(&id)) {
            self.closing = None;
            self.hub.inbox.tell(Message::OrderDone(Ok(0)));
        }
        let served = std::mem::take(&mut self.served);
        self.durable(&served);
        self.served = served;
        if self.halting && self.lane.flying() == 0 {
            self.halting = false;
            // If they cannot be had, commands fail until the next reset tries again.
            let _ = self.lane.storage().open();
            self.hub.inbox.tell(Message::Halted(self.number as usize));
        }
    }

    fn durable(&mut self, served: &Served) {
        let Some(status) = served.durable else { return };
        match self.flush.take() {
            Some(FlushFor::Order) => {
                let how = if status.is_success() { Ok(0) } else { Err(status) };
                self.hub.inbox.tell(Message::OrderDone(how));
            }
            Some(FlushFor::Shutdown) => self.hub.inbox.tell(Message::Flushed),
            None => {}
        }
    }

    /// Sleeps until there is a message, or the device may reach memory again.
    fn pause(&mut self) {
        let mailbox = &self.hub.workers[self.number as usize].mailbox;
        let at = self.lane.storage().listens_to();
        mailbox.doze(at);
        // After the store that shows that this thread sleeps, as for `may_sleep`.
        if mailbox.is_empty() && !self.hub.may_bus_master() {
            self.lane.storage().wait(at, None);
        }
        mailbox.rise();
    }

    fn sleep(&mut self, now: u64) {
        self.idle = self.idle.saturating_add(1);
        let mut limit = self.served.until.map(|until| Duration::from_nanos(until.saturating_sub(now)));
        if self.hub.has_silent_doorbells() && self.idle < LOOKS + NAPS {
            if self.idle < LOOKS {
                std::hint::spin_loop();
                return;
            }
            let nap = FIRST_NAP.saturating_mul(1 << (self.idle - LOOKS).min(10)).min(LONGEST_NAP);
            limit = Some(limit.map_or(nap, |limit| limit.min(nap)));
        }
        let mailbox = &self.hub.workers[self.number as usize].mailbox;
        let at = self.lane.storage().listens_to();
        mailbox.doze(at);
        if mailbox.is_empty() && self.lane.may_sleep() {
            self.lane.storage().wait(at, limit);
        }
        mailbox.rise();
    }
}
