//! Guest memory of `vm-memory`: registered whole or not at all, translated and held.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

#[path = "../examples/vm_memory.rs"]
mod example;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{
    Access, AddressKind, AddressSpace, Charge, ChargeError, DirtyPages, Errno, Granule, Holder, HostAddr,
    PageSink, Pin, PinError, PinId, UserRange,
};
use prereg_iommu::iova::IovaLimits;
use prereg_vmm::vm_memory::{PinnedIommu, RegisteredRam};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Iommu, IommuMemory, Permissions};

const PAGE: u64 = 4096;

/// Counts pages without pinning them, and fails at a chosen call.
#[derive(Clone, Default)]
struct Counting {
    pinned: Arc<AtomicU64>,
    /// Pins until one fails; 0 for none.
    fail_at: Arc<AtomicU64>,
}

// SAFETY: the addresses are invented, and no device exists.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }
    fn granule(&self) -> Granule {
        Granule::K4
    }
    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        if self.fail_at.load(Ordering::Relaxed) != 0 && self.fail_at.fetch_sub(1, Ordering::Relaxed) == 1 {
            return Err(PinError::OutOfMemory);
        }
        let count = range.pages(Granule::K4);
        for page in 0..count {
            // No two pages are contiguous for the device.
            pages.push(HostAddr::new((1 << 40) + page * 2 * PAGE), 1)?;
        }
        self.pinned.fetch_add(count, Ordering::Relaxed);
        Ok(PinId::new(0))
    }
    fn unpin(&self, _pin: PinId, range: UserRange, _dirty: DirtyPages<'_>) {
        self.pinned.fetch_sub(range.pages(Granule::K4), Ordering::Relaxed);
    }
}

impl Charge for Counting {
    fn charge(&self, _pages: u64) -> Result<(), ChargeError> {
        Ok(())
    }
    fn uncharge(&self, _pages: u64) {}
}

struct World {
    host: Counting,
    space: Arc<AddressSpace>,
    guest: GuestMemoryMmap,
}

impl World {
    fn new(ranges: &[(u64, usize)]) -> Self {
        let host = Counting::default();
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let ranges: Vec<_> = ranges.iter().map(|&(at, bytes)| (GuestAddress(at), bytes)).collect();
        Self { host, space, guest: GuestMemoryMmap::from_ranges(&ranges).unwrap() }
    }

    fn ram(&self) -> RegisteredRam {
        RegisteredRam::register(&self.space, &self.guest, Holder::default()).unwrap()
    }

    fn iommu(&self, ram: RegisteredRam) -> PinnedIommu {
        PinnedIommu::new(&self.space, Arc::new(ram), IovaLimits::default(), Holder::default()).unwrap()
    }

    fn pinned(&self) -> u64 {
        self.host.pinned.load(Ordering::Relaxed)
    }
}

#[test]
fn the_example_runs() {
    example::main().unwrap();
}

#[test]
fn every_region_is_registered_and_addresses_go_both_ways() {
    let world = World::new(&[(0, 0x4000), (0x10_0000, 0x2000)]);
    let ram = world.ram();
    assert_eq!(world.pinned(), 6);
    for (gpa, bytes, inside) in [
        (0, 0x4000, true),
        (0x3fff, 1, true),
        (0x3fff, 2, false),
        (0x10_1000, 0x1000, true),
        (0x4000, 1, false),
        (0x10_2000, 1, false),
        (u64::MAX, 1, false),
        (0, 0, false),
    ] {
        let ua = ram.user(GuestAddress(gpa), bytes);
        assert_eq!(ua.is_some(), inside, "{gpa:#x}");
        if let Some(ua) = ua {
            assert_eq!(ram.guest(ua, bytes), Some(GuestAddress(gpa)));
        }
    }
    drop(ram);
    assert_eq!(world.pinned(), 0);
}

#[test]
fn a_region_that_cannot_be_pinned_leaves_none_registered() {
    let world = World::new(&[(0, 0x1000), (0x10_0000, 0x1000), (0x20_0000, 0x1000)]);
    for n in 1..=3 {
        world.host.fail_at.store(n, Ordering::Relaxed);
        let error =
            RegisteredRam::register(&world.space, &world.guest, Holder::default()).map(drop).unwrap_err();
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert!(error.to_string().contains(&format!("gpa {:#x}", (n - 1) << 20)), "{error}");
        assert_eq!((world.pinned(), world.space.is_preregistered()), (0, false));
    }
}

#[test]
fn memory_of_odd_size_is_refused() {
    let world = World::new(&[(0, 0x1000), (0x10_0000, 0x1800)]);
    let error = RegisteredRam::register(&world.space, &world.guest, Holder::default()).map(drop).unwrap_err();
    assert_eq!((error.errno(), world.pinned()), (Errno::EINVAL, 0));
}

#[test]
fn a_region_stays_mapped_in_the_process_while_it_is_registered() {
    let world = World::new(&[(0, 0x1000)]);
    let ram = world.ram();
    let ua = ram.user(GuestAddress(0), 1).unwrap().raw();
    drop(world.guest);
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let holds = |line: &str| {
        let (start, rest) = line.split_once('-').unwrap();
        let end = rest.split(' ').next().unwrap();
        let [start, end] = [start, end].map(|number| u64::from_str_radix(number, 16).unwrap());
        start <= ua && ua < end
    };
    assert!(maps.lines().any(holds));
}

#[test]
fn plugging_registers_what_is_new_and_unplugging_is_refused_while_mapped() {
    let world = World::new(&[(0, 0x1000)]);
    let ram = world.ram();
    let more = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x10_0000), 0x2000)]).unwrap();
    let (_, plugged) = more.remove_region(GuestAddress(0x10_0000), 0x2000).unwrap();
    let grown = world.guest.insert_region(plugged).unwrap();
    ram.extend(&world.space, &grown, Holder::default()).unwrap();
    assert_eq!((world.pinned(), ram.regions().len()), (3, 2));
    // Without new memory nothing happens.
    ram.extend(&world.space, &grown, Holder::default()).unwrap();
    assert_eq!(ram.regions().len(), 2);
    let other = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x10_1000), 0x1000)]).unwrap();
    assert_eq!(ram.extend(&world.space, &other, Holder::default()).unwrap_err().errno(), Errno::EEXIST);

    let mut reader = world.space.translator();
    let mapping = reader.map(ram.user(GuestAddress(0x10_0000), 1).unwrap(), prereg::PageShift::K4).unwrap();
    assert_eq!(ram.remove(GuestAddress(0x10_0000)).unwrap_err().errno(), Errno::EBUSY);
    assert_eq!(ram.remove(GuestAddress(0x1000)).unwrap_err().errno(), Errno::ENOENT);
    assert_eq!(ram.regions().len(), 2);
    reader.unmap(mapping);
    ram.remove(GuestAddress(0x10_0000)).unwrap();
    assert_eq!((world.pinned(), ram.user(GuestAddress(0x10_0000), 1)), (1, None));
}

#[test]
fn an_access_goes_through_the_mappings_it_touches() {
    let world = World::new(&[(0, 0x4000)]);
    let iommu = world.iommu(world.ram());
    // Two guest pages in reverse order.
    iommu.map(GuestAddress(0x8000), PAGE, GuestAddress(0x2000), Access::ReadWrite).unwrap();
    iommu.map(GuestAddress(0x9000), PAGE, GuestAddress(0x1000), Access::Read).unwrap();
    let memory = IommuMemory::new(world.guest.clone(), iommu, true, ());
    world.guest.write_obj(0x11u8, GuestAddress(0x2fff)).unwrap();
    world.guest.write_obj(0x22u8, GuestAddress(0x1000)).unwrap();
    assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0x8fff)).unwrap(), [0x11, 0x22]);
    memory.write_obj(0x33u8, GuestAddress(0x8000)).unwrap();
    assert_eq!(world.guest.read_obj::<u8>(GuestAddress(0x2000)).unwrap(), 0x33);
    assert!(memory.write_obj(0u8, GuestAddress(0x9000)).is_err());
    assert!(memory.read_obj::<u16>(GuestAddress(0x9fff)).is_err());
    assert!(memory.check_range(GuestAddress(0x8000), 0x2000, Permissions::Read));
    assert!(memory.check_range(GuestAddress(0x9000), 1, Permissions::No));
    assert!(!memory.check_range(GuestAddress(0x8000), 0x2000, Permissions::Write));
    assert!(!memory.check_range(GuestAddress(0x7fff), 2, Permissions::Read));
    assert!(!memory.check_range(GuestAddress(u64::MAX), 1, Permissions::Read));
    assert!(!memory.check_range(GuestAddress(u64::MAX), usize::MAX, Permissions::No));
    assert!(memory.check_range(GuestAddress(0x7000), 0, Permissions::Read));
    assert!(memory.read_slice(&mut [], GuestAddress(0)).is_ok());
}

#[test]
fn what_is_mapped_must_be_the_guests() {
    let world = World::new(&[(0, 0x4000)]);
    let iommu = world.iommu(world.ram());
    for (gpa, bytes, errno) in [
        (0x4000, PAGE, Errno::EFAULT),
        (0x3000, 2 * PAGE, Errno::EFAULT),
        (0x800, PAGE, Errno::EINVAL),
        (0, 0, Errno::EINVAL),
    ] {
        let error = iommu.map(GuestAddress(0), bytes, GuestAddress(gpa), Access::Read).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
    }
    assert_eq!(iommu.mappings().snapshot().mappings, 0);
}

#[test]
fn an_unmap_waits_for_translations_and_memory_for_mappings() {
    let world = World::new(&[(0, 0x4000)]);
    let iommu = world.iommu(world.ram());
    iommu.map(GuestAddress(0), 0x4000, GuestAddress(0), Access::Read).unwrap();
    let mut translated = iommu.translate(GuestAddress(0x1800), 0x1000, Permissions::Read).unwrap();
    let unmapping = iommu.unmap(GuestAddress(0), 0x4000).unwrap();
    assert!(!unmapping.is_done());
    let range = translated.next().unwrap();
    assert_eq!((range.base, range.length), (GuestAddress(0x1800), 0x1000));
    assert!(iommu.translate(GuestAddress(0), 1, Permissions::Read).is_err());
    drop(translated);
    assert!(unmapping.is_done());
}

#[test]
fn threads_translate_while_another_maps_and_unmaps() {
    let world = World::new(&[(0, 0x4000)]);
    world.guest.write_obj(0x5au8, GuestAddress(0x1000)).unwrap();
    let iommu = world.iommu(world.ram());
    let memory = IommuMemory::new(world.guest, iommu, true, ());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(value) = memory.read_obj::<u8>(GuestAddress(0x8000)) {
                        assert_eq!(value, 0x5a);
                    }
                }
            });
        }
        for _ in 0..500 {
            let iommu = memory.iommu();
            iommu.map(GuestAddress(0x8000), PAGE, GuestAddress(0x1000), Access::Read).unwrap();
            let unmapping = iommu.unmap(GuestAddress(0x8000), PAGE).unwrap();
            while !unmapping.is_done() {
                std::hint::spin_loop();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let state = memory.iommu().mappings().snapshot();
    assert_eq!((state.mappings, state.accesses, state.closing.len()), (0, 0, 0));
}
