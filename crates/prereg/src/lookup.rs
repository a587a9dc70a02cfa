//! What readers look regions up in: the cells first, and a sorted list for what they do not cover.
//!
//! Snapshots that differ in the list alone share their cells, so that one more region that the cells do not cover costs no
//! copy of them. Regions come to and go from cells in place: a reader of any snapshot that shares them sees it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::addr::UserAddr;
use crate::cells::Cells;
use crate::region::{Region, SharedRegion};

/// All regions of an address space, as of its publication and, for the cells, as patched since.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Ascending; which regions a reader of this snapshot can know follows from it (see `books`).
    pub(crate) generation: u64,
    pub(crate) cells: Arc<Cells>,
    /// How long the list may become before other cells are looked for.
    patience: usize,
    /// Regions the cells do not cover: start addresses, ascending, and the regions.
    firsts: Box<[u64]>,
    regions: Box<[SharedRegion]>,
}

/// A list so long is searched in next to no time.
const SHORT_LIST: usize = 16;

impl Snapshot {
    /// The first snapshot of all: nothing.
    pub(crate) fn empty() -> Self {
        let cells = Arc::new(Cells::empty(0));
        Self { generation: 0, cells, patience: 0, firsts: Box::default(), regions: Box::default() }
    }

    /// `regions` in ascending order, disjoint; those that `cells` can cover are filled in. `None` without memory.
    pub(crate) fn new<'a>(cells: Cells, regions: impl Iterator<Item = &'a SharedRegion>) -> Option<Self> {
        let mut listed = Vec::new();
        for region in regions {
            if !cells.fill(region) {
                listed.try_reserve(1).ok()?;
                listed.push(region.clone());
            }
        }
        let patience = SHORT_LIST.max(listed.len() * 2);
        Self::listing(cells.born, Arc::new(cells), patience, listed)
    }

    fn listing(
        generation: u64,
        cells: Arc<Cells>,
        patience: usize,
        regions: Vec<SharedRegion>,
    ) -> Option<Self> {
        let mut firsts = Vec::new();
        firsts.try_reserve_exact(regions.len()).ok()?;
        firsts.extend(regions.iter().map(|region| region.range.first().raw()));
        Some(Self {
            generation,
            cells,
            patience,
            firsts: firsts.into_boxed_slice(),
            regions: regions.into_boxed_slice(),
        })
    }

    /// The next snapshot, with the same cells, and `region` in the list. `None` without memory.
    pub(crate) fn with(&self, region: &SharedRegion) -> Option<Self> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len() + 1).ok()?;
        regions.extend(self.regions.iter().cloned());
        let place = self.firsts.partition_point(|&first| first < region.range.first().raw());
        regions.insert(place, region.clone());
        Self::listing(self.generation + 1, self.cells.clone(), self.patience, regions)
    }

    /// The next snapshot, with the same cells, and without region `id` in the list. `None` without memory.
    pub(crate) fn without(&self, id: u64) -> Option<Self> {
        let mut regions = Vec::new();
        regions.try_reserve_exact(self.regions.len()).ok()?;
        regions.extend(self.regions.iter().filter(|region| region.id != id).cloned());
        Self::listing(self.generation + 1, self.cells.clone(), self.patience, regions)
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
        let region = &*self.regions[index];
        (ua <= region.range.last()).then_some(region)
    }
}
