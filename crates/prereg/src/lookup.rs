//! What readers look regions up in: the cells first, and a sorted list for what they do not cover.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::UserAddr;
use crate::cells::Cells;
use crate::region::{Region, SharedRegion};

/// All regions of an address space, as of its publication and, for the cells, as patched since.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// Ascending; which regions a reader of this snapshot can know follows from it (see `books`).
    pub(crate) generation: u64,
    pub(crate) cells: Cells,
    /// Regions the cells do not cover: start addresses, ascending, and the regions.
    firsts: Box<[u64]>,
    regions: Box<[SharedRegion]>,
}

impl Snapshot {
    /// The first snapshot of all: nothing.
    pub(crate) fn empty() -> Self {
        Self { generation: 0, cells: Cells::empty(), firsts: Box::default(), regions: Box::default() }
    }

    /// `regions` in ascending order, disjoint; those that `cells` covers are filled in. `None` without memory.
    pub(crate) fn new<'a>(
        generation: u64,
        cells: Cells,
        regions: impl Iterator<Item = &'a SharedRegion>,
    ) -> Option<Self> {
        let mut searched = Vec::new();
        let mut firsts = Vec::new();
        for region in regions {
            if cells.covers(region) {
                cells.fill(region);
                continue;
            }
            searched.try_reserve(1).ok()?;
            firsts.try_reserve(1).ok()?;
            searched.push(region.clone());
            firsts.push(region.range.first().raw());
        }
        Some(Self {
            generation,
            cells,
            firsts: firsts.into_boxed_slice(),
            regions: searched.into_boxed_slice(),
        })
    }

    /// The region among those not covered that holds the byte at `ua`.
    #[inline]
    pub(crate) fn search(&self, ua: UserAddr) -> Option<&Region> {
        let index = self.firsts.partition_point(|&first| first <= ua.raw()).checked_sub(1)?;
        let region = &*self.regions[index];
        (ua <= region.range.last()).then_some(region)
    }
}
