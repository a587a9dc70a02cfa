//! A machine with processes, groups and containers, and shorthands for requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use prereg::{Access, AddressSpace, BusAddr, Errno, Granule, Memory, RegionState, UserAddr, UserRange};
use prereg_iommu::Geometry;
use prereg_iommu::container::{
    Container, ContainerError, Group, Owner, Platform, SoftwareGroup, UserMemory, Version,
};
use prereg_sim::SimHost;

/// Start of region A; region B begins right after its 16 pages.
pub(crate) const A: u64 = 0x7000_0000_0000;
pub(crate) const K4: u64 = 4096;
pub(crate) const B: u64 = A + 16 * K4;
/// The second window.
pub(crate) const W1: u64 = 1 << 59;

/// Pages charged for the default window.
pub(crate) const DEFAULT: u64 = 2048;

pub(crate) struct Ram(pub(crate) SimHost);

impl UserMemory for Ram {
    fn at(&self, range: UserRange) -> Option<Box<dyn Memory>> {
        Some(Box::new(self.0.range(range.first().raw(), range.bytes())))
    }
}

/// A process with 64 pages of memory at `A`.
pub(crate) struct Process {
    pub(crate) host: SimHost,
    pub(crate) owner: Owner,
}

impl Process {
    pub(crate) fn new() -> Self {
        Self::with(SimHost::new(Granule::K4))
    }

    pub(crate) fn with(host: SimHost) -> Self {
        host.memory(A, 64 * K4);
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let account = Arc::new(host.clone());
        let owner = Owner::new(space, account.clone(), account, Arc::new(Ram(host.clone())));
        Self { host, owner }
    }

    pub(crate) fn region(&self, ua: u64) -> Option<RegionState> {
        self.owner.space().find(UserAddr::new(ua), 1)
    }

    /// `used` and `mapped` of the region at `ua`.
    pub(crate) fn counts(&self, ua: u64) -> (u64, u64) {
        self.region(ua).map_or((0, 0), |region| (region.used, region.kernel_mapped()))
    }

    pub(crate) fn locked(&self) -> u64 {
        self.host.charged_pages()
    }
}

/// Runs `scenario` in a new process and asserts that nothing is left.
pub(crate) fn fresh(scenario: impl FnOnce(&Process)) {
    let process = Process::new();
    scenario(&process);
    process.host.assert_clean();
}

pub(crate) type Asked = Result<(), Errno>;

/// A container with a process that uses it.
pub(crate) struct User<'p> {
    pub(crate) process: &'p Process,
    pub(crate) container: Container,
}

pub(crate) fn group(number: u32) -> Arc<dyn Group> {
    Arc::new(SoftwareGroup::new(number, Platform::POWERNV))
}

pub(crate) fn number<T>(result: Result<T, ContainerError>) -> Result<T, Errno> {
    result.map_err(|error| {
        assert!(!error.to_string().is_empty());
        error.errno()
    })
}

impl<'p> User<'p> {
    /// A version 2 container with group `group_number`.
    pub(crate) fn new(process: &'p Process, group_number: u32) -> Self {
        Self::of(process, group_number, Version::V2)
    }

    pub(crate) fn of(process: &'p Process, group_number: u32, version: Version) -> Self {
        let mut container = Container::new(u64::from(group_number) + 1);
        container.attach(group(group_number)).unwrap();
        container.set_iommu(version).unwrap();
        Self { process, container }
    }

    pub(crate) fn register(&mut self, ua: u64, pages: u64) -> Asked {
        number(self.container.register_memory(&self.process.owner, UserAddr::new(ua), pages * K4))
    }

    pub(crate) fn unregister(&mut self, ua: u64, pages: u64) -> Asked {
        number(self.container.unregister_memory(&self.process.owner, UserAddr::new(ua), pages * K4))
    }

    /// Maps for reading and writing.
    pub(crate) fn map(&mut self, ua: u64, ioba: u64, bytes: u64) -> Asked {
        self.map_as(Some(Access::ReadWrite), ua, ioba, bytes)
    }

    pub(crate) fn map_as(&mut self, access: Option<Access>, ua: u64, ioba: u64, bytes: u64) -> Asked {
        let (ua, ioba) = (UserAddr::new(ua), BusAddr::new(ioba));
        number(self.container.map_dma(&self.process.owner, access, ua, ioba, bytes))
    }

    pub(crate) fn unmap(&mut self, ioba: u64, bytes: u64) -> Asked {
        number(self.container.unmap_dma(&self.process.owner, BusAddr::new(ioba), bytes))
    }

    pub(crate) fn create(&mut self, shift: u32, bytes: u64, levels: u32) -> Result<u64, Errno> {
        number(self.container.create_window(&self.process.owner, shift, bytes, levels)).map(BusAddr::raw)
    }

    pub(crate) fn remove(&mut self, start: u64) -> Asked {
        number(self.container.remove_window(&self.process.owner, BusAddr::new(start)))
    }

    /// Live entries of all windows.
    pub(crate) fn live(&self) -> u64 {
        self.container.windows().map(|(_, table)| table.live()).sum()
    }
}

/// A group whose hardware counts its windows and refuses one of them.
#[derive(Debug)]
pub(crate) struct Hardware {
    pub(crate) number: u32,
    pub(crate) platform: Platform,
    pub(crate) refuses: Option<usize>,
    pub(crate) windows: AtomicU32,
}

impl Hardware {
    pub(crate) fn new(number: u32, refuses: Option<usize>) -> Arc<Self> {
        let windows = AtomicU32::new(0);
        Arc::new(Self { number, platform: Platform::POWERNV, refuses, windows })
    }

    /// A bit for each window.
    pub(crate) fn windows(&self) -> u32 {
        self.windows.load(Ordering::Relaxed)
    }
}

impl Group for Hardware {
    fn number(&self) -> u32 {
        self.number
    }

    fn platform(&self) -> &Platform {
        &self.platform
    }

    fn set_window(&self, slot: usize, _: &Geometry) -> Result<(), Errno> {
        if self.refuses == Some(slot) {
            return Err(Errno::EIO);
        }
        self.windows.fetch_or(1 << slot, Ordering::Relaxed);
        Ok(())
    }

    fn unset_window(&self, slot: usize) {
        self.windows.fetch_and(!(1 << slot), Ordering::Relaxed);
    }
}
