//! Random operations of the adapters over every kind of container, compared with a reference model after each.
//!
//! Devices are attached and removed, memory is mapped and unmapped (RAM, read-only, a device's, by descriptor; across registrations and
//! gaps), registered, unregistered and unmapped in the process, and the container fails calls at random. After each operation a device
//! reaches exactly the pages that the model has mapped; a container without devices reaches no others; all of them exist, and are pinned
//! if the adapter says so; and no operation failed without cause.
//!
//! ```sh
//! cargo test --release -p prereg-vmm --all-features --test random_operations -- --ignored --nocapture
//! ```
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

mod fake_containers;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use fake_containers::{FakeContainer, FakeDevice, Kind, PAGE, Page, READ_ONLY, Reach, WINDOW};
use prereg::{Access, AddressSpace, Errno, Granule, Registration};
use prereg_sim::{MapSpec, Protection, SimHost};
use prereg_vmm::openvmm::{DmaMapRequest, DmaTarget, DmaTargetError, MappingType, PinnedTarget};
use prereg_vmm::vfio::PinnedVfio;
use prereg_vmm::{Attached, DmaContainer, PersistentMappings};
use proptest::prelude::*;
use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno::Error as SysError;

const RAM: u64 = 0x7000_0000;
const BAR: u64 = 0x7200_0000;
/// Pages of each kind of memory.
const BLOCK: u64 = 32;
/// Pages of I/O virtual addresses; a SPAPR container translates fewer.
const IOVAS: u64 = 64;
/// Mappings that a type1 container accepts.
const LIMIT: usize = 12;
const MOST_DEVICES: usize = 4;

/// The adapter under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Adapter {
    Vfio,
    Target,
}

enum Adapted {
    Vfio(Arc<PinnedVfio>),
    Target(PinnedTarget),
}

/// A mapping in the model.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    bytes: u64,
    first: Page,
    access: Access,
    /// The kind of memory was not given, so it may be mapped with less access than requested.
    unknown: bool,
}

struct World {
    kind: Kind,
    host: SimHost,
    space: Arc<AddressSpace>,
    container: Arc<FakeContainer>,
    adapted: Adapted,
    devices: Vec<Attached<FakeDevice>>,
    registrations: Vec<Registration>,
    file: Option<File>,
    model: BTreeMap<u64, Mapping>,
    done: u64,
    refused: u64,
}

/// Several numbers from the bits of one.
struct Bits(u64);

impl Bits {
    fn below(&mut self, end: u64) -> u64 {
        let value = self.0 % end;
        self.0 /= end;
        value
    }
}

impl World {
    fn new(kind: Kind, adapter: Adapter) -> Self {
        let host = SimHost::new(Granule::K4);
        host.memory(RAM, BLOCK * PAGE);
        host.map(READ_ONLY.start, BLOCK * PAGE, MapSpec::protected(Protection::ReadOnly));
        host.map(BAR, BLOCK * PAGE, MapSpec::unpinnable());
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let container = FakeContainer::with_limit(kind, &host, LIMIT);
        let inner = Arc::clone(&container);
        let adapted = match adapter {
            Adapter::Vfio => {
                Adapted::Vfio(PinnedVfio::new(Arc::clone(&space), inner as Arc<dyn VfioOps>, 1).unwrap())
            }
            Adapter::Target => Adapted::Target(
                PinnedTarget::new(Arc::clone(&space), inner as Arc<dyn DmaContainer>, 1).unwrap(),
            ),
        };
        // Not under miri, which opens no files.
        let file = if cfg!(miri) { None } else { File::open("/dev/null").ok() };
        let (devices, registrations, model) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self {
            kind,
            host,
            space,
            container,
            adapted,
            devices,
            registrations,
            file,
            model,
            done: 0,
            refused: 0,
        }
    }

    fn mappings(&self) -> &PersistentMappings {
        match &self.adapted {
            Adapted::Vfio(vfio) => vfio.mappings(),
            Adapted::Target(target) => target.mappings(),
        }
    }

    fn step(&mut self, bits: u64) {
        let mut bits = Bits(bits);
        let operation = bits.below(16);
        // In one of eight steps a call of the container fails.
        if bits.below(8) == 0 {
            let errnos = [Errno::ENOMEM, Errno::EBUSY, Errno::EIO, Errno::EINTR];
            let call = 1 + bits.below(4) as u32;
            self.container.refuse(call, errnos[bits.below(4) as usize]);
        }
        match operation {
            0..=5 => self.map(&mut bits),
            6..=9 => self.unmap(&mut bits),
            10 => self.attach(),
            11 => self.leave(&mut bits),
            12 => self.register(&mut bits),
            13 => self.unregister(&mut bits),
            14 => self.unmap_from_process(&mut bits),
            _ => drop(self.host.memory(RAM, BLOCK * PAGE)),
        }
        self.container.stop_refusing();
        self.check();
        self.done += 1;
    }

    /// Checks that a failed operation had a cause.
    fn expect(&mut self, what: &str, result: Result<(), Errno>, allowed: bool) -> bool {
        let refusals = u64::from(self.container.stop_refusing());
        self.refused += refusals;
        let refused = refusals > 0;
        match result {
            Ok(()) => assert!(allowed, "{what} was not refused"),
            Err(errno) => assert!(!allowed || refused, "{what} was refused with {errno} without cause"),
        }
        result.is_ok()
    }

    fn map(&mut self, bits: &mut Bits) {
        let iova = bits.below(IOVAS) * PAGE;
        let bytes = (1 + bits.below(6)) * PAGE;
        let page = bits.below(BLOCK - 6) * PAGE;
        let source = bits.below(8);
        let by_target = matches!(self.adapted, Adapted::Target(_));
        let (first, read_only) = match source {
            0..=4 => (Page::Memory(RAM + page), false),
            5 => (Page::Memory(READ_ONLY.start + page), true),
            6 => (Page::Memory(BAR + page), false),
            _ if by_target && self.file.is_some() => (Page::File(page), false),
            _ => (Page::Memory(RAM + page), false),
        };
        let writable = !by_target || bits.below(3) > 0;
        let access = if writable { Access::ReadWrite } else { Access::Read };
        if let Page::Memory(ua) = first {
            if !self.host.is_mapped(ua, bytes) {
                return;
            }
            // The `VfioOps` trait maps for reading and writing only, and a container without devices detects too late that this is not
            // possible.
            if read_only && !by_target {
                return;
            }
        }
        let result = match (&self.adapted, first) {
            (Adapted::Vfio(vfio), Page::Memory(ua)) => {
                let start = std::ptr::without_provenance_mut(ua as usize);
                #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
                // SAFETY: see the reason.
                unsafe { vfio.vfio_dma_map(iova, bytes as usize, start) }.map_err(|error| errno(&error))
            }
            (Adapted::Target(target), _) => {
                let (host_va, mappable, file_offset) = match first {
                    Page::Memory(ua) => (Some(std::ptr::without_provenance(ua as usize)), None, 0),
                    Page::File(offset) => (None, self.file.as_ref().map(AsFd::as_fd), offset),
                };
                let mapping_type = if source == 6 { MappingType::Device } else { MappingType::Ram };
                let range = iova..iova + bytes;
                let request = DmaMapRequest { range, host_va, mappable, file_offset, writable, mapping_type };
                #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
                // SAFETY: see the reason.
                unsafe { target.map_dma(request) }.map_err(|error| error.errno())
            }
            (Adapted::Vfio(_), Page::File(_)) => return,
        };
        let overlaps =
            self.model.range(..iova + bytes).next_back().is_some_and(|(at, m)| at + m.bytes > iova);
        let pinnable = !(read_only && writable);
        let asked = self.kind == Kind::Iommufd && by_target || !self.mappings().snapshot().dormant;
        let accepted = !asked || self.accepts(iova, bytes, first);
        if self.expect("a map", result, !overlaps && pinnable && accepted) {
            let unknown = !by_target;
            self.model.insert(iova, Mapping { bytes, first, access, unknown });
        } else if overlaps {
            assert_eq!(result, Err(Errno::EEXIST));
        }
    }

    /// Whether the container accepts one more mapping.
    fn accepts(&self, iova: u64, bytes: u64, first: Page) -> bool {
        let has_iommu = self.kind == Kind::Iommufd || !self.devices.is_empty();
        has_iommu
            && match self.kind {
                Kind::Type1 => self.model.len() < LIMIT && matches!(first, Page::Memory(_)),
                Kind::Iommufd => true,
                Kind::Spapr => iova + bytes <= WINDOW && matches!(first, Page::Memory(_)),
            }
    }

    fn unmap(&mut self, bits: &mut Bits) {
        let chosen = bits.below(4) > 0;
        let at = bits.below(self.model.len().max(1) as u64) as usize;
        let (start, pages) = match self.model.iter().nth(at) {
            // One mapping, or one and the next.
            Some((&start, mapping)) if chosen => {
                (start, mapping.bytes / PAGE + bits.below(3) * bits.below(8))
            }
            _ => (bits.below(IOVAS) * PAGE, 1 + bits.below(24)),
        };
        let (bytes, end) = (pages * PAGE, start + pages * PAGE);
        let cut = self.model.iter().any(|(&at, mapping)| {
            let last = at + mapping.bytes;
            at < end && last > start && (at < start || last > end)
        });
        let inside: Vec<u64> = self.model.range(start..end).map(|(&at, _)| at).collect();
        let mapped: u64 = inside.iter().map(|at| self.model[at].bytes).sum();
        let result = match &self.adapted {
            Adapted::Vfio(vfio) => match vfio.vfio_dma_unmap(start, bytes as usize) {
                Err(VfioError::InvalidDmaUnmapSize) => {
                    assert_ne!(mapped, bytes);
                    Ok(())
                }
                Ok(()) => {
                    assert_eq!(mapped, bytes);
                    Ok(())
                }
                Err(error) => Err(errno(&error)),
            },
            Adapted::Target(target) => target.unmap_dma(start..end).map_err(|error| error.errno()),
        };
        if self.expect("an unmap", result, !cut) {
            self.model.retain(|at, _| !inside.contains(at));
        } else if cut {
            assert_eq!(result, Err(Errno::EINVAL));
        }
    }

    fn attach(&mut self) {
        if self.devices.len() == MOST_DEVICES {
            return;
        }
        let container = &self.container;
        let opened = match &self.adapted {
            Adapted::Vfio(vfio) => vfio
                .attach(|_| {
                    container.open().map_err(|errno| VfioError::IommuDmaMap(SysError::new(errno.raw())))
                })
                .map_err(|error| errno(&error)),
            Adapted::Target(target) => {
                target.attach(|| container.open().map_err(Refused)).map_err(|Refused(errno)| errno)
            }
        };
        // A container in which all mappings are made again must accept each.
        let accepted = match self.kind {
            _ if !self.devices.is_empty() => true,
            Kind::Type1 => {
                self.model.len() <= LIMIT && self.model.values().all(|m| matches!(m.first, Page::Memory(_)))
            }
            Kind::Iommufd => true,
            Kind::Spapr => self
                .model
                .iter()
                .all(|(iova, m)| iova + m.bytes <= WINDOW && matches!(m.first, Page::Memory(_))),
        };
        let opened = match opened {
            Ok(device) => {
                self.devices.push(device);
                Ok(())
            }
            Err(errno) => Err(errno),
        };
        self.expect("an attach", opened, accepted);
    }

    fn leave(&mut self, bits: &mut Bits) {
        if !self.devices.is_empty() {
            let at = bits.below(self.devices.len() as u64) as usize;
            drop(self.devices.swap_remove(at));
        }
    }

    /// The VMM registers memory, unless a region overlaps it.
    fn register(&mut self, bits: &mut Bits) {
        let (page, pages) = (bits.below(BLOCK - 4), 1 + bits.below(4));
        let range = self.host.range(RAM + page * PAGE, pages * PAGE);
        self.registrations.extend(self.space.register(&range).ok());
    }

    fn unregister(&mut self, bits: &mut Bits) {
        if self.registrations.is_empty() {
            return;
        }
        let at = bits.below(self.registrations.len() as u64) as usize;
        if let Err(error) = self.registrations.swap_remove(at).unregister() {
            assert_eq!(error.errno(), Errno::EBUSY);
            let registration = error.into_inner();
            let (first, end) = (registration.ua().raw(), registration.ua().raw() + registration.bytes());
            let used = self.model.values().any(|mapping| match mapping.first {
                Page::Memory(ua) => ua < end && ua + mapping.bytes > first,
                Page::File(_) => false,
            });
            assert!(used, "memory that is not mapped was not unregistered");
            self.registrations.push(registration);
        }
    }

    /// The VMM unmaps a part of its memory that is not pinned.
    fn unmap_from_process(&mut self, bits: &mut Bits) {
        let ua = RAM + bits.below(BLOCK - 4) * PAGE;
        let pages = 1 + bits.below(4);
        let mapped = self.model.values().any(|mapping| {
            matches!(mapping.first, Page::Memory(at) if at < ua + pages * PAGE && at + mapping.bytes > ua)
        });
        if !mapped && (0..pages).all(|page| self.host.pin_count(ua + page * PAGE) == 0) {
            self.host.unmap(ua, pages * PAGE);
        }
    }

    /// Compares everything with the model.
    fn check(&self) {
        let expected: Reach = self
            .model
            .iter()
            .flat_map(|(iova, mapping)| {
                (0..mapping.bytes / PAGE).map(move |page| {
                    let at = page * PAGE;
                    let first = match mapping.first {
                        Page::Memory(ua) => Page::Memory(ua + at),
                        Page::File(offset) => Page::File(offset + at),
                    };
                    (iova + at, (first, mapping.access))
                })
            })
            .collect();
        let reach = self.container.reach();
        if !self.devices.is_empty() {
            assert_eq!(reach, expected, "what a device reaches");
        } else {
            for (iova, page) in &reach {
                assert_eq!(expected.get(iova), Some(page), "a container without devices, at {iova:#x}");
            }
        }
        for (page, _) in reach.values() {
            assert!(!matches!(page, Page::Memory(ua) if !self.host.is_mapped(*ua, PAGE)), "freed memory");
        }
        let state = self.mappings().snapshot();
        assert_eq!((state.devices as usize, state.mappings.len()), (self.devices.len(), self.model.len()));
        for mapping in state.mappings {
            let modelled = self.model[&mapping.iova.raw()];
            assert_eq!(mapping.bytes, modelled.bytes);
            let Page::Memory(ua) = modelled.first else { continue };
            let is_ram = ua < READ_ONLY.start;
            assert_eq!(mapping.pinned, is_ram, "{mapping:?} {}", modelled.unknown);
            for page in (0..mapping.bytes / PAGE).filter(|_| is_ram) {
                assert!(self.host.pin_count(ua + page * PAGE) > 0, "memory that is mapped is pinned");
            }
        }
    }

    /// Removes everything and checks that nothing is left.
    fn finish(mut self) -> (u64, u64) {
        self.devices.clear();
        match &self.adapted {
            Adapted::Vfio(vfio) => {
                let _ = vfio.vfio_dma_unmap(0, usize::MAX);
            }
            Adapted::Target(target) => target.unmap_dma(0..u64::MAX).unwrap(),
        }
        assert!(self.container.reach().is_empty());
        for registration in self.registrations {
            registration.unregister().unwrap();
        }
        drop(self.adapted);
        self.host.assert_clean();
        (self.done, self.refused)
    }
}

struct Refused(Errno);

impl From<DmaTargetError> for Refused {
    fn from(error: DmaTargetError) -> Self {
        Self(error.errno())
    }
}

fn errno(error: &VfioError) -> Errno {
    match error {
        VfioError::IommuDmaMap(error) | VfioError::IommuDmaUnmap(error) => Errno::from_raw(error.errno()),
        other => panic!("{other}"),
    }
}

fn run(kind: Kind, adapter: Adapter, steps: impl IntoIterator<Item = u64>) -> (u64, u64) {
    let mut world = World::new(kind, adapter);
    steps.into_iter().for_each(|bits| world.step(bits));
    world.finish()
}

/// SplitMix64.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

const KINDS: [Kind; 3] = [Kind::Type1, Kind::Iommufd, Kind::Spapr];
const ADAPTERS: [Adapter; 2] = [Adapter::Vfio, Adapter::Target];

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 256 }, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn short_runs_follow_the_model(
        kind in prop::sample::select(KINDS.to_vec()),
        adapter in prop::sample::select(ADAPTERS.to_vec()),
        steps in prop::collection::vec(any::<u64>(), 1..if cfg!(miri) { 20 } else { 300 }),
    ) {
        run(kind, adapter, steps);
    }
}

/// A run of `steps` for each kind of container, half of them by each adapter.
fn long_run(steps: usize) {
    for kind in KINDS {
        let results = ADAPTERS.map(|adapter| run(kind, adapter, numbers(steps as u64).take(steps / 2)));
        let (done, refused) = results.into_iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
        println!("{kind:?}: {done} steps, {refused} calls refused by the container, 0 differences");
        assert_eq!(done, steps as u64);
    }
}

#[test]
fn longer_runs_follow_the_model() {
    long_run(if cfg!(miri) { 20 } else { 40_000 });
}

#[test]
#[ignore = "takes a minute; the run of record"]
fn a_million_steps_follow_the_model() {
    long_run(1_000_000);
}
