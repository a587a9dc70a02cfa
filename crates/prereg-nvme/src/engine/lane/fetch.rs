//! Taking commands: whose turn it is, what the guest's tails say, and how much may be under way.

use super::{Lane, MOST_FLYING, Served};
use crate::engine::board::tail_of;
use crate::engine::event::Event;
use crate::engine::memory::GuestMemory;
use crate::engine::shadow::{Shadow, look_again};
use crate::engine::storage::Storage;
use crate::engine::submission::FETCH;
use crate::spec::Status;

impl<M: GuestMemory, S: Storage<M::Guard>> Lane<M, S> {
    pub(super) fn fetch(&mut self, now: u64, served: &mut Served) {
        let queues = self.submission.len();
        for step in 0..queues {
            let at = (self.turn + step) % queues;
            self.listen(at, now, served);
            if self.stalled.is_empty() {
                self.fetch_from(at, now, served);
            }
            let (queue, outage) = &self.submission[at];
            // Otherwise what is in the way wakes the lane when it is gone.
            let could_go_on = queue.waiting() > 0
                && !queue.closing
                && self.stalled.is_empty()
                && self.flight.count() < MOST_FLYING
                && self.backlog_of(queue.cq) == 0;
            if could_go_on {
                served.progress |= outage.may_try(now);
                served.wake_at(outage.next());
            }
            served.wake_at(queue.doorbell.due());
        }
        self.turn = self.turn.wrapping_add(1);
    }

    fn backlog_of(&self, cq: u16) -> usize {
        self.completion.iter().find(|(queue, _)| queue.id == cq).map_or(1, |(queue, _)| queue.backlog())
    }

    /// Takes over the tail of a submission queue.
    fn listen(&mut self, at: usize, now: u64, served: &mut Served) {
        let (queue, _) = &mut self.submission[at];
        let register = self.shared.board.tail(queue.id);
        let word = Shadow::word(&mut self.shadow, &self.memory, tail_of(queue.id));
        served.wake_at(look_again(word, now));
        if let Err(bad) = queue.listen(register, word, now) {
            served.events.push(bad.into());
            self.note(None, Status::INVALID_FIELD, 0, 0);
        }
    }

    fn fetch_from(&mut self, at: usize, now: u64, served: &mut Served) {
        let most = MOST_FLYING.saturating_sub(self.flight.count()).min(FETCH);
        let cq = self.submission[at].0.cq;
        let (queue, outage) = &self.submission[at];
        if queue.closing || queue.waiting() == 0 || !outage.may_try(now) || self.backlog_of(cq) > 0 {
            return;
        }
        let mut commands = std::mem::take(&mut self.commands);
        let (queue, outage) = &mut self.submission[at];
        let id = queue.id;
        match queue.fetch(&self.memory, most, &mut commands) {
            Ok(()) => outage.over(),
            Err(_) => {
                queue.window().give_back();
                if outage.met(now) {
                    served.events.push(Event::PersistentInternalError);
                }
            }
        }
        queue.flying += commands.len() as u32;
        for command in commands.drain(..) {
            served.progress = true;
            self.begin(id, &command, now, served);
        }
        self.commands = commands;
    }
}
