//! Orders of the admin queue, carried out on a lane.

use super::{Lane, Served};
use crate::engine::admin::Order;
use crate::engine::memory::GuestMemory;
use crate::engine::storage::Storage;
use crate::spec::Status;

impl<M: GuestMemory, S: Storage<M::Guard>> Lane<M, S> {
    /// Carries an order out. `number` is the lane's own, for the doorbells of the queues it makes.
    ///
    /// `None`: it will be done with a later [`Served::closed`] or [`Served::durable`].
    pub fn carry_out(
        &mut self,
        order: Order,
        number: u32,
        now: u64,
        served: &mut Served,
    ) -> Option<Result<u32, Status>> {
        match order {
            Order::CreateCompletion { id, entries, iova, vector } => {
                let made = self.add_completion(id, entries, iova, vector);
                if made.is_ok() {
                    self.shared.board.open_completion(id, entries, vector, number);
                }
                Some(made.map(|()| 0))
            }
            Order::CreateSubmission { id, cq, entries, iova } => {
                let made = self.add_submission(id, cq, entries, iova);
                if made.is_ok() {
                    self.shared.board.open_submission(id, entries, number);
                }
                Some(made.map(|()| 0))
            }
            Order::DeleteCompletion { id } => {
                self.shared.board.close_completion(id);
                self.remove_completion(id);
                Some(Ok(0))
            }
            Order::DeleteSubmission { id, .. } => {
                self.shared.board.close_submission(id);
                self.close_submission(id, now);
                None
            }
            Order::Abort { sq, cid, .. } => Some(Ok(u32::from(!self.abort(sq, cid, now)))),
            Order::Shadow(buffers) => Some(self.set_shadow(buffers).map(|()| 0)),
            Order::Flush => {
                self.flush(now, served);
                None
            }
        }
    }
}
