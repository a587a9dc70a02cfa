//! A completion queue: a ring in guest memory that a poll group fills and the guest empties.

use std::collections::VecDeque;

use prereg::{Access, Iova};

use super::doorbell::{Doorbell, DoorbellValue, ShadowValue, distance};
use super::memory::{GuestGuard, GuestMemory, Unreachable};
use super::queue_table::BadDoorbell;
use super::ring_memory::RingMemory;
use crate::spec::Completion;
use crate::spec::number::COMPLETION_BYTES;

/// A completion queue, and completions that wait for a free entry.
#[derive(Debug)]
pub(crate) struct CompletionQueue<M: GuestMemory> {
    /// Queue identifier.
    pub(crate) id: u16,
    /// Interrupt vector, if interrupts are enabled.
    pub(crate) vector: Option<u16>,
    /// Entries posted since the last interrupt.
    pub(crate) unsignaled: u32,
    /// State of the head doorbell.
    pub(crate) doorbell: Doorbell,
    /// When the first of the `unsignaled` entries was posted, in nanoseconds.
    pub(crate) since: u64,
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
    pub(crate) fn new(id: u16, entries: u32, iova: Iova, vector: Option<u16>) -> Self {
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

    /// The ring's memory.
    pub(crate) fn ring_memory(&mut self) -> &mut RingMemory<M> {
        &mut self.ring_memory
    }

    /// The tail: where the next entry goes.
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    /// The last valid head.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }

    /// Whether the register or the shadow doorbell has changed.
    pub(crate) fn has_changed(&self, register: u32, shadow: ShadowValue) -> bool {
        match shadow {
            ShadowValue::Absent => self.is_new(register),
            shadow => self.doorbell.has_changed(register, shadow),
        }
    }

    /// Updates the head from the doorbell at `now`. `register` must be loaded before `shadow`. Returns the value that was used.
    ///
    /// # Errors
    /// [`BadDoorbell`] for a head beyond the tail, once for each value; the queue is unchanged.
    pub(crate) fn update_doorbell(
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

    /// Whether `head` differs from the current head and from the last rejected one.
    fn is_new(&self, head: u32) -> bool {
        head != self.head && self.rejected != Some(head)
    }

    /// Completions that wait for a free entry.
    pub(crate) fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Sets the head; returns false for one that was rejected before.
    ///
    /// # Errors
    /// [`BadDoorbell`] for a head beyond the tail, once for each value; the queue is unchanged.
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

    /// Adds a completion; [`deliver`](Self::deliver) writes it to the ring.
    pub(crate) fn push(&mut self, completion: Completion) {
        self.backlog.push_back(completion);
    }

    /// Drops the waiting completions of submission queue `sq`.
    pub(crate) fn forget(&mut self, sq: u16) {
        self.backlog.retain(|completion| completion.sq_id != sq);
    }

    /// Writes as many completions as there are free entries, and adds their number to `put`.
    ///
    /// # Errors
    /// [`Unreachable`]; completions that were not written still wait.
    pub(crate) fn deliver(&mut self, memory: &M, put: &mut u32) -> Result<(), Unreachable> {
        while let Some(completion) = self.backlog.front() {
            if distance(self.head, self.tail, self.entries) == self.entries - 1 {
                break;
            }
            let hold = self.ring_memory.hold(memory)?;
            let at = u64::from(self.tail) * COMPLETION_BYTES;
            hold.write(at, &completion.front())?;
            // The phase tag is in the last dword, which is stored with release order: the guest sees all of an entry or none.
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
