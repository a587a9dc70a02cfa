//! Arrays that are indexed by a region's slot and grow without moving.
//!
//! Readers index without a lock; the writers' side adds chunks and removes none before the whole array is dropped. There
//! are [`MAX_SLOTS`] slots: registering more regions than that is refused.

#![expect(unsafe_code, reason = "chunks are published to lock-free readers by pointer")]

use core::ptr::{self, NonNull};

use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::table_memory::SharedTableMemory;
use crate::table_memory::owned::TableArray;

/// Slots in a chunk. Few under loom and miri, so that tests can fill them.
pub(crate) const CHUNK_LEN: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    16
} else {
    512
};
/// ChunkedArray in an array.
const CHUNK_COUNT: usize = if cfg!(loom) {
    4
} else if cfg!(miri) {
    64
} else {
    512
};
/// Regions an address space can have at once.
pub(crate) const MAX_SLOTS: usize = CHUNK_LEN * CHUNK_COUNT;

/// Up to 512 chunks of values that never move.
pub(crate) struct ChunkedArray<T> {
    /// Each from `TableArray::into_raw`, or null.
    chunks: TableArray<AtomicPtr<T>>,
}

impl<T> ChunkedArray<T> {
    /// No chunk yet. `None` without memory for the list of them.
    pub(crate) fn new(memory: &SharedTableMemory) -> Option<Self> {
        Some(Self { chunks: TableArray::new(memory, CHUNK_COUNT, || AtomicPtr::new(ptr::null_mut()))? })
    }

    /// Adds chunks, each value from `make`, until `slots` slots exist. Writers' lock held. `false` without memory.
    pub(crate) fn grow(&self, slots: usize, make: impl Fn() -> T) -> bool {
        for chunk in self.chunks.iter().take(slots.div_ceil(CHUNK_LEN)) {
            // Relaxed: written under the lock we hold.
            if chunk.load(Ordering::Relaxed).is_null() {
                let Some(made) = TableArray::new(self.chunks.memory(), CHUNK_LEN, &make) else {
                    return false;
                };
                // Relaxed: see `get`.
                chunk.store(made.into_raw(), Ordering::Relaxed);
            }
        }
        true
    }

    /// The value of `slot`.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&T> {
        let slot = slot as usize;
        // Relaxed: a reader has the slot's number from an index entry, a snapshot or a unit, and acquired it; that was
        // released after the chunk was made. A writer holds the lock under which chunks are added.
        let chunk = self.chunks.get(slot / CHUNK_LEN)?.load(Ordering::Relaxed);
        if chunk.is_null() {
            return None;
        }
        // SAFETY: a chunk has `CHUNK_LEN` values.
        let value = unsafe { chunk.add(slot % CHUNK_LEN) };
        // SAFETY: from `TableArray::into_raw`, and freed by `drop` only.
        unsafe { value.as_ref() }
    }

    /// All values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        let slots = 0..MAX_SLOTS as u32;
        slots.map_while(|slot| self.get(slot))
    }
}

impl<T> Drop for ChunkedArray<T> {
    fn drop(&mut self) {
        for chunk in self.chunks.iter() {
            // Relaxed: exclusive access.
            if let Some(chunk) = NonNull::new(chunk.load(Ordering::Relaxed)) {
                // SAFETY: from `into_raw` in `grow`; no other user is left.
                drop(unsafe { TableArray::from_raw(chunk, CHUNK_LEN, self.chunks.memory().clone()) });
            }
        }
    }
}
