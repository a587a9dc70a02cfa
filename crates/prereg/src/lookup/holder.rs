//! Who holds mappings: holders, and the counts of each that anybody may write.
//!
//! Every translator counts in a `Reader` of its own, which no other thread writes. Units that are given back without a
//! translator go to the [`HolderCounts`] of the same holder. Only sums mean anything: a unit may be taken by one reader and given
//! back by another, so single counts go negative. The sum of all of them, for one slot, is the region's live mappings.

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
pub struct HolderTotal {
    /// Whose.
    pub holder: Holder,
    /// How many.
    pub count: u64,
}

/// Who is told that a unit of a draining region was given back without a translator.
pub(crate) trait ReleaseHook: Send + Sync {
    /// Gives one unit of `slot` back in `count`, and releases what is drained by that. May lock and make system calls.
    fn release_unit(&self, slot: u32, count: &AtomicI64);
}

/// The counts of one holder that anybody may write. Aligned so that a pointer to one has bits to spare (see [`HolderCountsRef`]).
#[repr(align(32))]
pub(crate) struct HolderCounts {
    pub(crate) holder: Holder,
    chunks: ChunkedArray<AtomicI64>,
    hook: Weak<dyn ReleaseHook>,
}

/// A counts, shared by the registry, by readers and by tables.
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
            // Relaxed: counts that a closed reader leaves are moved under the writers' lock, as they are summed; a unit that
            // is handed over is added before its own thread's `leave`, whose Release orders the two. What others released
            // before is still acquired by the sum: an exchange continues the release sequence of the store it follows.
            count.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Acquire pairs with the Release of every `leave_shared`.
    pub(crate) fn value(&self, slot: u32) -> i64 {
        self.count(slot).map_or(0, |count| count.load(Ordering::Acquire))
    }

    /// Whether this is a counts of the address space `hook`.
    pub(crate) fn belongs_to<T: ReleaseHook>(&self, hook: &alloc::sync::Arc<T>) -> bool {
        ptr::addr_eq(self.hook.as_ptr(), alloc::sync::Arc::as_ptr(hook))
    }

    /// Whether every count is zero.
    pub(crate) fn is_empty(&self) -> bool {
        // Acquire as in `value`: whoever emptied the counts does not touch it any more.
        self.chunks.iter().all(|count| count.load(Ordering::Acquire) == 0)
    }
}

/// A counts, in a mapping that may be given back on any thread. The unit keeps the counts: the registry drop none whose counts,
/// with those of its holder's readers, are not all zero.
///
/// In its lower bits a translator notes for how many slots it knows counts, as a power of two. So a mapping that carries a
/// translator's own reference has a slot that this translator can count in, and one comparison tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct HolderCountsRef(NonNull<HolderCounts>);

/// The bits of a counts's address that are free.
const HINT_BITS: usize = align_of::<HolderCounts>() - 1;

// SAFETY: a counts is shared by many threads; only its atomics change.
unsafe impl Send for HolderCountsRef {}
// SAFETY: as above.
unsafe impl Sync for HolderCountsRef {}

impl HolderCountsRef {
    /// `counts`, for who knows no counts yet.
    pub(crate) fn new(counts: &TableBox<HolderCounts>) -> Self {
        Self(counts.as_ptr())
    }

    /// The same counts, for who knows `slots` counts, a power of two.
    pub(crate) fn with_capacity_hint(self, slots: usize) -> Self {
        // 18 at most.
        let known = slots.checked_ilog2().unwrap_or(0) as usize & HINT_BITS;
        let marked = self.0.as_ptr().map_addr(|at| (at & !HINT_BITS) | known);
        NonNull::new(marked).map_or(self, Self)
    }

    /// Whether it is `counts`, whatever counts are known.
    #[inline]
    pub(crate) fn points_to(self, counts: &HolderCounts) -> bool {
        ptr::eq(self.address(), counts)
    }

    /// The address alone.
    #[inline]
    fn address(self) -> *const HolderCounts {
        self.0.as_ptr().map_addr(|at| at & !HINT_BITS)
    }

    /// The counts.
    ///
    /// # Safety
    /// The caller holds a unit that is counted with it, for as long as he uses it.
    pub(crate) unsafe fn get<'a>(self) -> &'a HolderCounts {
        // SAFETY: the unit keeps it.
        unsafe { &*self.address() }
    }

    /// Gives one unit of `slot` back on a thread without a translator.
    ///
    /// # Safety
    /// The caller holds that unit, counted with this counts's holder, and does not use the region any more.
    pub(crate) unsafe fn release_unit(self, slot: u32) {
        // SAFETY: the unit keeps the counts.
        let counts = unsafe { self.get() };
        // Taken before the unit goes: after that nothing may keep the counts or the address space.
        let hook = counts.hook.upgrade();
        if let (Some(hook), Some(count)) = (hook, counts.count(slot)) {
            hook.release_unit(slot, count);
        }
    }
}
