//! Who holds mappings: holders, and the counts of each that anybody may write.
//!
//! Every translator counts in a `Station` of its own, which no other thread writes. Units that are given back without a
//! translator go to the [`House`] of the same holder. Only sums mean anything: a unit may be taken by one station and given
//! back by another, so single counts go negative. The sum of all of them, for one slot, is the region's live mappings.

#![expect(
    unsafe_code,
    reason = "counts are reached by pointer: by their owner's thread, and by mappings that outlive it"
)]

use alloc::boxed::Box;
use alloc::sync::Weak;
use alloc::vec::Vec;
use core::fmt;
use core::ptr::{self, NonNull};

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
