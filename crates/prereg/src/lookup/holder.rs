//! Who holds mappings: holders, and the counts of each that anybody may write.
//!
//! Every translator counts in a `Station` of its own, which no other thread writes. Units that are given back without a
//! translator go to the [`House`] of the same holder. Only sums mean anything: a unit may be taken by one station and given
//! back by another, so single counts go negative. The sum of all of them, for one slot, is the region's live mappings.

#![expect(
    unsafe_code,
    reason = "counts are reached by pointer: by their owner's thread, and by mappings that outlive it"
)]

use alloc::sync::Weak;
use core::fmt;
use core::ptr::{self, NonNull};

use crate::sync::atomic::{AtomicI64, Ordering};
use crate::table_memory::Tables;
use crate::table_memory::chunked::Chunks;
use crate::table_memory::owned::Placed;

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

/// The counts of one holder that anybody may write. Aligned so that a pointer to one has bits to spare (see [`HouseRef`]).
#[repr(align(32))]
pub(crate) struct House {
    pub(crate) holder: Holder,
    chunks: Chunks<AtomicI64>,
    home: Weak<dyn Home>,
}

/// A house, shared by the books, by stations and by tables.
pub(crate) type SharedHouse = alloc::sync::Arc<Placed<House>>;

impl House {
    /// `None` without memory.
    pub(crate) fn new(memory: &Tables, holder: Holder, home: Weak<dyn Home>) -> Option<SharedHouse> {
        let chunks = Chunks::new(memory)?;
        Some(SharedHouse::new(Placed::new(memory, Self { holder, chunks, home })?))
    }

    /// Makes room for `slots` slots. Writers' lock held. `false` without memory.
    pub(crate) fn grow(&self, slots: usize) -> bool {
        self.chunks.grow(slots, || AtomicI64::new(0))
    }

    #[inline]
    pub(crate) fn count(&self, slot: u32) -> Option<&AtomicI64> {
        self.chunks.get(slot)
    }

    /// Adds `change`.
    pub(crate) fn add(&self, slot: u32, change: i64) {
        if let Some(count) = self.count(slot) {
            // Relaxed: counts that a closed station leaves are moved under the writers' lock, as they are summed; a unit that
            // is handed over is added before its own thread's `leave`, whose Release orders the two. What others released
            // before is still acquired by the sum: an exchange continues the release sequence of the store it follows.
            count.fetch_add(change, Ordering::Relaxed);
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
        self.chunks.iter().all(|count| count.load(Ordering::Acquire) == 0)
    }
}

/// A house, in a mapping that may be given back on any thread. The unit keeps the house: the books drop none whose counts,
/// with those of its holder's stations, are not all zero.
///
/// In its lower bits a translator notes for how many slots it knows counts, as a power of two. So a mapping that carries a
/// translator's own reference has a slot that this translator can count in, and one comparison tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HouseRef(NonNull<House>);

/// The bits of a house's address that are free.
const SPARE: usize = align_of::<House>() - 1;

// SAFETY: a house is shared by many threads; only its atomics change.
unsafe impl Send for HouseRef {}
// SAFETY: as above.
unsafe impl Sync for HouseRef {}

impl HouseRef {
    /// `house`, for who knows no counts yet.
    pub(crate) fn new(house: &Placed<House>) -> Self {
        Self(house.as_ptr())
    }

    /// The same house, for who knows `slots` counts, a power of two.
    pub(crate) fn knowing(self, slots: usize) -> Self {
        // 18 at most.
        let known = slots.checked_ilog2().unwrap_or(0) as usize & SPARE;
        let marked = self.0.as_ptr().map_addr(|at| (at & !SPARE) | known);
        NonNull::new(marked).map_or(self, Self)
    }

    /// Whether it is `house`, whatever counts are known.
    #[inline]
    pub(crate) fn is(self, house: &House) -> bool {
        ptr::eq(self.house(), house)
    }

    /// The address alone.
    #[inline]
    fn house(self) -> *const House {
        self.0.as_ptr().map_addr(|at| at & !SPARE)
    }

    /// The house.
    ///
    /// # Safety
    /// The caller holds a unit that is counted with it, for as long as he uses it.
    pub(crate) unsafe fn get<'a>(self) -> &'a House {
        // SAFETY: the unit keeps it.
        unsafe { &*self.house() }
    }

    /// Gives one unit of `slot` back on a thread without a translator.
    ///
    /// # Safety
    /// The caller holds that unit, counted with this house's holder, and does not use the region any more.
    pub(crate) unsafe fn give_back(self, slot: u32) {
        // SAFETY: the unit keeps the house.
        let house = unsafe { self.get() };
        // Taken before the unit goes: after that nothing may keep the house or the address space.
        let home = house.home.upgrade();
        if let (Some(home), Some(count)) = (home, house.count(slot)) {
            home.give_back(slot, count);
        }
    }
}
