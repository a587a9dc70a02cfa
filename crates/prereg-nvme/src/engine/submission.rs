//! A submission queue: a ring in guest memory that the guest fills and a poll group empties.

use prereg::{Access, Iova};

use super::doorbell::{Doorbell, ShadowValue, distance};
use super::memory::{GuestGuard, GuestMemory, Unreachable};
use super::queue_table::BadDoorbell;
use super::ring_memory::RingMemory;
use crate::spec::Command;
use crate::spec::number::SUBMISSION_BYTES;

/// Commands fetched at a time.
pub(crate) const FETCH: usize = 16;

/// A submission queue.
#[derive(Debug)]
pub(crate) struct SubmissionQueue<M: GuestMemory> {
    /// Queue identifier.
    pub(crate) id: u16,
    /// Its completion queue.
    pub(crate) cq: u16,
    /// Commands fetched and not completed yet.
    pub(crate) in_flight: u32,
    /// State of the tail doorbell.
    pub(crate) doorbell: Doorbell,
    /// Being deleted: no more commands are fetched.
    pub(crate) closing: bool,
    entries: u32,
    head: u32,
    tail: u32,
    rejected: Option<u32>,
    ring_memory: RingMemory<M>,
}

impl<M: GuestMemory> SubmissionQueue<M> {
    /// An empty ring of `entries`, at least 2, at `iova`.
    pub(crate) fn new(id: u16, cq: u16, entries: u32, iova: Iova) -> Self {
        let ring_memory = RingMemory::new(iova, u64::from(entries) * SUBMISSION_BYTES, Access::Read);
        Self {
            id,
            cq,
            in_flight: 0,
            doorbell: Doorbell::default(),
            closing: false,
            entries,
            head: 0,
            tail: 0,
            rejected: None,
            ring_memory,
        }
    }

    /// The ring's memory.
    pub(crate) fn ring_memory(&mut self) -> &mut RingMemory<M> {
        &mut self.ring_memory
    }

    /// The head: the next command to fetch.
    pub(crate) fn head(&self) -> u16 {
        self.head as u16
    }

    /// The last valid tail.
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    /// Whether the register or the shadow doorbell has changed.
    pub(crate) fn has_changed(&self, register: u32, shadow: ShadowValue) -> bool {
        match shadow {
            ShadowValue::Absent => self.is_new(register),
            shadow => self.doorbell.has_changed(register, shadow),
        }
    }

    /// Updates the tail from the doorbell at `now`. `register` must be loaded before `shadow`.
    ///
    /// # Errors
    /// [`BadDoorbell`] for an impossible tail, once for each value; the queue is unchanged.
    pub(crate) fn update_doorbell(
        &mut self,
        register: u32,
        shadow: ShadowValue,
        now: u64,
    ) -> Result<(), BadDoorbell> {
        match self.doorbell.next_value(register, shadow, self.tail, self.entries, now) {
            Some(rung) => self.ring(rung.value()),
            None => Ok(()),
        }
    }

    /// Whether `tail` differs from the current tail and from the last rejected one.
    fn is_new(&self, tail: u32) -> bool {
        tail != self.tail && self.rejected != Some(tail)
    }

    /// Commands that were not fetched yet.
    pub(crate) fn waiting(&self) -> u32 {
        distance(self.head, self.tail, self.entries)
    }

    /// Sets the tail.
    ///
    /// # Errors
    /// [`BadDoorbell`] for an impossible tail, once for each value; the queue is unchanged.
    fn ring(&mut self, tail: u32) -> Result<(), BadDoorbell> {
        if !self.is_new(tail) {
            return Ok(());
        }
        // A tail that moved back is one that adds more commands than there are free entries.
        let room = self.entries - 1 - self.waiting();
        if tail >= self.entries || distance(self.tail, tail, self.entries) > room {
            self.rejected = Some(tail);
            return Err(BadDoorbell::Value);
        }
        self.rejected = None;
        self.tail = tail;
        Ok(())
    }

    /// Fetches up to `most` commands, and no more than [`FETCH`].
    ///
    /// # Errors
    /// [`Unreachable`]; nothing was fetched.
    pub(crate) fn fetch(
        &mut self,
        memory: &M,
        most: usize,
        into: &mut Vec<Command>,
    ) -> Result<(), Unreachable> {
        let straight = (self.entries - self.head).min(self.waiting());
        let count = (straight as usize).min(most).min(FETCH);
        if count == 0 {
            return Ok(());
        }
        let mut bytes = [0u8; FETCH * SUBMISSION_BYTES as usize];
        let bytes = &mut bytes[..count * SUBMISSION_BYTES as usize];
        self.ring_memory.hold(memory)?.read(u64::from(self.head) * SUBMISSION_BYTES, bytes)?;
        for raw in bytes.chunks_exact(SUBMISSION_BYTES as usize) {
            let mut entry = [0; SUBMISSION_BYTES as usize];
            entry.copy_from_slice(raw);
            into.push(Command::from_bytes(&entry));
        }
        self.head = (self.head + count as u32) % self.entries;
        Ok(())
    }
}
