//! A process of a scenario: its memory and account, open files, limits and privileges, and variables.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use prereg::{AddressSpace, Granule, Memory, OutOfMemory, Pin, UserAddr, UserRange};
use prereg_iommu::container::{Owner, UserMemory};
use prereg_scenario::names::{Kind, Names};
use prereg_sim::SimHost;

use super::machine::{Machine, OpenFile, Shared};
use super::slots::Regions;

/// All memory of a process on the fake host.
struct Whole(SimHost);

impl UserMemory for Whole {
    fn at(&self, range: UserRange) -> Option<Box<dyn Memory>> {
        Some(Box::new(self.0.range(range.first().raw(), range.bytes())))
    }
}

/// A process. [`fork`](Self::fork) makes a child.
pub(super) struct Process {
    pub(super) shared: Rc<Shared>,
    pub(super) host: SimHost,
    pub(super) owner: Owner,
    /// Dropped before the files, because its mappings belong to the process.
    pub(super) regions: Regions,
    files: BTreeMap<u64, Rc<OpenFile>>,
    pub(super) names: Names,
    /// The address of the next memory without a given address.
    pub(super) next_memory: u64,
    pub(super) user: u64,
    pub(super) may_lock: bool,
    pub(super) may_raise: bool,
    /// The limit on locked memory in bytes; `None`: none.
    pub(super) limit: Option<u64>,
    /// Slices of the address space with huge pages, by their first byte.
    huge_slices: BTreeSet<u64>,
    /// Regions that lost their last registration while mapped, by start and length.
    orphans: BTreeSet<(UserAddr, u64)>,
}

impl Process {
    /// The lowest descriptor that is free at first.
    const FIRST_FILE: u64 = 4;
    const FIRST_MEMORY: u64 = 0x2_0000_0000;
    /// The default limit of locked memory.
    const DEFAULT_LIMIT: u64 = 8 << 20;

    pub(super) fn new(shared: Rc<Shared>, granule: Granule) -> Result<Self, OutOfMemory> {
        let host = SimHost::new(granule);
        host.ram_bytes(Machine::LARGEST_LIST);
        Self::over(host, shared)
    }

    fn over(host: SimHost, shared: Rc<Shared>) -> Result<Self, OutOfMemory> {
        let page = host.granule().bytes();
        let space = Arc::new(AddressSpace::builder(host.clone()).build()?);
        let account = Arc::new(host.clone());
        let memory = Arc::new(Whole(host.clone()));
        let owner = Owner::new(space.clone(), account.clone(), account, memory);
        let mut process = Self {
            shared,
            host,
            owner,
            regions: Regions::new(space),
            files: BTreeMap::new(),
            names: Names::new(page),
            next_memory: Self::FIRST_MEMORY,
            user: 0,
            may_lock: true,
            may_raise: true,
            limit: Some(Self::DEFAULT_LIMIT),
            huge_slices: BTreeSet::new(),
            orphans: BTreeSet::new(),
        };
        process.apply_limit();
        Ok(process)
    }

    /// A child: a copy of the memory, shared files, nothing registered or locked.
    pub(super) fn fork(&self) -> Result<Self, OutOfMemory> {
        let mut child = Self::over(self.host.fork(), self.shared.clone())?;
        child.files = self.files.clone();
        child.names = self.names.clone();
        child.next_memory = self.next_memory;
        (child.user, child.may_lock, child.may_raise) = (self.user, self.may_lock, self.may_raise);
        child.limit = self.limit;
        child.huge_slices = self.huge_slices.clone();
        child.apply_limit();
        Ok(child)
    }

    pub(super) fn granule(&self) -> Granule {
        self.owner.space().granule()
    }

    /// The system page in bytes.
    pub(super) fn page(&self) -> u64 {
        self.granule().bytes()
    }

    /// Updates the host's limit and privileges.
    pub(super) fn apply_limit(&mut self) {
        let shift = self.granule().shift().get();
        self.host.limit_pages(self.limit.map(|bytes| bytes >> shift));
        self.host.privileged(self.may_lock);
    }

    /// Locked memory in KiB: registrations, tables and plain locks.
    pub(super) fn locked_kib(&self) -> u64 {
        let pages = self.host.charged_pages() + self.host.locked_pages();
        pages * (self.page() >> 10)
    }

    /// Whether the slices of `[at, at + bytes)` may get huge pages, or small ones, next to existing mappings; if so they are
    /// marked.
    pub(super) fn claim_slices(&mut self, at: u64, bytes: u64, huge: bool) -> bool {
        let mut slices = Vec::new();
        let mut next = at;
        while let Some((first, length)) = self.shared.machine.slice(next).filter(|_| next < at + bytes) {
            let used = self.host.is_any_mapped(first, length);
            if used && self.huge_slices.contains(&first) != huge {
                return false;
            }
            slices.push(first);
            next = first + length;
        }
        for slice in slices {
            if huge {
                self.huge_slices.insert(slice);
            } else {
                self.huge_slices.remove(&slice);
            }
        }
        true
    }

    /// Updates the list of regions without registrations; `true` if one of them was released since.
    pub(super) fn watch_orphans(&mut self) -> bool {
        let regions = self.owner.space().snapshot().regions;
        let seen = self.orphans.len();
        self.orphans.retain(|orphan| regions.iter().any(|region| (region.ua, region.bytes) == *orphan));
        let released = self.orphans.len() < seen;
        self.orphans
            .extend(regions.iter().filter(|region| region.draining).map(|region| (region.ua, region.bytes)));
        released
    }

    // ---- files

    /// Opens `file` as the lowest free descriptor.
    pub(super) fn open(&mut self, file: Rc<OpenFile>) -> u64 {
        let mut free = Self::FIRST_FILE;
        while self.files.contains_key(&free) {
            free += 1;
        }
        self.files.insert(free, file);
        free
    }

    pub(super) fn open_as(&mut self, name: &str, file: Rc<OpenFile>) {
        let descriptor = self.open(file);
        self.names.set(name, Kind::File, descriptor);
    }

    pub(super) fn file(&self, descriptor: Option<u64>) -> Option<Rc<OpenFile>> {
        self.files.get(&descriptor?).cloned()
    }

    pub(super) fn close(&mut self, descriptor: Option<u64>) -> bool {
        descriptor.is_some_and(|descriptor| self.files.remove(&descriptor).is_some())
    }
}
