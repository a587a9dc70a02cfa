//! The crate `vm-memory` of rust-vmm, which many virtual machine monitors use: `find_region`, and its IOTLB under a lock.

use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::iommu::Iotlb;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    Permissions,
};

use super::candidate::Candidate;
use super::layout::{Address, PAGE, Shape};
use super::prereg::not_found;

/// `find_region` in guest memory of the shape, which is never touched.
pub(super) struct FindRegion(GuestMemoryMmap<()>);

impl std::fmt::Debug for FindRegion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FindRegion")
    }
}

impl FindRegion {
    /// `None` if the host refuses to map that much.
    #[must_use]
    pub(super) fn new(shape: Shape, base: u64) -> Option<Self> {
        let mut regions = Vec::new();
        for index in 0..shape.regions {
            let memory = MmapRegion::build(
                None,
                usize::try_from(shape.region_bytes()).ok()?,
                libc::PROT_NONE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE,
            );
            let first = GuestAddress(base + shape.region_offset(index));
            regions.push(GuestRegionMmap::new(memory.ok()?, first)?);
        }
        GuestMemoryMmap::from_regions(regions).ok().map(Self)
    }

    #[inline(always)]
    fn find(&self, ua: u64) -> u64 {
        match self.0.find_region(GuestAddress(ua)) {
            Some(region) => region.start_addr().0 + region.len(),
            None => not_found(),
        }
    }
}

impl Candidate for FindRegion {
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        self.find(address.ua)
    }

    /// Counts nothing.
    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        self.find(address.ua)
    }

    #[inline(always)]
    fn range(&mut self, address: Address, _bytes: u64) -> u64 {
        self.find(address.ua)
    }
}

/// `Iotlb` in a `RwLock`, one entry per region.
#[derive(Debug)]
pub(super) struct LockedIotlb(RwLock<Iotlb>);

impl LockedIotlb {
    /// `None` if an entry is refused.
    #[must_use]
    pub(super) fn new(shape: Shape, base: u64) -> Option<Arc<Self>> {
        let mut table = Iotlb::new();
        for index in 0..shape.regions {
            let first = GuestAddress(base + shape.region_offset(index));
            let bytes = usize::try_from(shape.region_bytes()).ok()?;
            table.set_mapping(first, first, bytes, Permissions::ReadWrite).ok()?;
        }
        Some(Arc::new(Self(RwLock::new(table))))
    }

    #[inline(always)]
    fn find(&self, ua: u64, bytes: u64) -> u64 {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match Iotlb::lookup(&*table, GuestAddress(ua), bytes as usize, Permissions::Read) {
            Ok(runs) => runs.fold(0u64, |sum, run| sum.wrapping_add(run.base.0)) >> 1,
            Err(_) => not_found(),
        }
    }
}

impl Candidate for Arc<LockedIotlb> {
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        self.find(address.ua, PAGE)
    }

    /// Counts nothing.
    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        self.find(address.ua, PAGE)
    }

    #[inline(always)]
    fn range(&mut self, address: Address, bytes: u64) -> u64 {
        self.find(address.ua, bytes)
    }
}
