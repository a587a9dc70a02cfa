//! What readers look regions up in: the cells first, and a sorted list for what they do not cover.
//!
//! Snapshots that differ in the list alone share their cells, so that one more region that the cells do not cover costs no
//! copy of them. Regions come to and go from cells in place: a reader of any snapshot that shares them sees it.
#![expect(unsafe_code, reason = "readers reach regions by pointer, without touching their owner")]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use crate::addr::UserAddr;
use crate::lookup::index::{Cells, View};
use crate::lookup::region::{Region, SharedRegion};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::table_memory::Tables;
use crate::table_memory::owned::{Placed, Slab};

/// All regions of an address space, as of its publication and, for the cells, as patched since.
pub(crate) struct Snapshot {
    /// Ascending; which regions a reader of this snapshot can know follows from it (see `books`).
    pub(crate) generation: u64,
    pub(crate) cells: Arc<Cells>,
    /// What readers need of the cells.
    pub(crate) view: View,
    /// How long the list may become before other cells are looked for.
    patience: usize,
    /// Regions the cells do not cover: start addresses, ascending, and the regions, for readers.
    firsts: Slab<u64>,
    shown: Slab<AtomicPtr<Region>>,
    /// Owns them.
    regions: Box<[SharedRegion]>,
}

/// A list so long is searched in next to no time.
const SHORT_LIST: usize = 16;

impl Snapshot {
    /// The first snapshot of all: nothing. `None` without memory.
    pub(crate) fn empty(memory: &Tables) -> Option<Placed<Self>> {
        Self::listing(memory, 0, Arc::new(Cells::new(memory, None, 0)?), 0, Vec::new())
    }

    /// `regions` in ascending order, disjoint; those that `cells` can cover are filled in. `None` without memory.
    pub(crate) fn new<'a>(
        memory: &Tables,
        cells: Cells,
        regions: impl Iterator<Item = &'a SharedRegion>,
    ) -> Option<Placed<Self>> {
        let mut listed = Vec::new();
        for region in regions {
            if !cells.fill(region) {
                listed.try_reserve(1).ok()?;
                listed.push(region.clone());
            }
        }
        let patience = SHORT_LIST.max(listed.len() * 2);
        Self::listing(memory, cells.born, Arc::new(cells), patience, listed)
    }

    fn listing(
        memory: &Tables,
        generation: u64,
        cells: Arc<Cells>,
        patience: usize,
        regions: Vec<SharedRegion>,
    ) -> Option<Placed<Self>> {
        let firsts = regions.iter().map(|region| region.range.first().raw());
        let shown = regions.iter().map(|region| AtomicPtr::new(region.as_ptr().as_ptr()));
        let snapshot = Self {
            generation,
            view: cells.view(),
            cells,
            patience,
            firsts: Slab::from_iter(memory, regions.len(), firsts)?,
            shown: Slab::from_iter(memory, regions.len(), shown)?,
            regions: regions.into_boxed_slice(),
        };
        Placed::new(memory, snapshot)
    }

    /// The memory of the next one.
    fn memory(&self) -> &Tables {
        self.firsts.memory()
    }

    /// The next snapshot, with the same cells, and `region` in the list. `None` without memory.
    pub(crate) fn with(&self, region: &SharedRegion) -> Option<Placed<Self>> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len() + 1).ok()?;
        regions.extend(self.regions.iter().cloned());
        let place = self.firsts.partition_point(|&first| first < region.range.first().raw());
        regions.insert(place, region.clone());
        Self::listing(self.memory(), self.generation + 1, self.cells.clone(), self.patience, regions)
    }

    /// The next snapshot, with the same cells, and without region `id` in the list. `None` without memory.
    pub(crate) fn without(&self, id: u64) -> Option<Placed<Self>> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len()).ok()?;
        regions.extend(self.regions.iter().filter(|region| region.id != id).cloned());
        Self::listing(self.memory(), self.generation + 1, self.cells.clone(), self.patience, regions)
    }

    /// Whether one more region of `pages` pages, which these cells do not cover, is worth the work of looking for other
    /// cells in a space of `regions` regions: either the list grows long, or pinning so many pages is more work anyway.
    pub(crate) fn is_outgrown_by(&self, pages: u64, regions: usize) -> bool {
        let work = self.cells.len() as u64 + 8 * regions as u64;
        self.regions.len() >= self.patience || pages.saturating_mul(8) >= work
    }

    /// The region among those not covered that holds the byte at `ua`.
    #[inline]
    pub(crate) fn search(&self, ua: UserAddr) -> Option<&Region> {
        let index = self.firsts.partition_point(|&first| first <= ua.raw()).checked_sub(1)?;
        // Relaxed: never changes.
        let region = NonNull::new(self.shown[index].load(Ordering::Relaxed))?;
        // SAFETY: owned by `regions` as long as the snapshot lives.
        let region: &Region = unsafe { region.as_ref() };
        (ua <= region.range.last()).then_some(region)
    }
}
