//! The adapters over fakes of the kernel's containers: removed devices, concurrent attach and detach, unmaps of more or less than is
//! mapped, and memory that cannot be pinned.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

mod fake_containers;

use std::sync::Arc;

use fake_containers::{FakeContainer, FakeDevice, Kind, PAGE, Page, READ_ONLY};
use prereg::{Access, AddressSpace, Errno, Granule, Registration};
use prereg_sim::{MapSpec, Protection, SimHost};
use prereg_vmm::openvmm::{DmaMapRequest, DmaTarget, MappingType, PinnedTarget};
use prereg_vmm::vfio::PinnedVfio;
use prereg_vmm::{Attached, DmaContainer, MappedMemory};
use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno::Error as SysError;

const RAM: u64 = 0x7000_0000;
const BAR: u64 = 0x7200_0000;
const KINDS: [Kind; 3] = [Kind::Type1, Kind::Iommufd, Kind::Spapr];

struct World {
    host: SimHost,
    space: Arc<AddressSpace>,
    container: Arc<FakeContainer>,
    vfio: Arc<PinnedVfio>,
}

impl World {
    fn new(kind: Kind) -> Self {
        let host = SimHost::new(Granule::K4);
        host.memory(RAM, 64 * PAGE);
        host.map(READ_ONLY.start, 16 * PAGE, MapSpec::protected(Protection::ReadOnly));
        host.map(BAR, 16 * PAGE, MapSpec::unpinnable());
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let container = FakeContainer::new(kind, &host);
        let inner = Arc::clone(&container) as Arc<dyn VfioOps>;
        let vfio = PinnedVfio::new(Arc::clone(&space), inner, 1).unwrap();
        Self { host, space, container, vfio }
    }

    fn target(&self) -> PinnedTarget {
        let inner = Arc::clone(&self.container) as Arc<dyn DmaContainer>;
        PinnedTarget::new(Arc::clone(&self.space), inner, 1).unwrap()
    }

    fn attach(&self) -> Result<Attached<FakeDevice>, Errno> {
        self.vfio.attach(|ops| open(&*ops)).map_err(|error| errno(&error))
    }

    fn map(&self, iova: u64, ua: u64, pages: u64) -> Result<(), Errno> {
        map(&*self.vfio, iova, ua, pages)
    }

    fn unmap(&self, iova: u64, pages: u64) -> Result<(), VfioError> {
        self.vfio.vfio_dma_unmap(iova, (pages * PAGE) as usize)
    }

    fn register(&self, page: u64, pages: u64) -> Registration {
        self.space.register(&self.host.range(RAM + page * PAGE, pages * PAGE)).unwrap()
    }

    fn reached(&self) -> usize {
        self.container.reach().len()
    }
}

fn open(ops: &dyn VfioOps) -> Result<FakeDevice, VfioError> {
    let container = ops.as_any().downcast_ref::<FakeContainer>().ok_or(VfioError::DowncastVfioOps)?;
    container.open().map_err(|errno| VfioError::IommuDmaMap(SysError::new(errno.raw())))
}

#[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
fn map(ops: &dyn VfioOps, iova: u64, ua: u64, pages: u64) -> Result<(), Errno> {
    let start = std::ptr::without_provenance_mut(ua as usize);
    // SAFETY: see the reason.
    unsafe { ops.vfio_dma_map(iova, (pages * PAGE) as usize, start) }.map_err(|error| errno(&error))
}

#[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
fn map_dma(target: &PinnedTarget, request: DmaMapRequest<'_>) -> Result<(), Errno> {
    // SAFETY: see the reason.
    unsafe { target.map_dma(request) }.map_err(|error| error.errno())
}

fn request(start: u64, pages: u64, ua: u64) -> DmaMapRequest<'static> {
    DmaMapRequest {
        range: start..start + pages * PAGE,
        host_va: Some(std::ptr::without_provenance(ua as usize)),
        mappable: None,
        file_offset: 0,
        writable: true,
        mapping_type: MappingType::Ram,
    }
}

fn errno(error: &VfioError) -> Errno {
    match error {
        VfioError::IommuDmaMap(error) | VfioError::IommuDmaUnmap(error) => Errno::from_raw(error.errno()),
        other => panic!("{other}"),
    }
}

#[test]
fn what_the_last_device_leaves_behind_is_unmapped_before_it_is_unpinned() {
    for kind in KINDS {
        let world = World::new(kind);
        let device = world.attach().unwrap();
        world.map(0, RAM, 4).unwrap();
        world.map(8 * PAGE, RAM + 8 * PAGE, 4).unwrap();
        drop(device);
        let kept = if kind == Kind::Iommufd { 8 } else { 0 };
        assert_eq!((world.reached(), world.host.pinned_pages()), (kept, 8), "{kind:?}");
        // From an address space that keeps its mappings the unmap removes it, and only then the pin is released.
        world.unmap(0, 4).unwrap();
        assert_eq!((world.reached(), world.host.pinned_pages()), (kept / 2, 4), "{kind:?}");
        world.map(16 * PAGE, RAM + 16 * PAGE, 1).unwrap();
        let device = world.attach().unwrap();
        assert_eq!((device.reach().len(), world.host.pinned_pages()), (5, 5), "{kind:?}");
        world.unmap(8 * PAGE, 4).unwrap();
        world.unmap(16 * PAGE, 1).unwrap();
        assert_eq!((device.reach().len(), world.host.pinned_pages()), (0, 0), "{kind:?}");
    }
}

#[test]
fn an_address_space_that_refuses_to_unmap_without_devices_keeps_its_memory_pinned() {
    let world = World::new(Kind::Iommufd);
    drop(world.attach().unwrap());
    let device = world.attach().unwrap();
    world.map(0, RAM, 4).unwrap();
    drop(device);
    world.container.refuse(1, Errno::EBUSY);
    assert!(matches!(world.unmap(0, 4), Err(VfioError::IommuDmaUnmap(error)) if error.errno() == 16));
    assert_eq!((world.reached(), world.host.pinned_pages()), (4, 4));
    let World { host, container, vfio, .. } = world;
    container.refuse(1, Errno::EBUSY);
    drop(vfio);
    assert_eq!((container.reach().len(), host.pinned_pages()), (4, 4), "in the end too");
}

#[test]
fn a_container_that_kept_its_mappings_unnoticed_is_asked() {
    // If a group cannot be removed from its container, the container keeps its mappings.
    let world = World::new(Kind::Type1);
    let uncounted = open(&*world.vfio).unwrap();
    drop(world.attach().unwrap());
    let device = world.attach().unwrap();
    world.map(0, RAM, 4).unwrap();
    drop(device);
    assert!(world.vfio.mappings().snapshot().dormant);
    assert_eq!(world.reached(), 4);
    drop(world.attach().unwrap());
    world.unmap(0, 4).unwrap();
    assert_eq!((world.reached(), world.host.pinned_pages()), (0, 0));
    drop(uncounted);
}

/// Threads that attach, check, and detach; returns the number of rounds.
fn attach_and_leave(kind: Kind, threads: usize, rounds: usize) -> usize {
    let world = World::new(kind);
    {
        let _device = world.attach().unwrap();
        world.map(0, RAM, 1).unwrap();
        world.map(2 * PAGE, RAM + 8 * PAGE, 1).unwrap();
    }
    let attaches = std::thread::scope(|scope| {
        let one = || {
            for round in 0..rounds {
                let device = world.attach().unwrap();
                let reach = device.reach();
                assert_eq!(reach.len(), 2, "round {round}");
                assert_eq!(reach[&0].0, Page::Memory(RAM));
            }
            rounds
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(world.container.devices(), 0);
    assert_eq!(world.vfio.mappings().snapshot().devices, 0);
    attaches
}

#[test]
fn threads_that_attach_and_leave_always_find_the_mappings() {
    let rounds = if cfg!(miri) { 20 } else { 500_000 };
    for kind in KINDS {
        let rounds = if kind == Kind::Type1 { rounds } else { rounds / 10 };
        let attaches = attach_and_leave(kind, 2, rounds);
        println!("{kind:?}: {attaches} attaches by two threads, none without mappings, none refused");
        assert_eq!(attaches, 2 * rounds);
    }
}

#[test]
fn opening_may_map_attach_drop_and_fail() {
    for kind in KINDS {
        let world = World::new(kind);
        let first = world.attach().unwrap();
        world.map(0, RAM, 1).unwrap();
        // The new device replaces the old one, attaches another device, and maps its BAR while it is opened.
        let vfio = &world.vfio;
        let device = vfio
            .attach(|ops| {
                drop(first);
                let inner = vfio.attach(|ops| open(&*ops))?;
                map(&*ops, 4 * PAGE, BAR, 2).unwrap();
                Ok((open(&*ops)?, inner))
            })
            .unwrap();
        assert_eq!(device.0.reach().len(), 3, "{kind:?}");
        let failed = vfio.attach(|ops| open(&*ops).and(Err::<FakeDevice, _>(VfioError::VfioApiVersion)));
        assert!(matches!(failed, Err(VfioError::VfioApiVersion)));
        drop(device);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            vfio.attach(|ops| -> Result<FakeDevice, VfioError> {
                map(&*ops, 8 * PAGE, RAM + 4 * PAGE, 1).unwrap();
                panic!("while a device is opened");
            })
        }));
        assert!(panicked.is_err());
        assert_eq!(vfio.mappings().snapshot().devices, 0);
        let device = world.attach().unwrap();
        assert_eq!(device.reach().len(), 4, "{kind:?}");
    }
}

#[test]
fn a_device_unmaps_its_own_memory_while_it_is_closed() {
    // cloud-hypervisor's devices unmap their BARs when they are dropped.
    struct Device {
        _device: FakeDevice,
        ops: Arc<dyn VfioOps>,
    }
    impl Drop for Device {
        fn drop(&mut self) {
            self.ops.vfio_dma_unmap(8 * PAGE, 2 * PAGE as usize).unwrap();
        }
    }
    for kind in KINDS {
        let world = World::new(kind);
        let device =
            world.vfio.attach(|ops| Ok(Device { _device: open(&*ops)?, ops: Arc::clone(&ops) })).unwrap();
        world.map(0, RAM, 1).unwrap();
        world.map(8 * PAGE, BAR, 2).unwrap();
        drop(device);
        assert_eq!(world.vfio.mappings().snapshot().mappings.len(), 1);
        assert_eq!(world.attach().unwrap().reach().len(), 1, "{kind:?}");
    }
}

#[test]
fn an_unmap_has_one_outcome_on_both_sides() {
    for kind in KINDS {
        let world = World::new(kind);
        let _device = world.attach().unwrap();
        world.map(PAGE, RAM, 2).unwrap();
        world.map(4 * PAGE, RAM + 4 * PAGE, 2).unwrap();
        // Cuts: EINVAL, and nothing changes.
        for (iova, pages) in [(PAGE, 1), (2 * PAGE, 1), (0, 2), (2 * PAGE, 4), (0, 5)] {
            assert_eq!(errno(&world.unmap(iova, pages).unwrap_err()), Errno::EINVAL, "{kind:?} {iova:#x}");
            assert_eq!((world.reached(), world.host.pinned_pages()), (4, 4), "{kind:?} {iova:#x}");
        }
        // More than is mapped: a wrong size, and everything in the range is unmapped in both.
        assert!(matches!(world.unmap(0, 10), Err(VfioError::InvalidDmaUnmapSize)));
        assert_eq!((world.reached(), world.host.pinned_pages()), (0, 0), "{kind:?}");
        assert_eq!(world.vfio.mappings().snapshot().mappings, []);
        // Nothing mapped.
        assert!(matches!(world.unmap(0, 10), Err(VfioError::InvalidDmaUnmapSize)));
        // Several adjacent mappings, in one call.
        world.map(0, RAM, 1).unwrap();
        world.map(PAGE, RAM + 8 * PAGE, 1).unwrap();
        world.unmap(0, 2).unwrap();
        assert_eq!((world.reached(), world.host.pinned_pages()), (0, 0), "{kind:?}");
    }
}

#[test]
fn what_the_container_lost_unnoticed_is_unmapped_here_too() {
    for kind in KINDS {
        let world = World::new(kind);
        let _device = world.attach().unwrap();
        world.map(0, RAM, 2).unwrap();
        world.map(2 * PAGE, RAM + 8 * PAGE, 2).unwrap();
        world.container.unmap_pages(0, 2 * PAGE).unwrap();
        world.unmap(0, 4).unwrap();
        assert_eq!((world.reached(), world.host.pinned_pages()), (0, 0), "{kind:?}");
    }
}

#[test]
fn a_bar_is_mapped_and_not_pinned() {
    for kind in KINDS {
        let world = World::new(kind);
        let device = world.attach().unwrap();
        world.map(0, BAR, 4).unwrap();
        #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
        // SAFETY: see the reason.
        unsafe {
            let start = std::ptr::without_provenance_mut((BAR + 4 * PAGE) as usize);
            world.vfio.map_device(4 * PAGE, PAGE as usize, start).unwrap();
        }
        assert_eq!((device.reach().len(), world.host.pinned_pages()), (5, 0), "{kind:?}");
        let mapping = world.vfio.mappings().snapshot().mappings[0];
        assert_eq!((mapping.pinned, mapping.access), (false, Access::ReadWrite));
        assert!(!world.space.is_preregistered());
        drop(device);
        assert_eq!(world.attach().unwrap().reach().len(), 5, "{kind:?}");
        world.unmap(0, 5).unwrap();
        assert_eq!(world.reached(), 0, "{kind:?}");
    }
}

#[test]
fn a_hole_is_the_containers_to_refuse() {
    let world = World::new(Kind::Type1);
    let _device = world.attach().unwrap();
    assert_eq!(world.map(0, RAM + 63 * PAGE, 2), Err(Errno::EFAULT));
    // `VfioError` has only the number; the adapter's own error has the reason.
    let request = request(0, 2, RAM + 63 * PAGE);
    #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
    // SAFETY: see the reason.
    let error = unsafe { world.target().map_dma(request) }.unwrap_err();
    assert!(error.to_string().contains("could not be pinned"), "{error}");
    assert_eq!((world.reached(), world.host.pinned_pages()), (0, 0));
}

#[test]
fn memory_that_is_read_only_is_mapped_for_reading() {
    for kind in [Kind::Type1, Kind::Iommufd] {
        let world = World::new(kind);
        let target = world.target();
        let _device = target.attach(|| world.container.open().map_err(into_error)).unwrap();
        let rom = |writable| DmaMapRequest { writable, ..request(0, 4, READ_ONLY.start) };
        assert_eq!(map_dma(&target, rom(true)), Err(Errno::EFAULT), "{kind:?}");
        map_dma(&target, rom(false)).unwrap();
        let reach = world.container.reach();
        assert!(reach.len() == 4 && reach.values().all(|(_, access)| *access == Access::Read), "{kind:?}");
        // Writable memory that the device may only read is pinned like any.
        map_dma(&target, DmaMapRequest { writable: false, ..request(8 * PAGE, 2, RAM) }).unwrap();
        assert_eq!((world.container.reach()[&(8 * PAGE)].1, world.host.pinned_pages()), (Access::Read, 2));
        target.unmap_dma(0..16 * PAGE).unwrap();
        assert_eq!((world.reached(), world.host.pinned_pages()), (0, 0));
    }
}

fn into_error(errno: Errno) -> prereg_vmm::openvmm::DmaTargetError {
    panic!("the device could not be opened: {errno}")
}

#[test]
#[cfg_attr(miri, ignore = "duplicates a descriptor")]
fn a_file_is_mapped_by_descriptor_where_the_container_can() {
    use std::os::fd::AsFd;

    let file = std::fs::File::open("/dev/null").unwrap();
    let by_file = || DmaMapRequest {
        host_va: None,
        mappable: Some(file.as_fd()),
        file_offset: 0x10_0000,
        ..request(0, 4, 0)
    };
    let world = World::new(Kind::Iommufd);
    let target = world.target();
    map_dma(&target, by_file()).unwrap();
    assert_eq!(world.container.reach()[&PAGE].0, Page::File(0x10_1000));
    let mapping = target.mappings().snapshot().mappings[0];
    assert_eq!(mapping.memory, MappedMemory::File { offset: 0x10_0000 });
    assert_eq!(map_dma(&target, by_file()), Err(Errno::EEXIST));
    target.unmap_dma(0..4 * PAGE).unwrap();
    assert_eq!(world.reached(), 0);
    assert_eq!(map_dma(&target, DmaMapRequest { mappable: None, ..by_file() }), Err(Errno::EINVAL));

    let world = World::new(Kind::Type1);
    let target = world.target();
    let _device = target.attach(|| world.container.open().map_err(into_error)).unwrap();
    assert_eq!(map_dma(&target, by_file()), Err(Errno::EOPNOTSUPP));
}

#[test]
fn a_mapping_may_cover_several_registrations_and_the_gaps_between_them() {
    let world = World::new(Kind::Type1);
    let _device = world.attach().unwrap();
    // A page registered by a mapping, then the memory around it.
    world.map(0, RAM + PAGE, 1).unwrap();
    world.map(8 * PAGE, RAM, 4).unwrap();
    assert_eq!((world.reached(), world.host.pinned_pages(), world.host.charged_pages()), (5, 4, 4));
    world.unmap(0, 1).unwrap();
    assert_eq!(world.host.pinned_pages(), 4, "the other mapping needs it");
    world.unmap(8 * PAGE, 4).unwrap();
    assert_eq!(world.host.pinned_pages(), 0);
    // Two adjacent registrations of the VMM, and a page that is not registered.
    let (one, two) = (world.register(0, 2), world.register(2, 2));
    world.map(0, RAM, 5).unwrap();
    assert_eq!(world.host.pinned_pages(), 5);
    let one = one.unregister().unwrap_err().into_inner();
    let two = two.unregister().unwrap_err().into_inner();
    world.unmap(0, 5).unwrap();
    assert_eq!(world.host.pinned_pages(), 4);
    one.unregister().unwrap();
    two.unregister().unwrap();
    assert_eq!((world.host.pinned_pages(), world.host.charged_pages()), (0, 0));
}

#[test]
fn more_mappings_than_the_container_takes_are_refused() {
    let world = World::new(Kind::Type1);
    let container = FakeContainer::with_limit(Kind::Type1, &world.host, 2);
    let vfio =
        PinnedVfio::new(Arc::clone(&world.space), Arc::clone(&container) as Arc<dyn VfioOps>, 1).unwrap();
    let device = vfio.attach(|ops| open(&*ops)).unwrap();
    map(&*vfio, 0, RAM, 1).unwrap();
    map(&*vfio, PAGE, RAM, 1).unwrap();
    assert_eq!(map(&*vfio, 2 * PAGE, RAM, 1), Err(Errno::ENOSPC));
    drop(device);
    map(&*vfio, 2 * PAGE, RAM, 1).unwrap();
    let refused = vfio.attach(|ops| open(&*ops)).unwrap_err();
    assert_eq!((errno(&refused), container.mappings()), (Errno::ENOSPC, 0));
    vfio.vfio_dma_unmap(0, PAGE as usize).unwrap();
    assert_eq!(vfio.attach(|ops| open(&*ops)).unwrap().reach().len(), 2);
}
