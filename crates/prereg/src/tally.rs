//! The counts behind the doors: who holds how many mappings of which region.
//!
//! Every translator has a [`Station`] with one count per region slot that only its own thread writes. Units that are given
//! back without a translator go to the [`House`] of the same holder, whose counts anybody may write. Only sums mean
//! anything: a unit may be taken by one station and given back by another, so single counts go negative. The sum of all of
//! them, for one slot, is the region's live mappings.
//!
//! Arrays grow by a longer one beside the old: the owner counts in the newest it has seen, sums go over all of them.

#![expect(
    unsafe_code,
    reason = "counts are reached by pointer: by their owner's thread, and by mappings that outlive it"
)]

use alloc::boxed::Box;
use alloc::sync::Weak;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::{self, NonNull};

use crate::lookup::Snapshot;
use crate::publish::Seat;
use crate::slots::{CHUNK, Chunks};
use crate::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

/// Who holds mappings or registrations, for reports: a container and what kind of use it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Holder {
    /// The container's number, chosen by its maker; 0 where there is none.
    pub container: u64,
    /// The kind of use.
    pub kind: HolderKind,
}

/// What a mapping is held for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[non_exhaustive]
pub enum HolderKind {
    /// An entry of an IOMMU table.
    TableEntry,
    /// An I/O in flight.
    InFlight,
    /// Anything else.
    #[default]
    Other,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HolderKind::TableEntry => "table entries",
            HolderKind::InFlight => "I/O in flight",
            HolderKind::Other => "other mappings",
        };
        if self.container == 0 {
            f.write_str(kind)
        } else {
            write!(f, "{kind} of container {}", self.container)
        }
    }
}

/// So many mappings (or registrations) of a region are one holder's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// Whose.
    pub holder: Holder,
    /// How many.
    pub count: u64,
}

/// One count a slot, for one writing thread.
pub(crate) struct Counts {
    counts: Box<[AtomicI64]>,
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
    pub(crate) seat: Seat<Snapshot>,
    pub(crate) house: alloc::sync::Arc<House>,
    /// From `Box::into_raw`; replaced by the writers' side only, freed with the station.
    newest: AtomicPtr<Counts>,
}

// SAFETY: the pointer owns a list of boxes of atomics; it is changed under the writers' lock.
unsafe impl Send for Station {}
// SAFETY: as above.
unsafe impl Sync for Station {}

impl Station {
    /// A station with counts for `slots` slots. `None` without memory.
    pub(crate) fn new(house: alloc::sync::Arc<House>, slots: usize) -> Option<Self> {
        let station = Self { seat: Seat::default(), house, newest: AtomicPtr::new(ptr::null_mut()) };
        station.grow(slots).then_some(station)
    }

    /// Adds an array for `slots` slots. Writers' lock held. `false` without memory.
    pub(crate) fn grow(&self, slots: usize) -> bool {
        let mut counts = Vec::new();
        if counts.try_reserve_exact(slots).is_err() {
            return false;
        }
        // Written here, so that the owner's first store does not fault a page in.
        counts.resize_with(slots, || AtomicI64::new(0));
        // Relaxed: only written under the lock we hold.
        let older = self.newest.load(Ordering::Relaxed);
        let made = Box::into_raw(Box::new(Counts { counts: counts.into_boxed_slice(), older }));
        // Release pairs with the Acquire in `newest`.
        self.newest.store(made, Ordering::Release);
        true
    }

    /// The longest array.
    pub(crate) fn newest(&self) -> &Counts {
        // Acquire pairs with the Release in `grow`.
        let newest = self.newest.load(Ordering::Acquire);
        // SAFETY: `new` made one, and none is freed before the station.
        unsafe { &*newest }
    }

    fn arrays(&self) -> impl Iterator<Item = &Counts> {
        let newest: *const Counts = self.newest();
        // SAFETY: a list of boxes, none freed before the station.
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

impl Drop for Station {
    fn drop(&mut self) {
        // Relaxed: exclusive access.
        let mut next = self.newest.load(Ordering::Relaxed);
        while !next.is_null() {
            // SAFETY: from `Box::into_raw` in `grow`, and nobody else is left.
            let counts = unsafe { Box::from_raw(next) };
            next = counts.older;
        }
    }
}

impl fmt::Debug for Station {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Station").field("holder", &self.house.holder).finish_non_exhaustive()
    }
}

/// Who is told that a unit of a draining region was given back without a translator.
pub(crate) trait Home: Send + Sync {
    /// Gives one unit of `slot` back in `count`, and releases what is drained by that. May lock and make system calls.
    fn give_back(&self, slot: u32, count: &AtomicI64);
}

/// The counts of one holder that anybody may write.
pub(crate) struct House {
    pub(crate) holder: Holder,
    chunks: Chunks<[AtomicI64; CHUNK]>,
    home: Weak<dyn Home>,
}

impl House {
    pub(crate) fn new(holder: Holder, home: Weak<dyn Home>) -> Self {
        Self { holder, chunks: Chunks::new(), home }
    }

    /// Makes room for `slots` slots. Writers' lock held. `false` without memory.
    pub(crate) fn grow(&self, slots: usize) -> bool {
        self.chunks.grow(slots, || {
            // A box made in place: the array is too large to pass through the stack in a debug build.
            let mut counts = Vec::new();
            counts.try_reserve_exact(CHUNK).ok()?;
            counts.resize_with(CHUNK, || AtomicI64::new(0));
            Box::<[AtomicI64]>::try_into(counts.into_boxed_slice()).ok()
        })
    }

    #[inline]
    pub(crate) fn count(&self, slot: u32) -> Option<&AtomicI64> {
        self.chunks.get(slot).map(|(chunk, index)| &chunk[index])
    }

    /// Adds `change`.
    pub(crate) fn add(&self, slot: u32, change: i64) {
        if let Some(count) = self.count(slot) {
            // Release, as every change of a count.
            count.fetch_add(change, Ordering::Release);
        }
    }

    /// Acquire pairs with the Release of every `leave_shared`.
    pub(crate) fn value(&self, slot: u32) -> i64 {
        self.count(slot).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// Whether this is a house of the address space `home`.
    pub(crate) fn is_of<T: Home>(&self, home: &alloc::sync::Arc<T>) -> bool {
        ptr::addr_eq(self.home.as_ptr(), alloc::sync::Arc::as_ptr(home))
    }

    /// Whether every count is zero.
    pub(crate) fn is_empty(&self) -> bool {
        // Acquire as in `value`: whoever emptied the house does not touch it any more.
        self.chunks.iter().all(|chunk| chunk.iter().all(|count| count.load(Ordering::Acquire) == 0))
    }
}

impl fmt::Debug for House {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("House").field("holder", &self.holder).finish_non_exhaustive()
    }
}

/// A house, in a mapping that may be given back on any thread. The unit keeps the house: the books drop none whose counts,
/// with those of its holder's stations, are not all zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HouseRef(NonNull<House>);

// SAFETY: a house is shared by many threads; only its atomics change.
unsafe impl Send for HouseRef {}
// SAFETY: as above.
unsafe impl Sync for HouseRef {}

impl HouseRef {
    #[inline]
    pub(crate) fn new(house: &House) -> Self {
        Self(NonNull::from(house))
    }

    /// The house.
    ///
    /// # Safety
    /// The caller holds a unit that is counted with it, for as long as he uses it.
    pub(crate) unsafe fn get<'a>(self) -> &'a House {
        // SAFETY: the unit keeps it.
        unsafe { self.0.as_ref() }
    }

    /// Gives one unit of `slot` back on a thread without a translator.
    ///
    /// # Safety
    /// The caller holds that unit, counted with this house's holder, and does not use the region any more.
    pub(crate) unsafe fn give_back(self, slot: u32) {
        // SAFETY: the unit keeps the house.
        let house = unsafe { self.0.as_ref() };
        // Taken before the unit goes: after that nothing may keep the house or the address space.
        let home = house.home.upgrade();
        if let (Some(home), Some(count)) = (home, house.count(slot)) {
            home.give_back(slot, count);
        }
    }
}
