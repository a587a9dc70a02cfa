//! Who holds how many mappings: the counts behind the report of an EBUSY.
//!
//! A tally has one count per region slot. A translator owns one and is the only thread to write it, with plain loads and
//! stores; units that are given back without a translator go to the house tally of the same holder, which anybody may
//! write. Only sums over all tallies of a holder mean anything: a unit may be taken by one translator and given back by
//! another, so single counts go negative.
//!
//! Nothing is decided by these counts; the region's gate decides. They are exact when nobody maps or unmaps meanwhile.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ptr;

use crate::slots::{CHUNK, Chunks};
use crate::sync::atomic::{AtomicI64, Ordering};

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

/// One count a slot.
pub(crate) struct Tally {
    pub(crate) holder: Holder,
    chunks: Chunks<[AtomicI64; CHUNK]>,
}

impl Tally {
    pub(crate) fn new(holder: Holder) -> Self {
        Self { holder, chunks: Chunks::new() }
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
    fn count(&self, slot: u32) -> Option<&AtomicI64> {
        self.chunks.get(slot).map(|(chunk, index)| &chunk[index])
    }

    /// Adds `change`; for the one thread that owns this tally. Relaxed load and store: no other thread writes here, and
    /// readers want no more than a number.
    #[inline]
    pub(crate) fn add_own(&self, slot: u32, change: i64) {
        if let Some(count) = self.count(slot) {
            count.store(count.load(Ordering::Relaxed).wrapping_add(change), Ordering::Relaxed);
        }
    }

    /// Adds `change`; for any thread. Release pairs with the Acquire in `value`, so that a tally found empty is no longer
    /// touched by whoever emptied it.
    pub(crate) fn add_shared(&self, slot: u32, change: i64) {
        if let Some(count) = self.count(slot) {
            count.fetch_add(change, Ordering::Release);
        }
    }

    pub(crate) fn value(&self, slot: u32) -> i64 {
        // Acquire: see `add_shared`.
        self.count(slot).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// Whether every count is zero.
    pub(crate) fn is_empty(&self) -> bool {
        // Acquire: see `add_shared`.
        self.chunks.iter().all(|chunk| chunk.iter().all(|count| count.load(Ordering::Acquire) == 0))
    }

    /// Moves every count into `house`. The owner of this tally is gone.
    pub(crate) fn fold_into(&self, house: &Self) {
        for (i, chunk) in self.chunks.iter().enumerate() {
            for (j, count) in chunk.iter().enumerate() {
                // Relaxed: the owner is gone; its thread handed the tally over.
                let value = count.swap(0, Ordering::Relaxed);
                if value != 0 {
                    house.add_shared((i * CHUNK + j) as u32, value);
                }
            }
        }
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tally").field("holder", &self.holder).finish_non_exhaustive()
    }
}

/// A pointer to a house tally, in a mapping that may be given back on any thread.
#[derive(Clone, Copy)]
pub(crate) struct HouseRef(ptr::NonNull<Tally>);

#[expect(unsafe_code, reason = "a mapping names its holder's tally without owning it")]
mod house_ref {
    use super::{HouseRef, Tally, ptr};

    // SAFETY: only `give_back` uses the pointer, through atomics.
    unsafe impl Send for HouseRef {}
    // SAFETY: as above.
    unsafe impl Sync for HouseRef {}

    impl HouseRef {
        pub(crate) fn new(house: &Tally) -> Self {
            Self(ptr::NonNull::from(house))
        }

        /// Takes one unit off.
        ///
        /// # Safety
        /// The holder's tallies count one unit for this call to take, so the registry keeps the house tally until now.
        pub(crate) unsafe fn give_back(self, slot: u32) {
            // SAFETY: alive, by the caller's promise.
            let house = unsafe { self.0.as_ref() };
            house.add_shared(slot, -1);
        }
    }
}
