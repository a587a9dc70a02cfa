//! A snapshot: the page index, and a sorted list of the regions that the index does not cover.
//!
//! Snapshots that differ only in the list share one index, so that one more region in the list costs no copy of it.
//! Regions are added to and removed from the index in place: readers of every snapshot that shares it see the change.
#![expect(unsafe_code, reason = "readers reach regions by pointer, without touching their owner")]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use crate::addr::UserAddr;
use crate::lookup::index::{IndexView, PageIndex};
use crate::lookup::region::{Region, SharedRegion};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::table_memory::SharedTableMemory;
use crate::table_memory::owned::{TableArray, TableBox};

/// The regions of an address space, as of its publication and, for the index, as changed since.
pub(crate) struct Snapshot {
    /// Ascending; determines which regions a reader of this snapshot may know (see `registry`).
    pub(crate) generation: u64,
    pub(crate) index: Arc<PageIndex>,
    /// The copy that translators take.
    pub(crate) view: IndexView,
    /// The length of the list at which another index is looked for.
    list_limit: usize,
    /// Regions that the index does not cover: start addresses, ascending, and pointers for readers.
    firsts: TableArray<u64>,
    region_pointers: TableArray<AtomicPtr<Region>>,
    /// Owns them.
    regions: Box<[SharedRegion]>,
}

/// A list of this length is searched in negligible time.
const SHORT_LIST: usize = 16;

impl Snapshot {
    /// The first snapshot: empty. `None` without memory.
    pub(crate) fn empty(memory: &SharedTableMemory) -> Option<TableBox<Self>> {
        Self::listing(memory, 0, Arc::new(PageIndex::new(memory, None, 0)?), 0, Vec::new())
    }

    /// `regions` in ascending order, disjoint; those that `index` can cover are filled in. `None` without memory.
    pub(crate) fn new<'a>(
        memory: &SharedTableMemory,
        index: PageIndex,
        regions: impl Iterator<Item = &'a SharedRegion>,
    ) -> Option<TableBox<Self>> {
        let mut listed = Vec::new();
        for region in regions {
            if !index.fill(region) {
                listed.try_reserve(1).ok()?;
                listed.push(region.clone());
            }
        }
        let list_limit = SHORT_LIST.max(listed.len() * 2);
        Self::listing(memory, index.first_generation, Arc::new(index), list_limit, listed)
    }

    fn listing(
        memory: &SharedTableMemory,
        generation: u64,
        index: Arc<PageIndex>,
        list_limit: usize,
        regions: Vec<SharedRegion>,
    ) -> Option<TableBox<Self>> {
        let firsts = regions.iter().map(|region| region.range.first().raw());
        let region_pointers = regions.iter().map(|region| AtomicPtr::new(region.as_ptr().as_ptr()));
        let snapshot = Self {
            generation,
            view: index.view(),
            index,
            list_limit,
            firsts: TableArray::from_iter(memory, regions.len(), firsts)?,
            region_pointers: TableArray::from_iter(memory, regions.len(), region_pointers)?,
            regions: regions.into_boxed_slice(),
        };
        TableBox::new(memory, snapshot)
    }

    /// The port for the next one.
    fn memory(&self) -> &SharedTableMemory {
        self.firsts.memory()
    }

    /// The next snapshot: this index, and `region` added to the list. `None` without memory.
    pub(crate) fn with(&self, region: &SharedRegion) -> Option<TableBox<Self>> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len() + 1).ok()?;
        regions.extend(self.regions.iter().cloned());
        let place = self.firsts.partition_point(|&first| first < region.range.first().raw());
        regions.insert(place, region.clone());
        Self::listing(self.memory(), self.generation + 1, self.index.clone(), self.list_limit, regions)
    }

    /// The next snapshot: this index, and region `id` removed from the list. `None` without memory.
    pub(crate) fn without(&self, id: u64) -> Option<TableBox<Self>> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len()).ok()?;
        regions.extend(self.regions.iter().filter(|region| region.id != id).cloned());
        Self::listing(self.memory(), self.generation + 1, self.index.clone(), self.list_limit, regions)
    }

    /// Whether one more region of `pages` pages, which this index does not cover, is worth looking for another index in
    /// a space of `regions` regions: either the list grows long, or pinning that many pages is more work anyway.
    pub(crate) fn is_outgrown_by(&self, pages: u64, regions: usize) -> bool {
        let work = self.index.len() as u64 + 8 * regions as u64;
        self.regions.len() >= self.list_limit || pages.saturating_mul(8) >= work
    }

    /// The region in the list that holds the byte at `ua`.
    #[inline]
    pub(crate) fn search(&self, ua: UserAddr) -> Option<&Region> {
        let index = self.firsts.partition_point(|&first| first <= ua.raw()).checked_sub(1)?;
        // Relaxed: never changes.
        let region = NonNull::new(self.region_pointers[index].load(Ordering::Relaxed))?;
        // SAFETY: owned by `regions` as long as the snapshot lives.
        let region: &Region = unsafe { region.as_ref() };
        (ua <= region.range.last()).then_some(region)
    }
}
