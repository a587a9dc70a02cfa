//! The inlined path of a map: from a user address to an entered region, by the page index alone.
//!
//! [`FastPath`] is the part of a translator that this path reads. What it indexes are the [`Arrays`]: a burst has a copy of
//! them, which stays in registers because no other code has its address. The numbers stay in memory: an instruction that
//! uses one reads it there at no cost, and registers are few.

#![expect(unsafe_code, reason = "the index, the counters and the refs are reached by pointer")]

use core::ptr;

use crate::addr::{PageShift, UserAddr};
use crate::lookup::index::{IndexEntry, IndexView};
use crate::lookup::index_entry::{host_of, prefetch_page, slot_of};
use crate::sync::atomic::AtomicI64;
use crate::sync::percpu_ref::{FenceMode, PercpuRef};

/// The arrays that the inlined path indexes. A copy is valid until its translator is refreshed or dropped.
#[derive(Clone, Copy)]
pub(super) struct Arrays {
    /// The page index of the snapshot in use.
    entries: *const IndexEntry,
    /// The reader's newest counters when the snapshot was taken: at least one for every slot that the snapshot names.
    pub(super) counts: *const AtomicI64,
    /// The engine's percpu refs.
    refs: *const PercpuRef,
}

/// The arrays, and the numbers that go with them.
pub(crate) struct FastPath {
    index: IndexView,
    /// Bytes that the inlined path serves: all that the index covers, or none in [`FenceMode::Full`].
    span: u64,
    /// The system page.
    pub(super) granule: PageShift,
    pub(super) arrays: Arrays,
}

/// The result of the inlined path.
pub(super) enum FastResult {
    /// A unit of this slot is held; the host address of the byte asked for.
    Entered(u64, usize),
    /// A unit of this slot is counted and its ref was not open: the slow half of the enter must follow.
    Counted(usize),
    /// Nothing is counted: the page is not of the index, or larger than the system page.
    Missed,
}

impl Arrays {
    /// The counter of `slot`, which must be below the number of counters.
    #[inline(always)]
    pub(super) fn count(self, slot: usize) -> *const AtomicI64 {
        self.counts.wrapping_add(slot)
    }

    /// The percpu ref of `slot`.
    #[inline(always)]
    pub(super) fn percpu_ref(self, slot: usize) -> *const PercpuRef {
        self.refs.wrapping_add(slot)
    }
}

impl FastPath {
    /// Covers nothing. `refs` has one for every slot.
    pub(super) fn new(refs: *const PercpuRef, granule: PageShift) -> Self {
        let arrays = Arrays { entries: ptr::null(), counts: ptr::null(), refs };
        Self { index: IndexView::EMPTY, span: 0, granule, arrays }
    }

    /// Switches to another snapshot's index and to counters with one for each slot that this snapshot names.
    pub(super) fn switch(&mut self, index: IndexView, counts: *const AtomicI64, mode: FenceMode) {
        self.index = index;
        self.span = if mode == FenceMode::Asymmetric { index.span } else { 0 };
        self.arrays = Arrays { entries: index.entries, counts, ..self.arrays };
    }

    /// The offset of `ua` in the index, if it lies there.
    #[inline(always)]
    fn offset(&self, ua: UserAddr) -> u64 {
        ua.raw().wrapping_sub(self.index.base)
    }

    /// The index entry of the byte at `ua`.
    #[inline(always)]
    pub(crate) fn load_entry(&self, ua: UserAddr) -> Option<*mut u32> {
        self.load_entry_within(self.arrays, self.offset(ua), self.index.span)
    }

    /// Like `load_entry`, for entries that a map may use without a fence: none where mapping passes one.
    #[inline(always)]
    pub(crate) fn load_entry_fast(&self, ua: UserAddr) -> Option<*mut u32> {
        self.load_entry_within(self.arrays, self.offset(ua), self.span)
    }

    #[inline(always)]
    fn load_entry_within(&self, arrays: Arrays, offset: u64, span: u64) -> Option<*mut u32> {
        let index = IndexView { entries: arrays.entries, ..self.index };
        // SAFETY: inside the index of the snapshot in use: no caller's `span` is larger than its own.
        (offset < span).then(|| unsafe { index.load(offset) })
    }

    /// The host address of the byte at `ua`.
    ///
    /// # Safety
    /// `entry` is the one over this byte, not empty, and a unit of its slot is held since it was loaded.
    #[inline(always)]
    pub(super) unsafe fn host_of(&self, entry: *mut u32, ua: UserAddr) -> u64 {
        // SAFETY: as the caller promises.
        unsafe { host_of(entry, self.offset(ua), self.granule.get()) }
    }

    /// Prefetches what `host_of` will read for the byte at `ua`.
    #[inline(always)]
    pub(super) fn prefetch(&self, entry: *mut u32, ua: UserAddr) {
        prefetch_page(entry, self.offset(ua), self.granule.get());
    }

    /// Counts a unit of the region that holds the page of `shift` around `ua`, and reads the address. `arrays` are this
    /// path's own or a copy.
    #[inline(always)]
    pub(super) fn enter(&self, arrays: Arrays, ua: UserAddr, shift: PageShift) -> FastResult {
        // No system page is smaller than 4 KiB, so callers that always pass that pay for no comparison.
        if shift != PageShift::K4 && shift > self.granule {
            return FastResult::Missed;
        }
        let offset = self.offset(ua);
        let Some(entry) = self.load_entry_within(arrays, offset, self.span) else {
            return FastResult::Missed;
        };
        // An empty entry has slot 0, whose ref is never open.
        let slot = slot_of(entry);
        // SAFETY: the snapshot in use names the slot, so it has a ref, and refs live as long as the engine.
        let percpu_ref = unsafe { &*arrays.percpu_ref(slot) };
        // SAFETY: for the same reason it has a counter; counters live as long as the reader.
        let count = unsafe { &*arrays.count(slot) };
        if !percpu_ref.enter_open(count, FenceMode::Asymmetric) {
            return FastResult::Counted(slot);
        }
        // SAFETY: entered after the entry was loaded.
        FastResult::Entered(unsafe { host_of(entry, offset, self.granule.get()) }, slot)
    }
}
