//! Operations of admin commands on a poll group.

use super::{PollGroup, PollResult};
use crate::engine::admin::QueueOp;
use crate::engine::memory::GuestMemory;
use crate::engine::storage::Storage;
use crate::spec::Status;

impl<M: GuestMemory, S: Storage<M::Guard>> PollGroup<M, S> {
    /// Executes `op`. `number` is the poll group's own, for the doorbells of queues it creates.
    ///
    /// `None`: a later [`PollResult::closed`] or [`PollResult::durable`] reports the end.
    pub fn execute(
        &mut self,
        op: QueueOp,
        number: u32,
        now: u64,
        polled: &mut PollResult,
    ) -> Option<Result<u32, Status>> {
        match op {
            QueueOp::CreateCompletion { id, entries, iova, vector } => {
                let made = self.add_completion(id, entries, iova, vector);
                if made.is_ok() {
                    self.shared.queue_table.open_completion(id, entries, vector, number);
                }
                Some(made.map(|()| 0))
            }
            QueueOp::CreateSubmission { id, cq, entries, iova } => {
                let made = self.add_submission(id, cq, entries, iova);
                if made.is_ok() {
                    self.shared.queue_table.open_submission(id, entries, number);
                }
                Some(made.map(|()| 0))
            }
            QueueOp::DeleteCompletion { id } => {
                self.shared.queue_table.close_completion(id);
                self.remove_completion(id);
                Some(Ok(0))
            }
            QueueOp::DeleteSubmission { id, .. } => {
                self.shared.queue_table.close_submission(id);
                self.close_submission(id, now);
                None
            }
            QueueOp::Abort { sq, cid, .. } => Some(Ok(u32::from(!self.abort(sq, cid, now)))),
            QueueOp::Shadow(buffers) => Some(self.set_shadow(buffers).map(|()| 0)),
            QueueOp::Flush => {
                self.flush(now, polled);
                None
            }
        }
    }
}
