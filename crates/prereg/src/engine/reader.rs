//! A translator's place: the snapshot it uses, and its counts.
//!
//! One count a region slot, which only the translator's own thread writes. Arrays grow by a longer one beside the old: the
//! owner counts in the newest it has seen, sums go over all of them.

#![expect(
    unsafe_code,
    reason = "counts are reached by pointer, so that they can grow beside their owner's thread"
)]

use core::ptr;

use crate::lookup::holder::SharedHouse;
use crate::lookup::snapshot::Snapshot;
use crate::sync::atomic::{AtomicI64, AtomicPtr, Ordering};
use crate::sync::hazard::{Owner, Seat};
use crate::table_memory::Tables;
use crate::table_memory::owned::{Placed, Slab};

/// One count a slot, for one writing thread.
pub(crate) struct Counts {
    counts: Slab<AtomicI64>,
    /// The shorter array this one took over from; null for the first. Owned.
    older: *mut Counts,
}

impl Counts {
    /// The counts as the owner's thread keeps them at hand.
    pub(crate) fn raw(&self) -> (*const AtomicI64, usize) {
        (self.counts.as_ptr(), self.counts.len())
    }
}

/// A translator's place: the snapshot it uses and what it counts.
pub(crate) struct Station {
    pub(crate) place: Placed<Place>,
    pub(crate) house: SharedHouse,
    memory: Tables,
}

/// The part of a station that its translator touches.
pub(crate) struct Place {
    pub(crate) seat: Seat<Snapshot>,
    /// From `Placed::into_raw`; replaced by the writers' side only, freed with the station.
    newest: AtomicPtr<Counts>,
}

// SAFETY: the pointer owns a list of arrays of atomics; it is set once, under the writers' lock.
unsafe impl Send for Counts {}
// SAFETY: as above.
unsafe impl Sync for Counts {}

impl Station {
    /// A station with counts for `slots` slots. `None` without memory.
    pub(crate) fn new(memory: &Tables, house: SharedHouse, slots: usize) -> Option<Self> {
        let place = Place { seat: Seat::default(), newest: AtomicPtr::new(ptr::null_mut()) };
        let station = Self { place: Placed::new(memory, place)?, house, memory: memory.clone() };
        station.grow(slots).then_some(station)
    }

    /// Adds an array for `slots` slots. Writers' lock held. `false` without memory.
    pub(crate) fn grow(&self, slots: usize) -> bool {
        let Some(counts) = Slab::new(&self.memory, slots, || AtomicI64::new(0)) else { return false };
        // Relaxed: only written under the lock we hold.
        let older = self.place.newest.load(Ordering::Relaxed);
        let Some(made) = Placed::new(&self.memory, Counts { counts, older }) else { return false };
        // Release pairs with the Acquire in `newest`.
        self.place.newest.store(made.into_raw(), Ordering::Release);
        true
    }

    fn arrays(&self) -> impl Iterator<Item = &Counts> {
        let newest: *const Counts = self.place.newest();
        // SAFETY: a list of owned values, none freed before the station.
        core::iter::successors(unsafe { newest.as_ref() }, |counts| unsafe { counts.older.as_ref() })
    }

    /// The sum for `slot`. Acquire pairs with the Release of every `leave`.
    pub(crate) fn value(&self, slot: u32) -> i64 {
        self.arrays()
            .filter_map(|array| array.counts.get(slot as usize))
            .map(|count| count.load(Ordering::Acquire))
            .fold(0, i64::wrapping_add)
    }

    /// Moves every count to the house. The translator is gone; writers' lock held.
    pub(crate) fn fold(&self) {
        for array in self.arrays() {
            for (slot, count) in array.counts.iter().enumerate() {
                // Relaxed: the owner is gone and handed its counts over.
                let value = count.load(Ordering::Relaxed);
                if value != 0 {
                    count.store(0, Ordering::Relaxed);
                    self.house.add(slot as u32, value);
                }
            }
        }
    }
}

impl Place {
    /// The longest array.
    pub(crate) fn newest(&self) -> &Counts {
        // Acquire pairs with the Release in `grow`.
        let newest = self.newest.load(Ordering::Acquire);
        // SAFETY: `new` made one, and none is freed before the station.
        unsafe { &*newest }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Relaxed: exclusive access.
        let mut next = self.newest.load(Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: from `into_raw` in `grow`, and nobody else is left.
            let counts = unsafe { Placed::<Counts>::from_raw(next) };
            next = counts.older;
        }
    }
}
