//! Starting a command: from the queue entry to disk requests.

use std::sync::Arc;

use prereg::Access;

use super::{PollGroup, PollResult};
use crate::disk::{Operation, Request, Segment};
use crate::engine::counters::Kind;
use crate::engine::decode::{DecodeContext, Direction, IoCommand, RANGE_BYTES, decode, ranges};
use crate::engine::in_flight::{InFlight, Owner};
use crate::engine::memory::GuestMemory;
use crate::engine::namespace::Namespace;
use crate::engine::sg_list::SgEntry;
use crate::engine::storage::Storage;
use crate::engine::{prp, sgl};
use crate::spec::{Command, DataPointer, Status};

impl<M: GuestMemory, S: Storage<M::Guard>> PollGroup<M, S> {
    /// Starts a command that was fetched, or completes it with an error.
    pub(super) fn begin(&mut self, sq: u16, command: &Command, now: u64, polled: &mut PollResult) {
        let tag = self.in_flight.begin(InFlight {
            owner: Owner::Guest { sq, cid: command.cid() },
            kind: Kind::of(command.opcode()),
            started: now,
            bytes: 0,
            nsid: command.nsid(),
            lba: command.quad(10),
            // One until all requests are submitted, so that one that ends at once does not complete the command.
            parts: 1,
            status: Status::SUCCESS,
        });
        let status = match self.start(tag, command) {
            Ok(()) => Status::SUCCESS,
            Err(status) => status,
        };
        self.part_done(tag, status, now, polled);
    }

    fn start(&mut self, tag: u64, command: &Command) -> Result<(), Status> {
        let shared = Arc::clone(&self.shared);
        let context = DecodeContext {
            namespaces: &shared.namespaces,
            max_transfer_bytes: shared.limits.max_transfer_bytes(),
            write_cache: shared.write_cache(),
        };
        match decode(command, context)? {
            IoCommand::Nop => Ok(()),
            IoCommand::NoData { nsid: None, operation } => {
                self.submit_all(tag, operation);
                Ok(())
            }
            IoCommand::NoData { nsid: Some(nsid), operation } => {
                if let (Operation::WriteZeroes { bytes, .. }, Some(in_flight)) =
                    (&operation, self.in_flight.get(tag))
                {
                    in_flight.bytes = *bytes;
                }
                self.submit(nsid, Request { tag, operation, data: Vec::new() });
                Ok(())
            }
            IoCommand::Deallocate { nsid, ranges: count } => {
                let mut raw = vec![0; (count * RANGE_BYTES) as usize];
                self.locate(command.data(), raw.len() as u64, Direction::FromGuest)?;
                self.gather(&mut raw)?;
                let namespace = shared.namespaces.find(nsid).ok_or(Status::INVALID_NAMESPACE)?;
                let ranges = ranges(namespace, &raw)?;
                if let Some(in_flight) = self.in_flight.get(tag) {
                    in_flight.bytes = ranges.iter().map(|(_, bytes)| bytes).sum();
                }
                if !ranges.is_empty() {
                    let operation = Operation::Discard { ranges };
                    self.submit(nsid, Request { tag, operation, data: Vec::new() });
                }
                Ok(())
            }
            IoCommand::Transfer { nsid, operation, bytes, direction } => {
                self.locate(command.data(), bytes, direction)?;
                if let Some(in_flight) = self.in_flight.get(tag) {
                    in_flight.bytes = bytes;
                }
                let block = shared.namespaces.find(nsid).map_or(9, Namespace::block_shift);
                self.transfer(nsid, tag, operation, direction, 1 << block)
            }
        }
    }

    /// Puts the memory of a command's data into `sg_list`.
    fn locate(&mut self, data: DataPointer, bytes: u64, direction: Direction) -> Result<(), Status> {
        self.sg_list.clear();
        match data {
            DataPointer::Prp(first, second) => {
                prp::walk(&self.memory, (first, second), bytes, self.page_shift, &mut self.sg_list)
            }
            DataPointer::Sgl(first, second) => {
                sgl::walk(&self.memory, (first, second), bytes, direction.buckets(), &mut self.sg_list)
            }
            DataPointer::Reserved => Err(Status::INVALID_FIELD),
        }
    }

    /// Copies the data in `sg_list` from guest memory.
    fn gather(&self, into: &mut [u8]) -> Result<(), Status> {
        let mut left = into;
        for entry in self.sg_list.entries() {
            if let SgEntry::Memory { iova, bytes } = entry {
                let (piece, rest) = left.split_at_mut((*bytes as usize).min(left.len()));
                self.memory.read(*iova, piece).map_err(|_| Status::DATA_TRANSFER)?;
                left = rest;
            }
        }
        Ok(())
    }

    /// Holds the memory and submits the transfer: one request, or several around bit buckets.
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
        let mut data = Vec::with_capacity(self.sg_list.entries().len());
        let (mut begin, mut at) = (0, 0);
        for entry in self.sg_list.entries() {
            match *entry {
                SgEntry::Memory { iova, bytes } => {
                    let hold = self.memory.hold(iova, bytes, access).map_err(|_| Status::DATA_TRANSFER)?;
                    data.push(Segment { hold, offset: 0, bytes });
                    at += bytes;
                }
                SgEntry::BitBucket { bytes } => {
                    pieces.push((begin, std::mem::take(&mut data)));
                    at += bytes;
                    begin = at;
                }
            }
        }
        if pieces.is_empty() {
            self.submit(nsid, Request { tag, operation, data });
            return Ok(());
        }
        pieces.push((begin, data));
        pieces.retain(|(_, data)| !data.is_empty());
        // A disk reads whole blocks, so a bit bucket must leave out whole blocks.
        let is_whole = |(begin, data): &(u64, Vec<Segment<M::Guard>>)| {
            begin % block == 0 && data.iter().map(|segment| segment.bytes).sum::<u64>() % block == 0
        };
        if !pieces.iter().all(is_whole) {
            return Err(Status::SGL_DATA_LENGTH);
        }
        for (begin, data) in pieces {
            let operation = match &operation {
                Operation::Read { offset } => Operation::Read { offset: offset + begin },
                other => other.clone(),
            };
            self.submit(nsid, Request { tag, operation, data });
        }
        Ok(())
    }
}
