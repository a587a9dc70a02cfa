//! A completion queue: a ring in guest memory that a poll_group fills and the guest empties.

use std::collections::VecDeque;

use prereg::{Access, Iova};

use super::doorbell::{Doorbell, DoorbellValue, ShadowValue, distance};
use super::memory::{GuestGuard, GuestMemory, Unreachable};
use super::queue_table::BadDoorbell;
use super::ring_memory::RingMemory;
use crate::spec::Completion;
use crate::spec::number::COMPLETION_BYTES;

/// A ring of completions, and those that wait for room in it.
#[derive(Debug)]
pub struct CompletionQueue<M: GuestMemory> {
    /// Its number.
    pub id: u16,
    /// The interrupt, if it has one.
    pub vector: Option<u16>,
    /// Entries put since the last interrupt.
    pub unsignaled: u32,
    /// How its head is rung.
    pub doorbell: Doorbell,
    /// When the first of them was put, in nanoseconds.
    pub since: u64,
    backlog: VecDeque<Completion>,
    entries: u32,
    tail: u32,
    head: u32,
    phase: bool,
    rejected: Option<u32>,
    ring_memory: RingMemory<M>,
}

impl<M: GuestMemory> CompletionQueue<M> {
    /// An empty ring of `entries`, at least 2, at `iova`.
    #[must_use]
    pub fn new(id: u16, entries: u32, iova: Iova, vector: Option<u16>) -> Self {
        Self {
            id,
            vector,
            unsignaled: 0,
            doorbell: Doorbell::default(),
            since: 0,
            backlog: VecDeque::new(),
            entries,
            tail: 0,
            head: 0,
            phase: true,
            rejected: None,
            ring_memory: RingMemory::new(iova, u64::from(entries) * COMPLETION_BYTES, Access::Write),
        }
    }

    /// Its memory.
    pub fn ring_memory(&mut self) -> &mut RingMemory<M> {
        &mut self.ring_memory
    }

    /// Where the next entry will be put.
    #[must_use]
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// The head that was last believed.
    #[must_use]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Whether the doorbell has something new: its register, and the guest's shadow in memory.
    #[must_use]
    pub fn has_changed(&self, register: u32, shadow: ShadowValue) -> bool {
        match shadow {
            ShadowValue::Absent => self.is_new(register),
            shadow => self.doorbell.has_changed(register, shadow),
        }
    }

    /// Takes over what the doorbell says at `now`: its register, loaded before the guest's shadow in memory. Returns what was
    /// taken over.
    ///
    /// # Errors
    /// [`BadDoorbell`] for a head beyond what was put, once for each; the queue stays as it was.
    pub fn update_doorbell(
        &mut self,
        register: u32,
        shadow: ShadowValue,
        now: u64,
    ) -> Result<Option<DoorbellValue>, BadDoorbell> {
        let Some(rung) = self.doorbell.next_value(register, shadow, self.head, self.entries, now) else {
            return Ok(None);
        };
        Ok(self.ring(rung.value())?.then_some(rung))
    }

    /// Whether `head` is news: neither what it was, nor something rejected before.
    fn is_new(&self, head: u32) -> bool {
        head != self.head && self.rejected != Some(head)
    }

    /// Completions that wait for room.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Takes over the guest's head; false for one that was rejected before.
    ///
    /// # Errors
    /// [`BadDoorbell`] for a head beyond what was put, once for each; the queue stays as it was.
    fn ring(&mut self, head: u32) -> Result<bool, BadDoorbell> {
        if !self.is_new(head) {
            return Ok(head == self.head);
        }
        let has_unread = distance(self.head, self.tail, self.entries);
        if head >= self.entries || distance(self.head, head, self.entries) > has_unread {
            self.rejected = Some(head);
            return Err(BadDoorbell::Value);
        }
        self.rejected = None;
        self.head = head;
        Ok(true)
    }

    /// Queues a completion; [`deliver`](Self::deliver) puts it.
    pub fn push(&mut self, completion: Completion) {
        self.backlog.push_back(completion);
    }

    /// Forgets the completions of a submission queue that wait for room.
    pub fn forget(&mut self, sq: u16) {
        self.backlog.retain(|completion| completion.sq_id != sq);
    }

    /// Puts what fits; counts in `put` how many were put.
    ///
    /// # Errors
    /// [`Unreachable`]; what was not put still waits.
    pub fn deliver(&mut self, memory: &M, put: &mut u32) -> Result<(), Unreachable> {
        while let Some(completion) = self.backlog.front() {
            if distance(self.head, self.tail, self.entries) == self.entries - 1 {
                break;
            }
            let hold = self.ring_memory.hold(memory)?;
            let at = u64::from(self.tail) * COMPLETION_BYTES;
            hold.write(at, &completion.front())?;
            // The phase is in the last dword; its store is a release, so the guest sees all of an entry or none.
            hold.store_u32(at + 12, completion.last(self.phase))?;
            self.backlog.pop_front();
            *put += 1;
            self.tail += 1;
            if self.tail == self.entries {
                self.tail = 0;
                self.phase = !self.phase;
            }
        }
        Ok(())
    }
}
