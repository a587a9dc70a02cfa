//! Chunked arrays that grow without moving: what is indexed by a region's slot.
//!
//! Readers index without a lock; the writers' side adds chunks and never takes one away before the whole goes. A slot
//! beyond [`MAX_SLOTS`] does not exist: registering that many regions is refused.

#![expect(unsafe_code, reason = "chunks are published to lock-free readers by pointer")]

use alloc::boxed::Box;
use core::ptr;

use crate::sync::atomic::{AtomicPtr, Ordering};

/// Slots in a chunk.
pub(crate) const CHUNK: usize = 512;
/// Chunks in an array.
const CHUNKS: usize = 512;
/// Regions an address space can have at once.
pub(crate) const MAX_SLOTS: usize = CHUNK * CHUNKS;

/// Up to 512 chunks that never move.
pub(crate) struct Chunks<C> {
    chunks: Box<[AtomicPtr<C>]>,
}

impl<C> Chunks<C> {
    pub(crate) fn new() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| AtomicPtr::new(ptr::null_mut())).collect() }
    }

    /// Adds chunks until `slots` slots exist. Writers' lock held. `false` when `make` could not make one.
    pub(crate) fn grow(&self, slots: usize, make: impl Fn() -> Option<Box<C>>) -> bool {
        for chunk in self.chunks.iter().take(slots.div_ceil(CHUNK)) {
            // Relaxed: written under the lock we hold.
            if chunk.load(Ordering::Relaxed).is_null() {
                let Some(made) = make() else { return false };
                // Release pairs with the Acquire in `get`: readers see the chunk as it was made.
                chunk.store(Box::into_raw(made), Ordering::Release);
            }
        }
        true
    }

    /// The chunk of `slot` and the index in it.
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<(&C, usize)> {
        let slot = slot as usize;
        // Acquire pairs with the Release in `grow`.
        let chunk = self.chunks.get(slot / CHUNK)?.load(Ordering::Acquire);
        // SAFETY: null or from `Box::into_raw`, and freed by `drop` only.
        unsafe { chunk.as_ref() }.map(|chunk| (chunk, slot % CHUNK))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &C> {
        // Acquire as in `get`. SAFETY: as in `get`.
        self.chunks.iter().map_while(|chunk| unsafe { chunk.load(Ordering::Acquire).as_ref() })
    }
}

impl<C> Drop for Chunks<C> {
    fn drop(&mut self) {
        for chunk in &self.chunks {
            // Relaxed: exclusive access.
            let chunk = chunk.load(Ordering::Relaxed);
            if !chunk.is_null() {
                // SAFETY: from `Box::into_raw` in `grow`; nobody else is left.
                drop(unsafe { Box::from_raw(chunk) });
            }
        }
    }
}
