//! The snapshot readers look regions up in: sorted, immutable, replaced as a whole.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::addr::UserAddr;
use crate::region::{Region, SharedRegion};

/// All regions of an address space at some moment, by start address.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// Beside the regions, so that the search touches nothing else.
    firsts: Box<[u64]>,
    regions: Box<[SharedRegion]>,
}

impl Snapshot {
    /// `regions` in ascending order, disjoint. `None` without memory.
    pub(crate) fn new(count: usize, regions: impl Iterator<Item = SharedRegion>) -> Option<Self> {
        let mut list = Vec::new();
        let mut firsts = Vec::new();
        list.try_reserve_exact(count).ok()?;
        firsts.try_reserve_exact(count).ok()?;
        for region in regions {
            firsts.push(region.range.first().raw());
            list.push(region);
        }
        Some(Self { firsts: firsts.into_boxed_slice(), regions: list.into_boxed_slice() })
    }

    /// The region that holds the byte at `ua`, and its index.
    #[inline]
    pub(crate) fn find(&self, ua: UserAddr) -> Option<(usize, &Region)> {
        let index = self.firsts.partition_point(|&first| first <= ua.raw()).checked_sub(1)?;
        let region = &*self.regions[index];
        (ua <= region.range.last()).then_some((index, region))
    }

    /// The region at `hint` if it holds the byte at `ua`.
    #[inline]
    pub(crate) fn at(&self, hint: usize, ua: UserAddr) -> Option<&Region> {
        let region = &**self.regions.get(hint)?;
        (ua >= region.range.first() && ua <= region.range.last()).then_some(region)
    }
}
