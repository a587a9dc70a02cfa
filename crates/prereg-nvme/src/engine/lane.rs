//! A lane: the I/O queues that one thread serves, from doorbell to completion entry.
//!
//! A lane owns its queues, the commands under way and its way to the disks; nobody else touches them. It is told what to
//! do by calls and answers with a [`Served`]. It does not wait, and knows no time but the one it is given.
//!
//! All submission queues of a completion queue are on the same lane, so a completion queue has one writer.
//!
//! What goes wrong: a command that is wrong is answered with a status. A queue whose memory is away is left alone for a while
//! (see `outage`); its completions wait. A doorbell that cannot be right is ignored and reported. A disk queue that broke ends
//! every command that was on it with an internal error.

mod fetch;
mod orders;
mod sleep;
mod start;

use std::collections::VecDeque;
use std::sync::Arc;

use prereg::Iova;

use super::board::{head_of, tail_of};
use super::completion::CompletionQueue;
use super::counters::{Counters, Kind};
use super::doorbell::Rung;
use super::error_log::Failure;
use super::event::Event;
use super::flying::{Flight, Flying, Owner};
use super::memory::GuestMemory;
use super::outage::Outage;
use super::runs::Runs;
use super::shadow::{Shadow, ShadowBuffers, look_again};
use super::shared::Shared;
use super::storage::{Broken, Storage, Work, status_of};
use super::submission::SubmissionQueue;
use crate::disk::{Done, Operation};
use crate::spec::{Command, Completion, Status};

/// Commands of a lane that may be under way at a time.
const MOST_FLYING: usize = 1024;

/// What a lane wants done, and what it found.
#[derive(Debug, Default)]
pub struct Served {
    /// Completion queues that have news, and their vectors: interrupt.
    pub signals: Vec<(u16, u16)>,
    /// What to tell the guest.
    pub events: Vec<Event>,
    /// Submission queues whose deletion is done.
    pub closed: Vec<u16>,
    /// Everything that was written before was made durable, or was not.
    pub durable: Option<Status>,
    /// Something moved: serve again before sleeping.
    pub progress: bool,
    /// When to serve again even if nothing rings, in the nanoseconds of [`Lane::serve`].
    pub until: Option<u64>,
}

impl Served {
    fn clear(&mut self) {
        self.signals.clear();
        self.events.clear();
        self.closed.clear();
        self.durable = None;
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

/// The I/O queues of one thread.
#[derive(Debug)]
pub struct Lane<M: GuestMemory, S> {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    memory: M,
    storage: S,
    submission: Vec<(SubmissionQueue<M>, Outage)>,
    completion: Vec<(CompletionQueue<M>, Outage)>,
    shadow: Option<Shadow<M>>,
    page_shift: u32,
    flight: Flight,
    /// Work that the disks had no room for, in order.
    stalled: VecDeque<Work<M::Guard>>,
    turn: usize,
    /// Somebody wants to know of every head, not only where room is waited for.
    watch_heads: bool,
    commands: Vec<Command>,
    runs: Runs,
    done: Vec<Done>,
}

impl<M: GuestMemory, S: Storage<M::Guard>> Lane<M, S> {
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
            flight: Flight::default(),
            stalled: VecDeque::new(),
            turn: 0,
            watch_heads: false,
            commands: Vec::new(),
            runs: Runs::default(),
            done: Vec::new(),
        }
    }

    /// The way to the disks.
    pub fn storage(&mut self) -> &mut S {
        &mut self.storage
    }

    /// Commands under way.
    #[must_use]
    pub fn flying(&self) -> usize {
        self.flight.count()
    }

    /// The completion queues of the lane.
    pub fn completion_ids(&self) -> impl Iterator<Item = u16> + '_ {
        self.completion.iter().map(|(queue, _)| queue.id)
    }

    /// The memory page that the guest chose.
    pub fn set_page_shift(&mut self, shift: u32) {
        self.page_shift = shift;
    }

    /// Whether to keep track of heads even where nobody waits for room: the interrupt pin goes down when they catch up.
    pub fn watch_heads(&mut self, watch: bool) {
        self.watch_heads = watch;
    }

    /// Adds a completion queue of `entries` at `iova`. The caller has checked that there is none of that number.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when the memory cannot be reached.
    pub fn add_completion(
        &mut self,
        id: u16,
        entries: u32,
        iova: Iova,
        vector: Option<u16>,
    ) -> Result<(), Status> {
        let mut queue = CompletionQueue::new(id, entries, iova, vector);
        queue.window().reach(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        queue.window().rest();
        self.begin_shadow(head_of(id), 0);
        self.completion.push((queue, Outage::default()));
        Ok(())
    }

    /// Adds a submission queue whose completion queue is on this lane.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when the memory cannot be reached.
    pub fn add_submission(&mut self, id: u16, cq: u16, entries: u32, iova: Iova) -> Result<(), Status> {
        let mut queue = SubmissionQueue::new(id, cq, entries, iova);
        queue.window().reach(&self.memory).map_err(|_| Status::DATA_TRANSFER)?;
        queue.window().rest();
        self.begin_shadow(tail_of(id), 0);
        self.submission.push((queue, Outage::default()));
        Ok(())
    }

    /// Takes a completion queue away.
    pub fn remove_completion(&mut self, id: u16) {
        self.completion.retain(|(queue, _)| queue.id != id);
    }

    /// Begins to delete a submission queue: nothing more is taken from it, what has not begun is aborted, and
    /// [`Served::closed`] tells when the rest is done.
    pub fn close_submission(&mut self, id: u16, now: u64) {
        if let Some((queue, _)) = self.submission.iter_mut().find(|(queue, _)| queue.id == id) {
            queue.closing = true;
        }
        self.drop_stalled(|sq, _| sq == id, Status::ABORTED_BY_DELETION, now);
    }

    /// Ends a command that has not begun; says whether there was one.
    pub fn abort(&mut self, sq: u16, cid: u16, now: u64) -> bool {
        self.drop_stalled(|one, other| one == sq && other == cid, Status::ABORT_REQUESTED, now)
    }

    /// Uses shadow doorbells from now on.
    ///
    /// # Errors
    /// [`Status::DATA_TRANSFER`] when the memory cannot be reached; then nothing changes.
    pub fn set_shadow(&mut self, buffers: ShadowBuffers) -> Result<(), Status> {
        let mut shadow = Shadow::new(buffers);
        for (queue, _) in &self.submission {
            shadow.begin(&self.memory, tail_of(queue.id), queue.tail()).map_err(|_| Status::DATA_TRANSFER)?;
        }
        for (queue, _) in &self.completion {
            shadow.begin(&self.memory, head_of(queue.id), queue.head()).map_err(|_| Status::DATA_TRANSFER)?;
        }
        for (queue, _) in &mut self.submission {
            queue.doorbell.begin(queue.tail());
        }
        for (queue, _) in &mut self.completion {
            queue.doorbell.begin(queue.head());
        }
        self.shadow = Some(shadow);
        Ok(())
    }

    /// Makes everything that was written durable, on all disks; [`Served::durable`] tells when, of this call or a later one.
    pub fn flush(&mut self, now: u64, served: &mut Served) {
        let tag = self.flight.begin(Flying {
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
        self.part_done(tag, Status::SUCCESS, now, served);
    }

    /// Gives holds of queues back that lie in what is about to be unmapped.
    pub fn give_back_in(&mut self, iova: Iova, bytes: u64) {
        for (queue, _) in &mut self.submission {
            queue.window().give_back_in(iova, bytes);
        }
        for (queue, _) in &mut self.completion {
            queue.window().give_back_in(iova, bytes);
        }
        for window in self.shadow.iter_mut().flat_map(Shadow::windows) {
            window.give_back_in(iova, bytes);
        }
    }

    /// Forgets all queues at once, and every command that has not begun. What has begun goes on until
    /// [`flying`](Self::flying) is 0; nobody is answered.
    pub fn halt(&mut self) {
        self.submission.clear();
        self.completion.clear();
        self.shadow = None;
        for work in std::mem::take(&mut self.stalled) {
            self.part_done(work.tag, Status::ABORT_REQUESTED, 0, &mut Served::default());
        }
    }

    /// Does what there is to do at `now`, in nanoseconds of a clock that never goes back.
    ///
    /// # Errors
    /// [`Broken`] when a disk queue broke. The storage is to be dropped, which ends what was on it, and
    /// [`fail_all`](Self::fail_all) called.
    pub fn serve(&mut self, now: u64, served: &mut Served) -> Result<(), Broken> {
        served.clear();
        self.collect(now, served)?;
        self.submit_stalled(served);
        self.fetch(now, served);
        self.deliver(now, served);
        self.finish_closing(served);
        self.rest();
        self.counters.flying(self.flight.count() as u64);
        Ok(())
    }

    /// As [`serve`](Self::serve) for a function that may not reach memory: what has begun ends and what needs no guest memory is begun,
    /// but no command is taken and no completion is put.
    ///
    /// # Errors
    /// As for [`serve`](Self::serve).
    pub fn serve_without_memory(&mut self, now: u64, served: &mut Served) -> Result<(), Broken> {
        served.clear();
        self.collect(now, served)?;
        self.submit_without_memory(served);
        self.finish_closing(served);
        self.rest();
        self.counters.flying(self.flight.count() as u64);
        Ok(())
    }

    /// Ends every command under way with an internal error: their disk is gone.
    pub fn fail_all(&mut self, now: u64, served: &mut Served) {
        self.stalled.clear();
        for tag in self.flight.tags() {
            if let Some(flying) = self.flight.get(tag) {
                flying.parts = 1;
            }
            self.part_done(tag, Status::INTERNAL, now, served);
        }
        served.events.push(Event::PersistentInternalError);
        // The completions are put with the next `serve`, if the function may reach memory.
        served.progress = true;
    }

    fn begin_shadow(&mut self, at: usize, value: u32) {
        if let Some(shadow) = &mut self.shadow {
            // A buffer that cannot be reached is met again by whoever looks for the doorbell.
            let _ = shadow.begin(&self.memory, at, value);
        }
    }

    fn collect(&mut self, now: u64, served: &mut Served) -> Result<(), Broken> {
        let mut done = std::mem::take(&mut self.done);
        let collected = self.storage.collect(&mut done);
        for Done { tag, result } in done.drain(..) {
            served.progress = true;
            let status = match (&result, self.flight.get(tag)) {
                (Ok(()), _) => Status::SUCCESS,
                (Err(fault), flying) => status_of(fault, flying.map_or(Kind::Other, |flying| flying.kind)),
            };
            self.part_done(tag, status, now, served);
        }
        self.done = done;
        collected
    }

    fn submit_stalled(&mut self, served: &mut Served) {
        while let Some(work) = self.stalled.pop_front() {
            match self.storage.submit(work) {
                Ok(()) => served.progress = true,
                Err(work) => {
                    self.stalled.push_front(work);
                    return;
                }
            }
        }
    }

    /// Flushes of the controller and the like: they do not wait behind work that waits for the guest's memory.
    fn submit_without_memory(&mut self, served: &mut Served) {
        for _ in 0..self.stalled.len() {
            let Some(work) = self.stalled.pop_front() else { return };
            if !work.data.is_empty() {
                self.stalled.push_back(work);
                continue;
            }
            match self.storage.submit(work) {
                Ok(()) => served.progress = true,
                Err(work) => self.stalled.push_back(work),
            }
        }
    }

    fn submit(&mut self, work: Work<M::Guard>) {
        if let Some(flying) = self.flight.get(work.tag) {
            flying.parts += 1;
        }
        if !self.stalled.is_empty() {
            self.stalled.push_back(work);
        } else if let Err(work) = self.storage.submit(work) {
            self.stalled.push_back(work);
        }
    }

    /// The same operation on every namespace.
    fn submit_all(&mut self, tag: u64, operation: Operation) {
        let count = self.shared.namespaces.count();
        for nsid in 1..=count {
            self.submit(Work { nsid, tag, operation: operation.clone(), data: Vec::new() });
        }
    }

    /// A part of a command is done, perhaps the last one.
    fn part_done(&mut self, tag: u64, status: Status, now: u64, served: &mut Served) {
        let Some(flying) = self.flight.get(tag) else { return };
        flying.parts = flying.parts.saturating_sub(1);
        if flying.status.is_success() {
            flying.status = status;
        }
        if flying.parts > 0 {
            return;
        }
        let Some(flying) = self.flight.end(tag) else { return };
        match flying.owner {
            Owner::Controller => served.durable = Some(flying.status),
            Owner::Guest { sq, cid } => self.answer(sq, cid, &flying, now),
        }
    }

    fn answer(&mut self, sq: u16, cid: u16, flying: &Flying, now: u64) {
        if flying.status.is_success() {
            self.counters.succeeded(flying.kind, flying.bytes, now.saturating_sub(flying.started));
        } else {
            self.counters.failed(flying.status);
            self.note(Some((sq, cid)), flying.status, flying.nsid, flying.lba);
        }
        // After a halt there is nobody to tell.
        let Some((queue, _)) = self.submission.iter_mut().find(|(queue, _)| queue.id == sq) else { return };
        queue.flying = queue.flying.saturating_sub(1);
        let completion =
            Completion { result: 0, sq_head: queue.head(), sq_id: sq, cid, status: flying.status };
        let cq = queue.cq;
        if let Some((queue, _)) = self.completion.iter_mut().find(|(queue, _)| queue.id == cq) {
            queue.push(completion);
        }
    }

    fn note(&self, command: Option<(u16, u16)>, status: Status, nsid: u32, lba: u64) {
        self.shared.errors().note(Failure { command, status, nsid, lba });
    }

    fn deliver(&mut self, now: u64, served: &mut Served) {
        for (queue, outage) in &mut self.completion {
            let register = self.shared.board.head(queue.id);
            let word = Shadow::word(&mut self.shadow, &self.memory, head_of(queue.id));
            served.wake_at(look_again(word, now));
            match queue.listen(register, word, now) {
                // The interrupt pin must not take what was read for unread.
                Ok(Some(Rung::Memory(head))) => self.shared.board.note_head(queue.id, Some(head)),
                Ok(Some(Rung::Register(_))) => self.shared.board.note_head(queue.id, None),
                Ok(None) => {}
                Err(bad) => served.events.push(bad.into()),
            }
            served.wake_at(queue.doorbell.due());
            let mut put = 0;
            if queue.backlog() > 0 && outage.may_try(now) {
                match queue.deliver(&self.memory, &mut put) {
                    Ok(()) => outage.over(),
                    Err(_) => {
                        queue.window().give_back();
                        if outage.met(now) {
                            served.events.push(Event::PersistentInternalError);
                        }
                    }
                }
            }
            if queue.backlog() > 0 {
                served.wake_at(outage.next());
            } else {
                // Nothing waits for the memory, so nothing is tried.
                outage.over();
            }
            if put > 0 {
                served.progress = true;
                self.shared.board.posted(queue.id, queue.tail());
                if queue.unsignaled == 0 {
                    queue.since = now;
                }
                queue.unsignaled += put;
            }
            let (Some(vector), true) = (queue.vector, queue.unsignaled > 0) else { continue };
            if let Some((time, threshold)) = self.shared.patience(vector) {
                let due = queue.since.saturating_add(time);
                if queue.unsignaled < threshold && now < due {
                    served.wake_at(Some(due));
                    continue;
                }
            }
            queue.unsignaled = 0;
            served.signals.push((queue.id, vector));
            self.counters.interrupted(1);
        }
    }

    fn finish_closing(&mut self, served: &mut Served) {
        for (queue, _) in self.submission.iter().filter(|(queue, _)| queue.closing && queue.flying == 0) {
            // A completion queue that is full must not keep its submission queue alive.
            if let Some((completion, _)) = self.completion.iter_mut().find(|(one, _)| one.id == queue.cq) {
                completion.forget(queue.id);
            }
            served.closed.push(queue.id);
            served.progress = true;
        }
        self.submission.retain(|(queue, _)| !(queue.closing && queue.flying == 0));
    }

    /// Takes work back that no disk has begun. A command is ended only if none of it had begun.
    fn drop_stalled(&mut self, which: impl Fn(u16, u16) -> bool, status: Status, now: u64) -> bool {
        let mut dropped = Vec::new();
        let mut kept = VecDeque::new();
        for work in std::mem::take(&mut self.stalled) {
            let owner = self.flight.get(work.tag).map(|flying| flying.owner);
            match owner {
                Some(Owner::Guest { sq, cid }) if which(sq, cid) => dropped.push(work.tag),
                _ => kept.push_back(work),
            }
        }
        self.stalled = kept;
        let found = !dropped.is_empty();
        for tag in dropped {
            self.part_done(tag, status, now, &mut Served::default());
        }
        found
    }
}
