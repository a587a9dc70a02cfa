//! Fetching commands, from each queue in turn.

use super::{MAX_IN_FLIGHT, PollGroup, PollResult};
use crate::engine::async_event::AsyncEvent;
use crate::engine::memory::GuestMemory;
use crate::engine::queue_table::tail_of;
use crate::engine::shadow::{Shadow, retry_at};
use crate::engine::storage::Storage;
use crate::engine::submission::FETCH;
use crate::spec::Status;

impl<M: GuestMemory, S: Storage<M::Guard>> PollGroup<M, S> {
    pub(super) fn fetch(&mut self, now: u64, polled: &mut PollResult) {
        let queues = self.submission.len();
        for step in 0..queues {
            let at = (self.next_queue + step) % queues;
            self.update_doorbell(at, now, polled);
            if self.stalled.is_empty() {
                self.fetch_from(at, now, polled);
            }
            let (queue, backoff) = &self.submission[at];
            // Otherwise something else wakes the poll group when commands can be fetched again.
            let could_go_on = queue.waiting() > 0
                && !queue.closing
                && self.stalled.is_empty()
                && self.in_flight.count() < MAX_IN_FLIGHT
                && self.backlog_of(queue.cq) == 0;
            if could_go_on {
                polled.progress |= backoff.may_try(now);
                polled.wake_at(backoff.next());
            }
            polled.wake_at(queue.doorbell.due());
        }
        self.next_queue = self.next_queue.wrapping_add(1);
    }

    fn backlog_of(&self, cq: u16) -> usize {
        self.completion.iter().find(|(queue, _)| queue.id == cq).map_or(1, |(queue, _)| queue.backlog())
    }

    /// Updates the tail of a submission queue.
    fn update_doorbell(&mut self, at: usize, now: u64, polled: &mut PollResult) {
        let (queue, _) = &mut self.submission[at];
        let register = self.shared.queue_table.tail(queue.id);
        let shadow = Shadow::value(&mut self.shadow, &self.memory, tail_of(queue.id));
        polled.wake_at(retry_at(shadow, now));
        if let Err(bad) = queue.update_doorbell(register, shadow, now) {
            polled.events.push(bad.into());
            self.log_error(None, Status::INVALID_FIELD, 0, 0);
        }
    }

    fn fetch_from(&mut self, at: usize, now: u64, polled: &mut PollResult) {
        let most = MAX_IN_FLIGHT.saturating_sub(self.in_flight.count()).min(FETCH);
        let cq = self.submission[at].0.cq;
        let (queue, backoff) = &self.submission[at];
        if queue.closing || queue.waiting() == 0 || !backoff.may_try(now) || self.backlog_of(cq) > 0 {
            return;
        }
        let mut commands = std::mem::take(&mut self.commands);
        let (queue, backoff) = &mut self.submission[at];
        let id = queue.id;
        match queue.fetch(&self.memory, most, &mut commands) {
            Ok(()) => backoff.reset(),
            Err(_) => {
                queue.ring_memory().release();
                if backoff.failed(now) {
                    polled.events.push(AsyncEvent::PersistentInternalError);
                }
            }
        }
        queue.in_flight += commands.len() as u32;
        for command in commands.drain(..) {
            polled.progress = true;
            self.begin(id, &command, now, polled);
        }
        self.commands = commands;
    }
}
