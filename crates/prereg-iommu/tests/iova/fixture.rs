//! A simulated host, one registered region and one that is not contiguous with it, a map, and a count of drained mappings.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{Access, AddressSpace, Granule, Holder, HolderKind, Iova, Registration, UserAddr};
use prereg_iommu::iova::{Backing, IovaLimits, IovaMap, IovaMapError, OnDrained};
use prereg_sim::SimHost;

pub(crate) const PAGE: u64 = 0x1000;
/// Pages of the registered region.
pub(crate) const PAGES: u64 = 64;
pub(crate) const BASE: u64 = 0x7f00_0000_0000;

/// Counts the calls of `on_drained`.
#[derive(Default)]
pub(crate) struct DrainCounter(AtomicU64);

impl DrainCounter {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

impl OnDrained for DrainCounter {
    fn on_drained(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

pub(crate) struct Fixture {
    pub(crate) map: IovaMap,
    pub(crate) drains: Arc<DrainCounter>,
    pub(crate) registration: Registration,
    pub(crate) space: AddressSpace,
    pub(crate) host: SimHost,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(IovaLimits::default())
    }

    pub(crate) fn with(limits: IovaLimits) -> Self {
        let host = SimHost::new(Granule::K4);
        let space = AddressSpace::builder(host.clone()).build().unwrap();
        let registration = space.register(&host.memory(BASE, PAGES * PAGE)).unwrap();
        let drains = Arc::new(DrainCounter::default());
        let holder = Holder { container: 7, kind: HolderKind::InFlight };
        let map = IovaMap::new(&space, limits, holder, Arc::clone(&drains) as Arc<dyn OnDrained>).unwrap();
        Self { map, drains, registration, space, host }
    }

    /// Live mappings of the region.
    pub(crate) fn mapped(&self) -> u64 {
        self.registration.state().unwrap().mapped
    }

    /// Maps `pages` pages at I/O page `at` to the region's pages from `to` on.
    pub(crate) fn map(&self, at: u64, pages: u64, to: u64) -> Result<(), IovaMapError> {
        self.map.map(iova(at), pages * PAGE, local(to), Access::ReadWrite)
    }
}

/// The start of an I/O page.
pub(crate) fn iova(page: u64) -> Iova {
    Iova::new(page * PAGE)
}

/// The start of a page of the region.
pub(crate) fn ua(page: u64) -> UserAddr {
    UserAddr::new(BASE + page * PAGE)
}

pub(crate) fn local(page: u64) -> Backing {
    Backing::Local(ua(page))
}
