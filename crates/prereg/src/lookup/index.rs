//! The fast tier of lookup: a flat array over a stretch of user memory whose cells say where the page addresses are.
//!
//! A cell covers `2^shift` bytes that lie wholly in one region, or it is empty. It is one word (see `tagged`): the region's
//! slot, and either a host page (the cell is contiguous on the host) or a pointer into the region's table. So a translation
//! loads the cell, and perhaps the page, and never touches a header.
//!
//! Cells are patched in place when regions come and go. A reader may act on a cell that was emptied meanwhile; the door of
//! the slot stops it, for a slot (and the table a cell points to) is used again only when no reader can have seen the old
//! cell (see `books`).
//!
//! What does not fit is found by search instead (see `lookup`): regions not aligned to the cells or far away, slots past
//! 65,535, and everything on hosts whose pointers have not 64 bits.

#![expect(unsafe_code, reason = "readers reach the array by pointer")]

use core::ptr;

use crate::addr::UserAddr;
use crate::lookup::index_entry::{slot_of, word_of};
use crate::lookup::region::Region;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::table_memory::Tables;
use crate::table_memory::owned::Slab;

/// One cell. Null is empty; so slot 0 is never given to a region.
pub(crate) type Cell = AtomicPtr<u32>;

/// A flat array of cells.
pub(crate) struct Cells {
    /// The generation of the first snapshot that shows them.
    pub(crate) born: u64,
    base: u64,
    shift: u32,
    cells: Slab<Cell>,
}

/// What a reader keeps at hand of a [`Cells`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) base: u64,
    /// Bytes covered.
    pub(crate) span: u64,
    pub(crate) shift: u32,
    pub(crate) cells: *const Cell,
}

// SAFETY: the cells are atomics, which any thread may load as long as they live.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Covers nothing.
    pub(crate) const EMPTY: Self = Self { base: 0, span: 0, shift: 12, cells: ptr::null() };

    /// The cell of the byte `offset` bytes after `base`.
    ///
    /// # Safety
    /// `offset` is below `span`, and the array lives.
    #[inline]
    pub(crate) unsafe fn load(&self, offset: u64) -> *mut u32 {
        // SAFETY: inside the array, by the caller's promise.
        let cell = unsafe { &*self.cells.wrapping_add((offset >> self.shift) as usize) };
        // Acquire pairs with the Release in `fill`: the table it points to was made before.
        cell.load(Ordering::Acquire)
    }
}

/// Where cells could lie: chosen so that most memory is covered for little table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Plan {
    base: u64,
    shift: u32,
    count: usize,
}

/// Regions further apart than this are not covered by one array.
const CLUSTER_GAP: u64 = 1 << 38;
/// An array may always have so many cells; beyond that, one for every 16 pages or four for every region, which itself
/// takes more memory than those. But never more than that of 1 TiB in huge pages: what nobody pins or charges, as device
/// memory, must not cost memory without bound.
const SMALL: u64 = 1 << 14;
const MOST: u64 = 1 << 19;
/// Regions of so few pages on average, gaps included, are covered page by page.
const PAGES_OF_SMALL: u64 = 8;
/// The largest cell.
const LARGEST_SHIFT: u32 = 40;

impl Plan {
    /// A plan for `regions`, in ascending order. `None` when nothing can be covered.
    pub(crate) fn new<'a>(regions: impl Iterator<Item = &'a Region> + Clone, granule: u32) -> Option<Self> {
        (usize::BITS >= 64).then_some(())?;
        let (first, last, pages, count) = Self::cluster(regions.clone(), granule)?;
        let limit = (pages / 16).max(4 * count).clamp(SMALL, MOST);
        let inside =
            |region: &&Region| region.range.first().raw() >= first && region.range.last().raw() <= last;
        let numbers = regions.clone().filter(inside).any(|region| !region.table.is_runs());
        let alignments = regions.filter(inside).map(|region| region.cell_alignment().max(granule));
        let cells = |shift: u32| (last >> shift) - (first >> shift) + 1;
        let finest = (alignments.clone().min()?..=LARGEST_SHIFT).find(|&shift| cells(shift) <= limit)?;
        // Regions that are aligned to less are searched for; the others need no finer cells than the worst of them. But
        // many small ones get a cell for each page, which says where it is without a second load.
        let covered = alignments.filter(|&alignment| alignment >= finest);
        let worst = covered.min()?.min(LARGEST_SHIFT);
        let by_page = numbers && cells(granule) <= PAGES_OF_SMALL * count;
        let shift = if by_page { granule } else { worst };
        let used = cells(shift);
        // Room to grow on both sides, so that a run of new neighbours does not rebuild the array each time.
        let count = used.next_power_of_two();
        let base = (first >> shift).saturating_sub((count - used) / 2);
        Some(Self { base: base << shift, shift, count: usize::try_from(count).ok()? })
    }

    /// The group of near regions with the most pages: first byte, last byte, pages, regions.
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

impl Cells {
    /// Empty cells for `plan`, or none at all. `None` without memory.
    pub(crate) fn new(memory: &Tables, plan: Option<Plan>, born: u64) -> Option<Self> {
        let Plan { base, shift, count } = plan.unwrap_or(Plan { base: 0, shift: 12, count: 0 });
        let cells = Slab::new(memory, count, || Cell::new(ptr::null_mut()))?;
        Some(Self { born, base, shift, cells })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.cells.len()
    }

    pub(crate) fn view(&self) -> View {
        let span = (self.cells.len() as u64) << self.shift;
        View { base: self.base, span, shift: self.shift, cells: self.cells.as_ptr() }
    }

    /// The cells of `region`, if all of it could be covered by this array.
    fn cells_of(&self, region: &Region) -> Option<(usize, usize)> {
        let first = region.range.first().raw().checked_sub(self.base)?;
        let last = region.range.last().raw() - self.base;
        let fits = (last >> self.shift) < self.cells.len() as u64 && region.cell_alignment() >= self.shift;
        fits.then_some(((first >> self.shift) as usize, (last >> self.shift) as usize))
    }

    /// What cell `index` says when it is `region`'s. `None` where a word cannot say it.
    fn word(&self, region: &Region, index: usize) -> Option<*mut u32> {
        let offset = (index as u64) << self.shift;
        let table = &region.table;
        let pages = table.cell(UserAddr::new(self.base + offset), self.shift)?;
        word_of(pages, offset, table.granule().get(), region.slot)
    }

    /// Makes `region` found. `false`, and it is not, when the cells cannot say where its pages are. Writers' lock held.
    pub(crate) fn fill(&self, region: &Region) -> bool {
        let Some((first, last)) = self.cells_of(region) else { return false };
        // All or nothing: a reader that loaded one cell could come back to it when the slot is another region's.
        if (first..=last).any(|index| self.word(region, index).is_none()) {
            return false;
        }
        for index in first..=last {
            let word = self.word(region, index).unwrap_or(ptr::null_mut());
            // Release pairs with the Acquire in `View::load`.
            self.cells[index].store(word, Ordering::Release);
        }
        true
    }

    /// Makes `region` no longer found. `false` when it was not found here. Writers' lock held.
    pub(crate) fn clear(&self, region: &Region) -> bool {
        let Some((first, last)) = self.cells_of(region) else { return false };
        // Relaxed: written under the lock the caller holds.
        if slot_of(self.cells[first].load(Ordering::Relaxed)) != region.slot as usize {
            return false;
        }
        for cell in &self.cells[first..=last] {
            // Relaxed: a reader that still finds the cell meets the closed door.
            cell.store(ptr::null_mut(), Ordering::Relaxed);
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
        Region { id: first, slot: 1, range, table, device: true }
    }

    #[test]
    fn the_near_regions_with_the_most_pages_are_covered() {
        let near = [device(0x1000_0000, 3), device(0x1000_9000, 2)];
        let far = |pages| device(0x1000_afff + CLUSTER_GAP + 1, pages);
        let group = |regions: &[&Region]| Plan::cluster(regions.iter().copied(), 12).unwrap();
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
    fn there_are_as_many_cells_as_planned() {
        let memory: Tables = alloc::sync::Arc::new(HeapTables::new());
        let plan = Plan { base: 0x4000_0000, shift: 12, count: 8 };
        assert_eq!(Cells::new(&memory, Some(plan), 1).unwrap().len(), 8);
        assert_eq!(Cells::new(&memory, None, 1).unwrap().len(), 0);
    }

    #[test]
    fn a_region_whose_last_page_does_not_fit_a_cell_is_in_no_cell() {
        let memory: Tables = alloc::sync::Arc::new(HeapTables::new());
        let base = 0x4000_0000;
        let range = UserRange::new(UserAddr::new(base), 4 << 12, Granule::K4).unwrap();
        let plan = Plan { base, shift: 12, count: 8 };
        // A cell has 46 bits for a signed page number, so the last two of the high pages do not fit.
        for (last, fits) in [(0x20_0000, true), (1 << 58, false)] {
            let mut pages = PageList::new(range, Granule::K4);
            pages.sink().push(HostAddr::new(0x10_0000), 2).unwrap();
            pages.sink().push(HostAddr::new(last), 2).unwrap();
            let table = pages.finish(&memory).unwrap().unwrap();
            let region = Region { id: 1, slot: 7, range, table, device: false };
            let cells = Cells::new(&memory, Some(plan), 1).unwrap();
            assert_eq!(cells.fill(&region), fits);
            let seen: Vec<usize> =
                cells.cells.iter().map(|cell| slot_of(cell.load(Ordering::Relaxed))).collect();
            assert_eq!(seen, if fits { [7, 7, 7, 7, 0, 0, 0, 0] } else { [0; 8] });
            assert_eq!(cells.clear(&region), fits);
        }
    }
}
