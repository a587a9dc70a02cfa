//! The page index: a flat array over a part of user memory whose entries locate the host addresses of pages.
//!
//! An entry covers `2^shift` bytes that lie wholly in one region, or is empty. It is one word (see `index_entry`): the
//! region's slot, and either a host page (the bytes are contiguous on the host) or a pointer into the region's page table.
//! So a translation loads the entry, and perhaps a page number, and never touches a region header.
//!
//! Entries are changed in place when regions are published and unpublished. A reader may act on an entry that was cleared
//! meanwhile; the closed percpu ref of the slot stops it, because a slot (and the table that an entry points to) is reused
//! only when no reader can have seen the old entry (see `registry`).
//!
//! Regions that do not fit are found by search (see `snapshot`): those not aligned to the entries or far away, those with
//! slots past 65,535, and all regions on hosts whose pointers are not 64 bits.

#![expect(unsafe_code, reason = "readers reach the array by pointer")]

use core::ptr;

use crate::addr::UserAddr;
use crate::lookup::index_entry::{entry_of, slot_of};
use crate::lookup::region::Region;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::table_memory::SharedTableMemory;
use crate::table_memory::owned::TableArray;

/// One entry. Null is empty, so no region has slot 0.
pub(crate) type IndexEntry = AtomicPtr<u32>;

/// The flat array of entries.
pub(crate) struct PageIndex {
    /// The generation of the first snapshot that uses it.
    pub(crate) first_generation: u64,
    base: u64,
    shift: u32,
    entries: TableArray<IndexEntry>,
}

/// A translator's copy of where a [`PageIndex`] lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IndexView {
    pub(crate) base: u64,
    /// Bytes covered.
    pub(crate) span: u64,
    pub(crate) shift: u32,
    pub(crate) entries: *const IndexEntry,
}

// SAFETY: the entries are atomics, which any thread may load as long as they live.
unsafe impl Send for IndexView {}
// SAFETY: as above.
unsafe impl Sync for IndexView {}

impl IndexView {
    /// Covers nothing.
    pub(crate) const EMPTY: Self = Self { base: 0, span: 0, shift: 12, entries: ptr::null() };

    /// The entry of the byte `offset` bytes after `base`.
    ///
    /// # Safety
    /// `offset` is below `span`, and the array lives.
    #[inline]
    pub(crate) unsafe fn load(&self, offset: u64) -> *mut u32 {
        // SAFETY: inside the array, as the caller promises.
        let entry = unsafe { &*self.entries.wrapping_add((offset >> self.shift) as usize) };
        // Acquire pairs with the Release in `fill`: the page table it points to was made before.
        entry.load(Ordering::Acquire)
    }
}

/// Base, entry size and length of an index: chosen so that most memory is covered for little table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IndexPlan {
    base: u64,
    shift: u32,
    count: usize,
}

/// Regions further apart than this are not covered by one array.
const CLUSTER_GAP: u64 = 1 << 38;
/// An index may always have `SMALL` entries; beyond that, one for every 16 pages or four for every region, which itself
/// takes more memory than those. But never more than `MOST`, enough for 1 TiB in huge pages: memory that is neither
/// pinned nor charged, as device memory, must not cost memory without bound.
const SMALL: u64 = 1 << 14;
const MOST: u64 = 1 << 19;
/// Regions with at most this many pages on average, gaps included, get one entry for each page.
const PAGES_OF_SMALL: u64 = 8;
/// The largest entry, as a power of two.
const LARGEST_SHIFT: u32 = 40;

impl IndexPlan {
    /// A plan for `regions`, in ascending order. `None` when nothing can be covered.
    pub(crate) fn new<'a>(regions: impl Iterator<Item = &'a Region> + Clone, granule: u32) -> Option<Self> {
        (usize::BITS >= 64).then_some(())?;
        let (first, last, pages, count) = Self::cluster(regions.clone(), granule)?;
        let limit = (pages / 16).max(4 * count).clamp(SMALL, MOST);
        let inside =
            |region: &&Region| region.range.first().raw() >= first && region.range.last().raw() <= last;
        let numbers = regions.clone().filter(inside).any(|region| !region.table.is_runs());
        let alignments = regions.filter(inside).map(|region| region.entry_alignment().max(granule));
        let entries = |shift: u32| (last >> shift) - (first >> shift) + 1;
        let finest = (alignments.clone().min()?..=LARGEST_SHIFT).find(|&shift| entries(shift) <= limit)?;
        // Regions that are aligned to less are found by search; the others need no smaller entries than the worst of
        // them. But many small ones get one entry for each page, which locates it without a second load.
        let covered = alignments.filter(|&alignment| alignment >= finest);
        let worst = covered.min()?.min(LARGEST_SHIFT);
        let by_page = numbers && entries(granule) <= PAGES_OF_SMALL * count;
        let shift = if by_page { granule } else { worst };
        let used = entries(shift);
        // Room to grow on both sides, so that new neighbours do not rebuild the array each time.
        let count = used.next_power_of_two();
        let base = (first >> shift).saturating_sub((count - used) / 2);
        Some(Self { base: base << shift, shift, count: usize::try_from(count).ok()? })
    }

    /// The group of neighbouring regions with the most pages: first byte, last byte, pages, regions.
    fn cluster<'a>(regions: impl Iterator<Item = &'a Region>, granule: u32) -> Option<(u64, u64, u64, u64)> {
        let mut best: Option<(u64, u64, u64, u64)> = None;
        let mut current: Option<(u64, u64, u64, u64)> = None;
        for region in regions {
            let (first, last) = (region.range.first().raw(), region.range.last().raw());
            let pages = region.range.bytes() >> granule;
            let group = match current {
                Some((start, end, sum, count)) if first - end <= CLUSTER_GAP => {
                    (start, last, sum + pages, count + 1)
                }
                _ => (first, last, pages, 1),
            };
            current = Some(group);
            if best.is_none_or(|(_, _, most, _)| group.2 > most) {
                best = Some(group);
            }
        }
        best
    }
}

impl PageIndex {
    /// An index with empty entries for `plan`, or without entries. `None` without memory.
    pub(crate) fn new(
        memory: &SharedTableMemory,
        plan: Option<IndexPlan>,
        first_generation: u64,
    ) -> Option<Self> {
        let IndexPlan { base, shift, count } = plan.unwrap_or(IndexPlan { base: 0, shift: 12, count: 0 });
        let entries = TableArray::new(memory, count, || IndexEntry::new(ptr::null_mut()))?;
        Some(Self { first_generation, base, shift, entries })
    }

    /// The number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn view(&self) -> IndexView {
        let span = (self.entries.len() as u64) << self.shift;
        IndexView { base: self.base, span, shift: self.shift, entries: self.entries.as_ptr() }
    }

    /// The first and last entry of `region`, if the index could cover all of it.
    fn entries_of(&self, region: &Region) -> Option<(usize, usize)> {
        let first = region.range.first().raw().checked_sub(self.base)?;
        let last = region.range.last().raw() - self.base;
        let fits = (last >> self.shift) < self.entries.len() as u64 && region.entry_alignment() >= self.shift;
        fits.then_some(((first >> self.shift) as usize, (last >> self.shift) as usize))
    }

    /// The value of entry `index` for `region`. `None` where an entry cannot express it.
    fn entry_for(&self, region: &Region, index: usize) -> Option<*mut u32> {
        let offset = (index as u64) << self.shift;
        let table = &region.table;
        let pages = table.entry_pages(UserAddr::new(self.base + offset), self.shift)?;
        entry_of(pages, offset, table.granule().get(), region.slot)
    }

    /// Makes the index find `region`. `false`, and nothing changes, when its entries cannot express where the pages
    /// are. Writers' lock held.
    pub(crate) fn fill(&self, region: &Region) -> bool {
        let Some((first, last)) = self.entries_of(region) else { return false };
        // All or nothing: a reader that loaded one entry could come back to it when the slot belongs to another region.
        if (first..=last).any(|index| self.entry_for(region, index).is_none()) {
            return false;
        }
        for index in first..=last {
            let entry = self.entry_for(region, index).unwrap_or(ptr::null_mut());
            // Release pairs with the Acquire in `IndexView::load`.
            self.entries[index].store(entry, Ordering::Release);
        }
        true
    }

    /// Removes `region` from the index. `false` when it was not there. Writers' lock held.
    pub(crate) fn clear(&self, region: &Region) -> bool {
        let Some((first, last)) = self.entries_of(region) else { return false };
        // Relaxed: written under the lock the caller holds.
        if slot_of(self.entries[first].load(Ordering::Relaxed)) != region.slot as usize {
            return false;
        }
        for entry in &self.entries[first..=last] {
            // Relaxed: a reader that still finds the entry meets the closed percpu ref.
            entry.store(ptr::null_mut(), Ordering::Relaxed);
        }
        true
    }
}

#[cfg(all(test, not(loom), target_pointer_width = "64"))]
mod tests {
    use super::*;
    use crate::addr::{Granule, HostAddr, UserRange};
    use crate::lookup::pages::PageList;
    use crate::table_memory::HeapTables;

    /// A region of device memory.
    fn device(first: u64, pages: u64) -> Region {
        let range = UserRange::new(UserAddr::new(first), pages << 12, Granule::K4).expect("whole pages");
        let table = crate::lookup::pages::PageTable::device(range, HostAddr::new(0), Granule::K4);
        Region { id: first, slot: 1, range, table, device: true, on_demand: false }
    }

    #[test]
    fn the_near_regions_with_the_most_pages_are_covered() {
        let near = [device(0x1000_0000, 3), device(0x1000_9000, 2)];
        let far = |pages| device(0x1000_afff + CLUSTER_GAP + 1, pages);
        let group = |regions: &[&Region]| IndexPlan::cluster(regions.iter().copied(), 12).unwrap();
        assert_eq!(group(&[&near[0], &near[1]]), (0x1000_0000, 0x1000_afff, 5, 2));
        let apart = far(5);
        assert_eq!(group(&[&near[0], &near[1], &apart]), (0x1000_0000, 0x1000_afff, 5, 2), "as many");
        let apart = far(6);
        let (first, last) = (apart.range.first().raw(), apart.range.last().raw());
        assert_eq!(group(&[&near[0], &near[1], &apart]), (first, last, 6, 1));
        let touching = device(0x1000_a000 + CLUSTER_GAP, 1);
        assert_eq!(group(&[&near[0], &near[1], &touching]).2, 6, "near enough");
    }

    #[test]
    fn there_are_as_many_entries_as_planned() {
        let memory: SharedTableMemory = alloc::sync::Arc::new(HeapTables::new());
        let plan = IndexPlan { base: 0x4000_0000, shift: 12, count: 8 };
        assert_eq!(PageIndex::new(&memory, Some(plan), 1).unwrap().len(), 8);
        assert_eq!(PageIndex::new(&memory, None, 1).unwrap().len(), 0);
    }

    #[test]
    fn a_region_whose_last_page_does_not_fit_an_index_entry_is_in_none() {
        let memory: SharedTableMemory = alloc::sync::Arc::new(HeapTables::new());
        let base = 0x4000_0000;
        let range = UserRange::new(UserAddr::new(base), 4 << 12, Granule::K4).unwrap();
        let plan = IndexPlan { base, shift: 12, count: 8 };
        // An entry has 46 bits for a signed page number, so the last two of the high pages do not fit.
        for (last, fits) in [(0x20_0000, true), (1 << 58, false)] {
            let mut pages = PageList::new(range, Granule::K4);
            pages.sink().push(HostAddr::new(0x10_0000), 2).unwrap();
            pages.sink().push(HostAddr::new(last), 2).unwrap();
            let table = pages.finish(&memory).unwrap().unwrap();
            let region = Region { id: 1, slot: 7, range, table, device: false, on_demand: false };
            let entries = PageIndex::new(&memory, Some(plan), 1).unwrap();
            // A mark that shows whether an entry was written, if only for a moment: a reader that loads it then would find
            // the next region in this slot.
            let mark = ptr::without_provenance_mut(9);
            entries.entries[0].store(mark, Ordering::Relaxed);
            assert_eq!(entries.fill(&region), fits);
            let seen: Vec<usize> =
                entries.entries.iter().map(|entry| slot_of(entry.load(Ordering::Relaxed))).collect();
            assert_eq!(seen, if fits { [7, 7, 7, 7, 0, 0, 0, 0] } else { [9, 0, 0, 0, 0, 0, 0, 0] });
            assert_eq!(entries.clear(&region), fits);
        }
    }
}
