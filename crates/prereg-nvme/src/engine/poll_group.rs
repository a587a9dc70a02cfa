//! A poll group: the I/O queues of one thread, from doorbell to completion entry.
//!
//! A poll group owns its queues, their commands in flight and the queues to the disks. It never waits, and has no clock but the
//! time it is given.
//!
//! All submission queues of a completion queue are in the same poll group, so a completion queue has one writer.
//!
//! Errors: an invalid command ends with a status. A queue whose memory cannot be reached is retried later (see `backoff`); its
//! completions wait. An invalid doorbell value is ignored and reported. When a disk queue fails, every command on it ends with
//! an internal error.

mod fetch;
mod ops;
mod requests;
mod sleep;
mod start;

use std::collections::VecDeque;
use std::sync::Arc;

use prereg::Iova;

use super::async_event::AsyncEvent;
use super::backoff::Backoff;
use super::completion::CompletionQueue;
use super::counters::{Counters, Kind};
use super::doorbell::DoorbellValue;
use super::error_log::Failure;
use super::in_flight::{InFlight, InFlightTable, Owner};
use super::memory::GuestMemory;
use super::queue_table::{head_of, tail_of};
use super::sg_list::SgList;
use super::shadow::{Shadow, ShadowBuffers, retry_at};
use super::shared::Shared;
use super::storage::{Broken, Storage};
use super::submission::SubmissionQueue;
use crate::disk::{DiskFault, Done, Operation, Request};
use crate::spec::{Command, Completion, Status};

/// Commands of a poll group that may be in flight at a time.
const MAX_IN_FLIGHT: usize = 1024;

/// The result of [`PollGroup::poll`].
#[derive(Debug, Default)]
pub struct PollResult {
    /// Completion queues to interrupt for, and their vectors.
    pub signals: Vec<(u16, u16)>,
    /// Events to report to the guest.
    pub events: Vec<AsyncEvent>,
    /// Submission queues whose deletion is complete.
    pub closed: Vec<u16>,
    /// A flush of all disks ended with this status.
    pub durable: Option<Status>,
    /// Requests that the disks could not perform, for the operator. Not compares that found a difference.
    pub failed: Vec<FailedRequest>,
    /// There was something to do: poll again before sleeping.
    pub progress: bool,
    /// When to poll again without a doorbell, on the clock of [`PollGroup::poll`].
    pub until: Option<u64>,
}

impl PollResult {
    fn clear(&mut self) {
        self.signals.clear();
        self.events.clear();
        self.closed.clear();
        self.durable = None;
        self.failed.clear();
        self.progress = false;
        self.until = None;
    }

    fn wake_at(&mut self, when: Option<u64>) {
        self.until = match (self.until, when) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// A request that a disk could not perform.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FailedRequest {
    /// The namespace of the command; 0 for all.
    pub nsid: u32,
    /// The kind of the command.
    pub kind: Kind,
    /// Its first block.
    pub lba: u64,
    /// The disk's reason.
    pub fault: DiskFault,
    /// The status for the guest.
    pub status: Status,
}

/// The I/O queues of one thread.
#[derive(Debug)]
pub struct PollGroup<M: GuestMemory, S> {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    memory: M,
    storage: S,
    submission: Vec<(SubmissionQueue<M>, Backoff)>,
    completion: Vec<(CompletionQueue<M>, Backoff)>,
    shadow: Option<Shadow<M>>,
    page_shift: u32,
    in_flight: InFlightTable,
    /// Disk requests that found a disk queue full, in order.
    stalled: VecDeque<(u32, Request<M::Guard>)>,
    next_queue: usize,
    /// Wake for every head doorbell, not only where a completion waits for a free entry.
    watch_heads: bool,
    commands: Vec<Command>,
    sg_list: SgList,
    done: Vec<Done>,
}

impl<M: GuestMemory, S: Storage<M::Guard>> PollGroup<M, S> {
    /// Without queues.
    pub fn new(shared: Arc<Shared>, counters: Arc<Counters>, memory: M, storage: S) -> Self {
        Self {
            shared,
            counters,
            memory,
            storage,
            submission: Vec::new(),
            completion: Vec::new(),
            shadow: None,
            page_shift: 12,
            in_flight: InFlightTable::default(),
            stalled: VecDeque::new(),
            next_queue: 0,
            watch_heads: false,
            commands: Vec::new(),
            sg_list: SgList::default(),
            done: Vec::new(),
        }
    }

    /// The queues to the disks.
    pub fn storage(&mut self) -> &mut S {
        &mut self.storage
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.count()
    }

    /// The completion queues.
    pub(crate) fn completion_ids(&self) -> impl Iterator<Item = u16> + '_ {
        self.completion.iter().map(|(queue, _)| queue.id)
    }

    /// Sets the memory page size (CC.MPS).
    pub fn set_page_shift(&mut self, shift: u32) {
        self.page_shift = shift;
    }

    /// Sets whether to follow every head: INTx is deasserted when a head reaches the tail.
    pub(crate) fn watch_heads(&mut self, watch: bool) {
        self.watch_heads = watch;
    }

    /// Adds completion queue `id`, which must not exist.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when its memory cannot be reached.
    pub(crate) fn add_completion(
        &mut self,
        id: u16,
        entries: u32,
        iova: Iova,
        vector: Option<u16>,
    ) -> Result<(), Status> {
        let mut queue = CompletionQueue::new(id, entries, iova, vector);
        queue.ring_memory().hold(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        queue.ring_memory().end_batch();
        self.init_shadow(head_of(id), 0);
        self.completion.push((queue, Backoff::default()));
        Ok(())
    }

    /// Adds a submission queue whose completion queue is in this poll group.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when its memory cannot be reached.
    pub(crate) fn add_submission(
        &mut self,
        id: u16,
        cq: u16,
        entries: u32,
        iova: Iova,
    ) -> Result<(), Status> {
        let mut queue = SubmissionQueue::new(id, cq, entries, iova);
        queue.ring_memory().hold(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        queue.ring_memory().end_batch();
        self.init_shadow(tail_of(id), 0);
        self.submission.push((queue, Backoff::default()));
        Ok(())
    }

    /// Removes a completion queue.
    pub(crate) fn remove_completion(&mut self, id: u16) {
        self.completion.retain(|(queue, _)| queue.id != id);
    }

    /// Starts the deletion of a submission queue: no more commands are fetched, commands that have not started are aborted, and
    /// [`PollResult::closed`] reports when the others are done.
    pub(crate) fn close_submission(&mut self, id: u16, now: u64) {
        if let Some((queue, _)) = self.submission.iter_mut().find(|(queue, _)| queue.id == id) {
            queue.closing = true;
        }
        self.drop_stalled(|sq, _| sq == id, Status::ABORTED_BY_DELETION, now);
    }

    /// Aborts a command that has not started; returns whether there was one.
    pub fn abort(&mut self, sq: u16, cid: u16, now: u64) -> bool {
        self.drop_stalled(|one, other| one == sq && other == cid, Status::ABORT_REQUESTED, now)
    }

    /// Starts to use shadow doorbells.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when their memory cannot be reached; nothing changes then.
    pub(crate) fn set_shadow(&mut self, buffers: ShadowBuffers) -> Result<(), Status> {
        let mut shadow = Shadow::new(buffers);
        for (queue, _) in &self.submission {
            shadow.init(&self.memory, tail_of(queue.id), queue.tail()).map_err(|_| Status::DATA_TRANSFER)?;
        }
        for (queue, _) in &self.completion {
            shadow.init(&self.memory, head_of(queue.id), queue.head()).map_err(|_| Status::DATA_TRANSFER)?;
        }
        for (queue, _) in &mut self.submission {
            queue.doorbell.init(queue.tail());
        }
        for (queue, _) in &mut self.completion {
            queue.doorbell.init(queue.head());
        }
        self.shadow = Some(shadow);
        Ok(())
    }

    /// Flushes all disks; [`PollResult::durable`] of this or a later call reports the end.
    pub fn flush(&mut self, now: u64, polled: &mut PollResult) {
        let tag = self.in_flight.begin(InFlight {
            owner: Owner::Controller,
            kind: Kind::Flush,
            started: now,
            bytes: 0,
            nsid: 0,
            lba: 0,
            parts: 1,
            status: Status::SUCCESS,
        });
        self.submit_all(tag, Operation::Flush);
        self.part_done(tag, Status::SUCCESS, now, polled);
    }

    /// Releases holds of queue memory in a range that is about to be unmapped.
    pub fn release_in(&mut self, iova: Iova, bytes: u64) {
        for (queue, _) in &mut self.submission {
            queue.ring_memory().release_in(iova, bytes);
        }
        for (queue, _) in &mut self.completion {
            queue.ring_memory().release_in(iova, bytes);
        }
        for buffer in self.shadow.iter_mut().flat_map(Shadow::buffers) {
            buffer.release_in(iova, bytes);
        }
    }

    /// Drops all queues, and every command that has not started. Commands that have started go on until
    /// [`in_flight`](Self::in_flight) is 0; none is completed.
    pub fn halt(&mut self) {
        self.submission.clear();
        self.completion.clear();
        self.shadow = None;
        for (_, request) in std::mem::take(&mut self.stalled) {
            self.part_done(request.tag, Status::ABORT_REQUESTED, 0, &mut PollResult::default());
        }
    }

    /// Fetches commands, starts them and posts completions. `now` is in nanoseconds of a monotonic clock.
    ///
    /// # Errors
    /// [`Broken`] when a disk queue failed. The caller drops the storage, which ends its requests, and calls
    /// [`fail_all`](Self::fail_all).
    pub fn poll(&mut self, now: u64, polled: &mut PollResult) -> Result<(), Broken> {
        polled.clear();
        self.collect(now, polled)?;
        self.submit_stalled(polled);
        self.fetch(now, polled);
        self.deliver(now, polled);
        self.finish_closing(polled);
        self.end_batch();
        self.counters.set_in_flight(self.in_flight.count() as u64);
        Ok(())
    }

    /// As [`poll`](Self::poll), while bus mastering is disabled: requests that have started complete and those without guest
    /// memory start, but no command is fetched and no completion posted.
    ///
    /// # Errors
    /// As for [`poll`](Self::poll).
    pub(crate) fn poll_without_memory(&mut self, now: u64, polled: &mut PollResult) -> Result<(), Broken> {
        polled.clear();
        self.collect(now, polled)?;
        self.submit_without_memory(polled);
        self.finish_closing(polled);
        self.end_batch();
        self.counters.set_in_flight(self.in_flight.count() as u64);
        Ok(())
    }

    /// Ends every command in flight with an internal error: the disk queues are gone.
    pub fn fail_all(&mut self, now: u64, polled: &mut PollResult) {
        self.stalled.clear();
        for tag in self.in_flight.tags() {
            if let Some(in_flight) = self.in_flight.get(tag) {
                in_flight.parts = 1;
            }
            self.part_done(tag, Status::INTERNAL, now, polled);
        }
        polled.events.push(AsyncEvent::PersistentInternalError);
        // The completions are posted by the next `poll`, if bus mastering is enabled.
        polled.progress = true;
    }

    fn init_shadow(&mut self, at: usize, value: u32) {
        if let Some(shadow) = &mut self.shadow {
            // A buffer that cannot be reached is found again when the doorbell is polled.
            let _ = shadow.init(&self.memory, at, value);
        }
    }

    fn answer(&mut self, sq: u16, cid: u16, in_flight: &InFlight, now: u64) {
        if in_flight.status.is_success() {
            self.counters.succeeded(in_flight.kind, in_flight.bytes, now.saturating_sub(in_flight.started));
        } else {
            self.counters.failed(in_flight.status);
            self.log_error(Some((sq, cid)), in_flight.status, in_flight.nsid, in_flight.lba);
        }
        // After `halt` there is no queue.
        let Some((queue, _)) = self.submission.iter_mut().find(|(queue, _)| queue.id == sq) else { return };
        queue.in_flight = queue.in_flight.saturating_sub(1);
        let completion =
            Completion { result: 0, sq_head: queue.head(), sq_id: sq, cid, status: in_flight.status };
        let cq = queue.cq;
        if let Some((queue, _)) = self.completion.iter_mut().find(|(queue, _)| queue.id == cq) {
            queue.push(completion);
        }
    }

    fn log_error(&self, command: Option<(u16, u16)>, status: Status, nsid: u32, lba: u64) {
        self.shared.errors().push(Failure { command, status, nsid, lba });
    }

    fn deliver(&mut self, now: u64, polled: &mut PollResult) {
        for (queue, backoff) in &mut self.completion {
            let register = self.shared.queue_table.head(queue.id);
            let shadow = Shadow::value(&mut self.shadow, &self.memory, head_of(queue.id));
            polled.wake_at(retry_at(shadow, now));
            match queue.update_doorbell(register, shadow, now) {
                // INTx must not count consumed entries as unread.
                Ok(Some(DoorbellValue::Shadow(head))) => {
                    self.shared.queue_table.set_shadow_head(queue.id, Some(head));
                }
                Ok(Some(DoorbellValue::Register(_))) => {
                    self.shared.queue_table.set_shadow_head(queue.id, None);
                }
                Ok(None) => {}
                Err(bad) => polled.events.push(bad.into()),
            }
            polled.wake_at(queue.doorbell.due());
            let mut put = 0;
            if queue.backlog() > 0 && backoff.may_try(now) {
                match queue.deliver(&self.memory, &mut put) {
                    Ok(()) => backoff.reset(),
                    Err(_) => {
                        queue.ring_memory().release();
                        if backoff.failed(now) {
                            polled.events.push(AsyncEvent::PersistentInternalError);
                        }
                    }
                }
            }
            if queue.backlog() > 0 {
                polled.wake_at(backoff.next());
            } else {
                // Nothing waits for the memory, so nothing is retried.
                backoff.reset();
            }
            if put > 0 {
                polled.progress = true;
                self.shared.queue_table.set_posted(queue.id, queue.tail());
                if queue.unsignaled == 0 {
                    queue.since = now;
                }
                queue.unsignaled += put;
            }
            let (Some(vector), true) = (queue.vector, queue.unsignaled > 0) else { continue };
            if let Some((time, threshold)) = self.shared.coalescing_limits(vector) {
                let due = queue.since.saturating_add(time);
                if queue.unsignaled < threshold && now < due {
                    polled.wake_at(Some(due));
                    continue;
                }
            }
            queue.unsignaled = 0;
            polled.signals.push((queue.id, vector));
            self.counters.interrupted(1);
        }
    }

    fn finish_closing(&mut self, polled: &mut PollResult) {
        for (queue, _) in self.submission.iter().filter(|(queue, _)| queue.closing && queue.in_flight == 0) {
            // A full completion queue must not delay the deletion.
            if let Some((completion, _)) = self.completion.iter_mut().find(|(one, _)| one.id == queue.cq) {
                completion.forget(queue.id);
            }
            polled.closed.push(queue.id);
            polled.progress = true;
        }
        self.submission.retain(|(queue, _)| !(queue.closing && queue.in_flight == 0));
    }
}
