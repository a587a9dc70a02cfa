//! A reader: the shared state of one translator, its hazard slot and its counters.
//!
//! One counter for each region slot, written by the translator's own thread only. The arrays grow by adding a longer one
//! beside the old: the translator counts in the newest it has seen, and sums go over all of them.

#![expect(
    unsafe_code,
    reason = "counts are reached by pointer, so that they can grow beside their owner's thread"
)]

use core::ptr;

use crate::lookup::holder::SharedHolderCounts;
use crate::lookup::snapshot::Snapshot;
use crate::sync::atomic::{AtomicI64, AtomicPtr, Ordering};
use crate::sync::hazard::{HazardSlot, Owner};
use crate::table_memory::SharedTableMemory;
use crate::table_memory::owned::{TableArray, TableBox};

/// One counter for each slot, with one writing thread.
pub(crate) struct ReaderCounts {
    counts: TableArray<AtomicI64>,
    /// The shorter array that this one replaced; null for the first. Owned.
    older: *mut ReaderCounts,
}

impl ReaderCounts {
    /// Pointer and length, for the translator.
    pub(crate) fn raw(&self) -> (*const AtomicI64, usize) {
        (self.counts.as_ptr(), self.counts.len())
    }
}

/// One translator, as the writers' side sees it.
pub(crate) struct Reader {
    pub(crate) shared: TableBox<ReaderShared>,
    pub(crate) holder_counts: SharedHolderCounts,
    memory: SharedTableMemory,
}

/// The part that the translator touches.
pub(crate) struct ReaderShared {
    pub(crate) hazard: HazardSlot<Snapshot>,
    /// From `TableBox::into_raw`; replaced by the writers' side only, freed with the reader.
    newest: AtomicPtr<ReaderCounts>,
}

// SAFETY: the pointer owns a list of arrays of atomics; it is set once, under the writers' lock.
unsafe impl Send for ReaderCounts {}
// SAFETY: as above.
unsafe impl Sync for ReaderCounts {}

impl Reader {
    /// A reader with counters for `slots` slots. `None` without memory.
    pub(crate) fn new(
        memory: &SharedTableMemory,
        holder_counts: SharedHolderCounts,
        slots: usize,
    ) -> Option<Self> {
        let shared = ReaderShared { hazard: HazardSlot::default(), newest: AtomicPtr::new(ptr::null_mut()) };
        let reader = Self { shared: TableBox::new(memory, shared)?, holder_counts, memory: memory.clone() };
        reader.grow(slots).then_some(reader)
    }

    /// Adds an array for `slots` slots. Writers' lock held. `false` without memory.
    pub(crate) fn grow(&self, slots: usize) -> bool {
        let Some(counts) = TableArray::new(&self.memory, slots, || AtomicI64::new(0)) else { return false };
        // Relaxed: only written under the lock we hold.
        let older = self.shared.newest.load(Ordering::Relaxed);
        let Some(made) = TableBox::new(&self.memory, ReaderCounts { counts, older }) else { return false };
        // Release pairs with the Acquire in `newest`.
        self.shared.newest.store(made.into_raw(), Ordering::Release);
        true
    }

    fn arrays(&self) -> impl Iterator<Item = &ReaderCounts> {
        let newest: *const ReaderCounts = self.shared.newest();
        // SAFETY: a list of owned values, none freed before the reader.
        core::iter::successors(unsafe { newest.as_ref() }, |counts| unsafe { counts.older.as_ref() })
    }

    /// Whether `counts` is one of this reader's arrays.
    pub(crate) fn counts_in(&self, counts: *const AtomicI64) -> bool {
        self.arrays().any(|array| ptr::eq(array.counts.as_ptr(), counts))
    }

    /// The sum for `slot`. Acquire pairs with the Release of every `leave`.
    pub(crate) fn sum(&self, slot: u32) -> i64 {
        self.arrays()
            .filter_map(|array| array.counts.get(slot as usize))
            .map(|count| count.load(Ordering::Acquire))
            .fold(0, i64::wrapping_add)
    }

    /// Moves every counter to the holder's. The translator is dropped; writers' lock held.
    pub(crate) fn fold_into_holder(&self) {
        for array in self.arrays() {
            for (slot, count) in array.counts.iter().enumerate() {
                // Relaxed: the translator was dropped, which ordered its counters.
                let value = count.load(Ordering::Relaxed);
                if value != 0 {
                    count.store(0, Ordering::Relaxed);
                    self.holder_counts.add(slot as u32, value);
                }
            }
        }
    }
}

impl ReaderShared {
    /// The longest array.
    pub(crate) fn newest(&self) -> &ReaderCounts {
        // Acquire pairs with the Release in `grow`.
        let newest = self.newest.load(Ordering::Acquire);
        // SAFETY: `new` made one, and none is freed before the reader.
        unsafe { &*newest }
    }
}

impl Drop for ReaderShared {
    fn drop(&mut self) {
        // Relaxed: exclusive access.
        let mut next = self.newest.load(Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: from `into_raw` in `grow`, and no other thread is left.
            let counts = unsafe { TableBox::<ReaderCounts>::from_raw(next) };
            next = counts.older;
        }
    }
}
