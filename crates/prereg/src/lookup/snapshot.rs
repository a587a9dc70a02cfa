//! What readers look regions up in: the index first, and a sorted list for what they do not cover.
//!
//! Snapshots that differ in the list alone share their index, so that one more region that the index do not cover costs no
//! copy of them. Regions come to and go from index in place: a reader of any snapshot that shares them sees it.
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

/// All regions of an address space, as of its publication and, for the index, as patched since.
pub(crate) struct Snapshot {
    /// Ascending; which regions a reader of this snapshot can know follows from it (see `registry`).
    pub(crate) generation: u64,
    pub(crate) index: Arc<PageIndex>,
    /// What readers need of the index.
    pub(crate) view: IndexView,
    /// How long the list may become before other index are looked for.
    list_limit: usize,
    /// Regions the index do not cover: start addresses, ascending, and the regions, for readers.
    firsts: TableArray<u64>,
    region_pointers: TableArray<AtomicPtr<Region>>,
    /// Owns them.
    regions: Box<[SharedRegion]>,
}

/// A list so long is searched in next to no time.
const SHORT_LIST: usize = 16;

impl Snapshot {
    /// The first snapshot of all: nothing. `None` without memory.
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

    /// The memory of the next one.
    fn memory(&self) -> &SharedTableMemory {
        self.firsts.memory()
    }

    /// The next snapshot, with the same index, and `region` in the list. `None` without memory.
    pub(crate) fn with(&self, region: &SharedRegion) -> Option<TableBox<Self>> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len() + 1).ok()?;
        regions.extend(self.regions.iter().cloned());
        let place = self.firsts.partition_point(|&first| first < region.range.first().raw());
        regions.insert(place, region.clone());
        Self::listing(self.memory(), self.generation + 1, self.index.clone(), self.list_limit, regions)
    }

    /// The next snapshot, with the same index, and without region `id` in the list. `None` without memory.
    pub(crate) fn without(&self, id: u64) -> Option<TableBox<Self>> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len()).ok()?;
        regions.extend(self.regions.iter().filter(|region| region.id != id).cloned());
        Self::listing(self.memory(), self.generation + 1, self.index.clone(), self.list_limit, regions)
    }

    /// Whether one more region of `pages` pages, which these index do not cover, is worth the work of looking for other
    /// index in a space of `regions` regions: either the list grows long, or pinning so many pages is more work anyway.
    pub(crate) fn is_outgrown_by(&self, pages: u64, regions: usize) -> bool {
        let work = self.index.len() as u64 + 8 * regions as u64;
        self.regions.len() >= self.list_limit || pages.saturating_mul(8) >= work
    }

    /// The region among those not covered that holds the byte at `ua`.
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
