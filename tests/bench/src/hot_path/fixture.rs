//! The registered memory of one shape, and the candidates that look up addresses in it.

use std::sync::Arc;

use prereg::{
    AddressSpace, Barrier, Charge, Granule, HeapTables, Pin, RegisterError, Registration, TableMemory,
    TableMemoryState,
};
use prereg_linux::{GuestMemory, IoUring, LockedTables, Membarrier};
use prereg_sim::SimHost;

use super::baselines::{KernelList, LockedMap, OneAtomic};
use super::candidate::{Nothing, Workload};
use super::host::InventedHost;
use super::layout::{Addresses, Layout, PAGE, Shape};
use super::part::Part;
use super::prereg::{Prereg, PreregBurst, PreregLists};
use super::roofline::{Array4, Array8, Roofline};
#[cfg(feature = "peers")]
use super::vm_memory::{FindRegion, LockedIotlb};
use crate::error::BenchError;

/// User address of the first region, if no real memory is pinned.
pub const BASE: u64 = 0x7f00_0000_0000;

/// A candidate that can be sent to a thread.
pub type BoxedCandidate = Box<dyn Workload + Send>;

/// The regions of one shape in an address space.
#[derive(Debug)]
pub struct Fixture {
    /// The shape.
    pub shape: Shape,
    /// User address of the first region.
    pub base: u64,
    space: AddressSpace,
    /// A second address space with tables on the heap; none if real memory is pinned.
    on_heap: Option<AddressSpace>,
    /// The host address of every page, gaps left out.
    hosts: Vec<u64>,
    pages: SimHost,
    registrations: Vec<Registration>,
    one_atomic: Arc<OneAtomic>,
}

/// Registers every region of `shape`.
fn register_all(
    space: &AddressSpace,
    shape: Shape,
    base: u64,
    register: impl Fn(&AddressSpace, u64) -> Result<Registration, RegisterError>,
) -> Result<Vec<Registration>, BenchError> {
    let all = (0..shape.regions).map(|region| register(space, base + shape.region_offset(region)));
    all.collect::<Result<_, _>>().map_err(|error| BenchError::failed(format!("registering {shape}"), error))
}

impl Fixture {
    /// Registers memory with invented addresses.
    ///
    /// # Errors
    /// [`BenchError::Failed`].
    pub fn invented(shape: Shape, barrier: Option<Arc<dyn Barrier>>) -> Result<Self, BenchError> {
        let pages = SimHost::new(Granule::K4);
        let register =
            |space: &AddressSpace, at: u64| space.register(&pages.memory(at, shape.region_bytes()));
        let host = InventedHost::new(shape.layout, barrier.clone());
        let mut fixture = Self::new(shape, BASE, host, register)?;
        let on_heap = AddressSpace::builder(InventedHost::new(shape.layout, barrier)).build()?;
        fixture.registrations.extend(register_all(&on_heap, shape, BASE, register)?);
        fixture.on_heap = Some(on_heap);
        Ok(fixture)
    }

    /// Registers real memory: system pages for a scattered shape, transparent huge pages for a contiguous one.
    ///
    /// # Errors
    /// [`BenchError::Failed`] if this user may not pin that much.
    pub fn real(shape: Shape) -> Result<Self, BenchError> {
        let what = || format!("pinning {shape}");
        let memory = match shape.layout {
            Layout::Scattered => GuestMemory::anonymous(shape.span()),
            Layout::Contiguous => GuestMemory::anonymous_thp(shape.span()),
        };
        let memory = memory.map_err(|error| BenchError::failed(what(), error))?;
        let host = IoUring::new().map_err(|error| BenchError::failed(what(), error))?;
        Self::new(shape, memory.ua().raw(), host, |space, at| {
            let part = Part::new(&memory, at, shape.region_bytes());
            // Regions and gaps fill the memory exactly.
            space.register(&part.unwrap_or_else(|| unreachable!("a region of {shape} outside of its memory")))
        })
    }

    fn new(
        shape: Shape,
        base: u64,
        host: impl Pin + Charge + 'static,
        register: impl Fn(&AddressSpace, u64) -> Result<Registration, RegisterError>,
    ) -> Result<Self, BenchError> {
        let space = AddressSpace::builder(host).tables(LockedTables::shared()).build()?;
        let registrations = register_all(&space, shape, base, register)?;
        let mut hosts = Vec::new();
        for registration in &registrations {
            registration.visit_runs(|_, host, bytes| {
                hosts.extend((0..bytes / PAGE).map(|page| host.raw() + page * PAGE));
            });
        }
        let one_atomic = OneAtomic::new(shape, base, &hosts);
        let pages = SimHost::new(Granule::K4);
        Ok(Self { shape, base, space, on_heap: None, hosts, pages, registrations, one_atomic })
    }

    /// The addresses of the pages.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.shape.addresses(self.base)
    }

    /// The address space.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        &self.space
    }

    /// Memory of `pages` pages behind all regions and gaps, for another region.
    #[must_use]
    pub fn one_more(&self, pages: u64) -> prereg_sim::SimMemory {
        self.pages.memory(self.base + self.shape.span(), pages * PAGE)
    }

    /// A new translator.
    #[must_use]
    pub fn prereg(&self) -> BoxedCandidate {
        Box::new(Prereg(self.space.translator()))
    }

    /// The roofline, with its own tables on the heap.
    #[must_use]
    pub fn roofline(&self) -> BoxedCandidate {
        self.roofline_in(Arc::new(HeapTables::new()))
    }

    fn roofline_in(&self, memory: Arc<dyn TableMemory>) -> BoxedCandidate {
        Box::new(Roofline::new(self.shape, self.base, &self.hosts, memory))
    }

    /// Memory of the tables.
    #[must_use]
    pub fn tables(&self) -> TableMemoryState {
        self.space.snapshot().tables
    }

    /// The sorted array, which all callers share.
    #[must_use]
    pub fn one_atomic(&self) -> BoxedCandidate {
        Box::new(self.one_atomic.clone())
    }

    /// The candidates that are also measured with a second thread; the costs of the others follow from these.
    #[must_use]
    pub fn contenders(&self) -> Vec<(&'static str, BoxedCandidate)> {
        vec![("limit", self.roofline()), ("prereg", self.prereg()), ("one-atomic", self.one_atomic())]
    }

    /// All candidates, the roofline first.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, BoxedCandidate)> {
        let mut all = self.contenders();
        let narrow = self.hosts.iter().map(|host| (host / PAGE) as u32).collect();
        if let Some(on_heap) = &self.on_heap {
            all.push(("prereg-heap", Box::new(Prereg(on_heap.translator()))));
        }
        all.push(("prereg-burst", Box::new(PreregBurst(self.space.translator()))));
        for (name, at_once) in [("prereg-list", true), ("prereg-each", false)] {
            all.push((name, Box::new(PreregLists::new(self.space.translator(), at_once))));
        }
        all.push(("limit-huge", self.roofline_in(LockedTables::shared())));
        all.push(("loop", Box::new(Nothing)));
        all.push(("array4", Box::new(Array4(narrow))));
        all.push(("array8", Box::new(Array8(self.hosts.clone().into()))));
        all.push(("kernel-list", Box::new(KernelList::new(self.shape, self.base, &self.hosts))));
        all.push(("btreemap-rwlock", Box::new(LockedMap::new(self.shape, self.base, &self.hosts))));
        #[cfg(feature = "peers")]
        {
            if let Some(candidate) = FindRegion::new(self.shape, self.base) {
                all.push(("vm-memory", Box::new(candidate)));
            }
            if let Some(candidate) = LockedIotlb::new(self.shape, self.base) {
                all.push(("vm-memory-iotlb", Box::new(candidate)));
            }
        }
        all
    }

    /// The fence of the benchmark's address spaces.
    #[must_use]
    pub fn barrier() -> Option<Arc<dyn Barrier>> {
        Membarrier::shared()
    }
}
