//! Disk requests: submission, completion, and those that wait for a free place in a disk queue.

use std::collections::VecDeque;

use super::{FailedRequest, PollGroup, PollResult};
use crate::disk::{DiskFault, Done, Operation, Request};
use crate::engine::counters::Kind;
use crate::engine::in_flight::Owner;
use crate::engine::memory::GuestMemory;
use crate::engine::storage::{Broken, Storage, status_of};
use crate::spec::Status;

impl<M: GuestMemory, S: Storage<M::Guard>> PollGroup<M, S> {
    pub(super) fn collect(&mut self, now: u64, polled: &mut PollResult) -> Result<(), Broken> {
        let mut done = std::mem::take(&mut self.done);
        let collected = self.storage.collect(&mut done);
        for Done { tag, result } in done.drain(..) {
            polled.progress = true;
            let status = match result {
                Ok(()) => Status::SUCCESS,
                Err(fault) => self.failed(tag, fault, polled),
            };
            self.part_done(tag, status, now, polled);
        }
        self.done = done;
        collected
    }

    /// The status of a request that failed, which is reported.
    fn failed(&mut self, tag: u64, fault: DiskFault, polled: &mut PollResult) -> Status {
        let (kind, nsid, lba) = self
            .in_flight
            .get(tag)
            .map_or((Kind::Other, 0, 0), |in_flight| (in_flight.kind, in_flight.nsid, in_flight.lba));
        let status = status_of(&fault, kind);
        if fault != DiskFault::Mismatch {
            polled.failed.push(FailedRequest { nsid, kind, lba, fault, status });
        }
        status
    }

    pub(super) fn submit_stalled(&mut self, polled: &mut PollResult) {
        while let Some((nsid, request)) = self.stalled.pop_front() {
            match self.storage.submit(nsid, request) {
                Ok(()) => polled.progress = true,
                Err(request) => {
                    self.stalled.push_front((nsid, request));
                    return;
                }
            }
        }
    }

    /// Requests without data, such as flushes, do not wait behind those that need guest memory.
    pub(super) fn submit_without_memory(&mut self, polled: &mut PollResult) {
        for _ in 0..self.stalled.len() {
            let Some((nsid, request)) = self.stalled.pop_front() else { return };
            if !request.data.is_empty() {
                self.stalled.push_back((nsid, request));
                continue;
            }
            match self.storage.submit(nsid, request) {
                Ok(()) => polled.progress = true,
                Err(request) => self.stalled.push_back((nsid, request)),
            }
        }
    }

    pub(super) fn submit(&mut self, nsid: u32, request: Request<M::Guard>) {
        if let Some(in_flight) = self.in_flight.get(request.tag) {
            in_flight.parts += 1;
        }
        if !self.stalled.is_empty() {
            self.stalled.push_back((nsid, request));
        } else if let Err(request) = self.storage.submit(nsid, request) {
            self.stalled.push_back((nsid, request));
        }
    }

    /// Submits `operation` to every namespace.
    pub(super) fn submit_all(&mut self, tag: u64, operation: Operation) {
        let count = self.shared.namespaces.count();
        for nsid in 1..=count {
            self.submit(nsid, Request { tag, operation: operation.clone(), data: Vec::new() });
        }
    }

    /// One disk request of a command is done, perhaps the last one.
    pub(super) fn part_done(&mut self, tag: u64, status: Status, now: u64, polled: &mut PollResult) {
        let Some(in_flight) = self.in_flight.get(tag) else { return };
        in_flight.parts = in_flight.parts.saturating_sub(1);
        if in_flight.status.is_success() {
            in_flight.status = status;
        }
        if in_flight.parts > 0 {
            return;
        }
        let Some(in_flight) = self.in_flight.end(tag) else { return };
        match in_flight.owner {
            Owner::Controller => polled.durable = Some(in_flight.status),
            Owner::Guest { sq, cid } => self.answer(sq, cid, &in_flight, now),
        }
    }

    /// Drops requests that no disk has started. A command ends only if none of its requests had started.
    pub(super) fn drop_stalled(
        &mut self,
        which: impl Fn(u16, u16) -> bool,
        status: Status,
        now: u64,
    ) -> bool {
        let mut dropped = Vec::new();
        let mut kept = VecDeque::new();
        for (nsid, request) in std::mem::take(&mut self.stalled) {
            let owner = self.in_flight.get(request.tag).map(|in_flight| in_flight.owner);
            match owner {
                Some(Owner::Guest { sq, cid }) if which(sq, cid) => dropped.push(request.tag),
                _ => kept.push_back((nsid, request)),
            }
        }
        self.stalled = kept;
        let found = !dropped.is_empty();
        for tag in dropped {
            self.part_done(tag, status, now, &mut PollResult::default());
        }
        found
    }
}
