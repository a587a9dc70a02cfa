//! The end of a batch, and what a lane asks for before its thread sleeps.

use super::Lane;
use crate::engine::board::{head_of, tail_of};
use crate::engine::memory::GuestMemory;
use crate::engine::shadow::Shadow;
use crate::engine::storage::Storage;

impl<M: GuestMemory, S: Storage<M::Guard>> Lane<M, S> {
    /// Before sleeping: asks the guest to ring doorbells, and returns whether none was rung in the meantime. To be called after the
    /// store by which threads that ring see that the lane sleeps.
    pub fn may_sleep(&mut self) -> bool {
        let mut quiet = true;
        for at in 0..self.submission.len() {
            let (queue, outage) = &self.submission[at];
            // A queue that is not looked at anyhow must not keep the lane awake.
            if queue.closing || outage.next().is_some() {
                continue;
            }
            let (id, tail) = (queue.id, queue.tail());
            let register = self.shared.board.tail(id);
            let word = Shadow::word_from(&mut self.shadow, &self.memory, tail_of(id), tail);
            quiet &= !self.submission[at].0.is_news(register, word);
        }
        for at in 0..self.completion.len() {
            let (queue, _) = &self.completion[at];
            let (id, head, is_awaited) = (queue.id, queue.head(), queue.backlog() > 0 || self.watch_heads);
            self.shared.board.await_head(id, is_awaited);
            let register = self.shared.board.head(id);
            let word = Shadow::word_from(&mut self.shadow, &self.memory, head_of(id), head);
            quiet &= !is_awaited || !self.completion[at].0.is_news(register, word);
        }
        self.rest();
        quiet
    }

    /// Releases holds that may not be kept.
    pub(super) fn rest(&mut self) {
        for (queue, _) in &mut self.submission {
            queue.window().rest();
        }
        for (queue, _) in &mut self.completion {
            queue.window().rest();
        }
        for window in self.shadow.iter_mut().flat_map(Shadow::windows) {
            window.rest();
        }
    }
}
