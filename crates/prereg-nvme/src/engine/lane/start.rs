//! The first steps of a command on a lane: from the entry in the queue to work for the disks.

use std::sync::Arc;

use prereg::Access;

use super::{Lane, Served};
use crate::disk::Operation;
use crate::engine::counters::Kind;
use crate::engine::flying::{Flying, Owner};
use crate::engine::memory::GuestMemory;
use crate::engine::namespace::Namespace;
use crate::engine::plan::{Direction, Plan, RANGE_BYTES, Terms, plan, ranges};
use crate::engine::runs::Run;
use crate::engine::storage::{Span, Storage, Work};
use crate::engine::{prp, sgl};
use crate::spec::{Command, DataPointer, Status};

impl<M: GuestMemory, S: Storage<M::Guard>> Lane<M, S> {
    /// A command was taken: checks it and hands it to the disks, or ends it.
    pub(super) fn begin(&mut self, sq: u16, command: &Command, now: u64, served: &mut Served) {
        let tag = self.flight.begin(Flying {
            owner: Owner::Guest { sq, cid: command.cid() },
            kind: Kind::of(command.opcode()),
            started: now,
            bytes: 0,
            nsid: command.nsid(),
            lba: command.quad(10),
            // One for the way up to the disks, so that a part that ends at once does not end the command.
            parts: 1,
            status: Status::SUCCESS,
        });
        let status = match self.start(tag, command) {
            Ok(()) => Status::SUCCESS,
            Err(status) => status,
        };
        self.part_done(tag, status, now, served);
    }

    fn start(&mut self, tag: u64, command: &Command) -> Result<(), Status> {
        let shared = Arc::clone(&self.shared);
        let terms = Terms {
            namespaces: &shared.namespaces,
            most_bytes: shared.limits.most_bytes(),
            write_cache: shared.write_cache(),
        };
        match plan(command, terms)? {
            Plan::Nothing => Ok(()),
            Plan::Plain { nsid: None, operation } => {
                self.submit_all(tag, operation);
                Ok(())
            }
            Plan::Plain { nsid: Some(nsid), operation } => {
                if let (Operation::WriteZeroes { bytes, .. }, Some(flying)) =
                    (&operation, self.flight.get(tag))
                {
                    flying.bytes = *bytes;
                }
                self.submit(Work { nsid, tag, operation, data: Vec::new() });
                Ok(())
            }
            Plan::Deallocate { nsid, ranges: count } => {
                let mut raw = vec![0; (count * RANGE_BYTES) as usize];
                self.locate(command.data(), raw.len() as u64, Direction::FromGuest)?;
                self.gather(&mut raw)?;
                let namespace = shared.namespaces.find(nsid).ok_or(Status::INVALID_NAMESPACE)?;
                let ranges = ranges(namespace, &raw)?;
                if let Some(flying) = self.flight.get(tag) {
                    flying.bytes = ranges.iter().map(|(_, bytes)| bytes).sum();
                }
                if !ranges.is_empty() {
                    self.submit(Work {
                        nsid,
                        tag,
                        operation: Operation::Discard { ranges },
                        data: Vec::new(),
                    });
                }
                Ok(())
            }
            Plan::Transfer { nsid, operation, bytes, direction } => {
                self.locate(command.data(), bytes, direction)?;
                if let Some(flying) = self.flight.get(tag) {
                    flying.bytes = bytes;
                }
                let block = shared.namespaces.find(nsid).map_or(9, Namespace::block_shift);
                self.transfer(nsid, tag, operation, direction, 1 << block)
            }
        }
    }

    /// Finds out where the data of a command are: `runs`.
    fn locate(&mut self, data: DataPointer, bytes: u64, direction: Direction) -> Result<(), Status> {
        self.runs.clear();
        match data {
            DataPointer::Prp(first, second) => {
                prp::walk(&self.memory, (first, second), bytes, self.page_shift, &mut self.runs)
            }
            DataPointer::Sgl(first, second) => {
                sgl::walk(&self.memory, (first, second), bytes, direction.buckets(), &mut self.runs)
            }
            DataPointer::Reserved => Err(Status::INVALID_FIELD),
        }
    }

    /// Copies what `runs` says out of guest memory.
    fn gather(&self, into: &mut [u8]) -> Result<(), Status> {
        let mut left = into;
        for run in self.runs.list() {
            if let Run::Memory { iova, bytes } = run {
                let (piece, rest) = left.split_at_mut((*bytes as usize).min(left.len()));
                self.memory.read(*iova, piece).map_err(|_| Status::DATA_TRANSFER)?;
                left = rest;
            }
        }
        Ok(())
    }

    /// Holds the memory and hands the work over: in one piece, or in several around what is left out.
    fn transfer(
        &mut self,
        nsid: u32,
        tag: u64,
        operation: Operation,
        direction: Direction,
        block: u64,
    ) -> Result<(), Status> {
        let access = match direction {
            Direction::ToGuest => Access::Write,
            Direction::FromGuest => Access::Read,
        };
        let mut pieces = Vec::new();
        let mut data = Vec::with_capacity(self.runs.list().len());
        let (mut begin, mut at) = (0, 0);
        for run in self.runs.list() {
            match *run {
                Run::Memory { iova, bytes } => {
                    let hold = self.memory.hold(iova, bytes, access).map_err(|_| Status::DATA_TRANSFER)?;
                    data.push(Span { hold, bytes });
                    at += bytes;
                }
                Run::Bucket { bytes } => {
                    pieces.push((begin, std::mem::take(&mut data)));
                    at += bytes;
                    begin = at;
                }
            }
        }
        if pieces.is_empty() {
            self.submit(Work { nsid, tag, operation, data });
            return Ok(());
        }
        pieces.push((begin, data));
        pieces.retain(|(_, data)| !data.is_empty());
        // A disk reads whole blocks; a bucket may leave out whole blocks only.
        let is_whole = |(begin, data): &(u64, Vec<Span<M::Guard>>)| {
            begin % block == 0 && data.iter().map(|span| span.bytes).sum::<u64>() % block == 0
        };
        if !pieces.iter().all(is_whole) {
            return Err(Status::SGL_DATA_LENGTH);
        }
        for (begin, data) in pieces {
            let operation = match &operation {
                Operation::Read { offset } => Operation::Read { offset: offset + begin },
                other => other.clone(),
            };
            self.submit(Work { nsid, tag, operation, data });
        }
        Ok(())
    }
}
