//! The end of a batch, and the checks before the thread sleeps.

use super::PollGroup;
use crate::engine::memory::GuestMemory;
use crate::engine::queue_table::{head_of, tail_of};
use crate::engine::shadow::Shadow;
use crate::engine::storage::Storage;

impl<M: GuestMemory, S: Storage<M::Guard>> PollGroup<M, S> {
    /// Sets the EventIdx of all shadow doorbells, and returns whether no doorbell was written since the last poll. To be called
    /// after the store that shows writers of doorbells that this thread sleeps.
    pub fn may_sleep(&mut self) -> bool {
        let mut quiet = true;
        for at in 0..self.submission.len() {
            let (queue, backoff) = &self.submission[at];
            // A queue that is not polled must not keep the thread awake.
            if queue.closing || backoff.next().is_some() {
                continue;
            }
            let (id, tail) = (queue.id, queue.tail());
            let register = self.shared.queue_table.tail(id);
            let shadow = Shadow::armed_value(&mut self.shadow, &self.memory, tail_of(id), tail);
            quiet &= !self.submission[at].0.has_changed(register, shadow);
        }
        for at in 0..self.completion.len() {
            let (queue, _) = &self.completion[at];
            let (id, head, is_awaited) = (queue.id, queue.head(), queue.backlog() > 0 || self.watch_heads);
            self.shared.queue_table.await_head(id, is_awaited);
            let register = self.shared.queue_table.head(id);
            let shadow = Shadow::armed_value(&mut self.shadow, &self.memory, head_of(id), head);
            quiet &= !is_awaited || !self.completion[at].0.has_changed(register, shadow);
        }
        self.end_batch();
        quiet
    }

    /// Releases holds that may not be kept.
    pub(super) fn end_batch(&mut self) {
        for (queue, _) in &mut self.submission {
            queue.ring_memory().end_batch();
        }
        for (queue, _) in &mut self.completion {
            queue.ring_memory().end_batch();
        }
        for buffer in self.shadow.iter_mut().flat_map(Shadow::buffers) {
            buffer.end_batch();
        }
    }
}
