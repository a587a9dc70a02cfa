//! Holders of mappings, and the counters of each that any thread may write.
//!
//! A translator counts in a [`Reader`](crate::engine::reader) of its own, which no other thread writes. A unit that is
//! released without a translator is taken off the [`HolderCounts`] of its holder. A unit may be counted by one reader and
//! taken off by another, so a single counter can be negative. The sum over all of them, for one slot, is the number of
//! live mappings of the region.

#![expect(
    unsafe_code,
    reason = "counts are reached by pointer: by their owner's thread, and by mappings that outlive it"
)]

use alloc::sync::Weak;
use core::fmt;
use core::ptr::{self, NonNull};

use crate::sync::atomic::{AtomicI64, Ordering};
use crate::table_memory::SharedTableMemory;
use crate::table_memory::chunked::ChunkedArray;
use crate::table_memory::owned::TableBox;

/// The holder of mappings or registrations, for reports: a container and a kind of use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Holder {
    /// The container's number, chosen by its creator; 0 where there is none.
    pub container: u64,
    /// The kind of use.
    pub kind: HolderKind,
}

/// The use of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum HolderKind {
    /// An entry of an IOMMU table.
    TableEntry,
    /// An I/O in flight.
    InFlight,
    /// Mappings that register the memory they need: the kind of their registrations.
    OnDemand,
    /// Anything else.
    #[default]
    Other,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            HolderKind::TableEntry => "table entries",
            HolderKind::InFlight => "I/O in flight",
            HolderKind::OnDemand => "registrations on demand",
            HolderKind::Other => "other mappings",
        };
        if self.container == 0 {
            f.write_str(kind)
        } else {
            write!(f, "{kind} of container {}", self.container)
        }
    }
}

/// The mappings (or registrations) of a region that one holder has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct HolderTotal {
    /// The holder.
    pub holder: Holder,
    /// Their number.
    pub count: u64,
}

/// Releases a unit without a translator; implemented by the engine.
pub(crate) trait ReleaseHook: Send + Sync {
    /// Takes one unit of `slot` off `count`, and releases regions that this drains. May lock and make system calls.
    fn release_unit(&self, slot: u32, count: &AtomicI64);
}

/// The counters of one holder. Aligned so that a pointer to one has spare bits (see [`HolderCountsRef`]).
#[repr(align(32))]
pub(crate) struct HolderCounts {
    pub(crate) holder: Holder,
    chunks: ChunkedArray<AtomicI64>,
    hook: Weak<dyn ReleaseHook>,
}

/// Shared by the registry, by readers and by tables.
pub(crate) type SharedHolderCounts = alloc::sync::Arc<TableBox<HolderCounts>>;

impl HolderCounts {
    /// `None` without memory.
    pub(crate) fn new(
        memory: &SharedTableMemory,
        holder: Holder,
        hook: Weak<dyn ReleaseHook>,
    ) -> Option<SharedHolderCounts> {
        let chunks = ChunkedArray::new(memory)?;
        Some(SharedHolderCounts::new(TableBox::new(memory, Self { holder, chunks, hook })?))
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
            // Relaxed: counters of a dropped reader are moved under the writers' lock, as they are summed; a unit that
            // is transferred is added before its own thread's `leave`, whose Release orders the two. What other threads
            // released before is still acquired by the sum: an exchange continues the release sequence of the store it
            // follows.
            count.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Acquire pairs with the Release of every `leave_shared`.
    pub(crate) fn value(&self, slot: u32) -> i64 {
        self.count(slot).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// Whether these counters are of the address space that `hook` releases for.
    pub(crate) fn belongs_to<T: ReleaseHook>(&self, hook: &alloc::sync::Arc<T>) -> bool {
        ptr::addr_eq(self.hook.as_ptr(), alloc::sync::Arc::as_ptr(hook))
    }

    /// Whether every counter is zero.
    pub(crate) fn is_empty(&self) -> bool {
        // Acquire as in `value`: a thread that took the last unit off does not touch the counters any more.
        self.chunks.iter().all(|count| count.load(Ordering::Acquire) == 0)
    }
}

/// The [`HolderCounts`] that a mapping is counted with. A mapping may be released on any thread. Its unit keeps them:
/// the registry drops none whose counters, with those of the holder's readers, are not all zero.
///
/// In its lower bits a translator notes the number of slots it has counters for, as a power of two. So a mapping that
/// carries a translator's own reference has a slot that this translator can count in, and one comparison shows it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HolderCountsRef(NonNull<HolderCounts>);

/// The bits of the address that are spare.
const HINT_BITS: usize = align_of::<HolderCounts>() - 1;

// SAFETY: shared by many threads; only its atomics change.
unsafe impl Send for HolderCountsRef {}
// SAFETY: as above.
unsafe impl Sync for HolderCountsRef {}

impl HolderCountsRef {
    /// A reference without a capacity hint.
    pub(crate) fn new(counts: &TableBox<HolderCounts>) -> Self {
        Self(counts.as_ptr())
    }

    /// These counters, noting that the translator has counters for `slots` slots, a power of two.
    pub(crate) fn with_capacity_hint(self, slots: usize) -> Self {
        // 18 at most.
        let known = slots.checked_ilog2().unwrap_or(0) as usize & HINT_BITS;
        let marked = self.0.as_ptr().map_addr(|at| (at & !HINT_BITS) | known);
        NonNull::new(marked).map_or(self, Self)
    }

    /// Whether it points to `counts`, whatever the hint.
    #[inline]
    pub(crate) fn points_to(self, counts: &HolderCounts) -> bool {
        ptr::eq(self.address(), counts)
    }

    /// The address without the hint.
    #[inline]
    fn address(self) -> *const HolderCounts {
        self.0.as_ptr().map_addr(|at| at & !HINT_BITS)
    }

    /// The counters.
    ///
    /// # Safety
    /// The caller holds a unit that is counted with them as long as the result is used.
    pub(crate) unsafe fn get<'a>(self) -> &'a HolderCounts {
        // SAFETY: the unit keeps it.
        unsafe { &*self.address() }
    }

    /// Releases one unit of `slot` on a thread without a translator.
    ///
    /// # Safety
    /// The caller holds that unit, counted with this holder, and does not use the region any more.
    pub(crate) unsafe fn release_unit(self, slot: u32) {
        // SAFETY: the unit keeps the counts.
        let counts = unsafe { self.get() };
        // Taken before the unit is released: after that nothing may keep the counters or the address space.
        let hook = counts.hook.upgrade();
        if let (Some(hook), Some(count)) = (hook, counts.count(slot)) {
            hook.release_unit(slot, count);
        }
    }
}
