//! The type1 back end on a recording of a real kernel and on the kernel model with injected failures.

use super::super::kernel_model::KernelModel;
use super::super::replay::Recording;
use super::super::sysfs::tests::tree;
use super::*;
use crate::memory::GuestMemory;
use crate::pagemap::system_granule;
use prereg::{AddressSpace, DirtyPages, Granule, PageList, PageShift, Pin, RegisterError, UserAddr};

const DEVICE: &str = "0000:00:01.0";
/// The ranges of an emulated Intel IOMMU.
const INTEL: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];

fn range(ua: u64, bytes: u64) -> UserRange {
    UserRange::new(UserAddr::new(ua), bytes, system_granule().unwrap()).unwrap()
}

fn list(range: UserRange) -> PageList {
    PageList::new(range, system_granule().unwrap())
}

/// Memory of `pages` system pages.
fn memory(pages: u64) -> GuestMemory {
    GuestMemory::anonymous(pages * system_granule().unwrap().bytes()).unwrap()
}

fn on(model: &KernelModel) -> (tempfile::TempDir, Arc<VfioType1>) {
    let (root, host) = model.host();
    (root, Arc::new(VfioType1::open_on(&host, DEVICE).unwrap()))
}

#[test]
fn a_real_kernels_answers_make_a_region_of_one_call() {
    if system_granule().unwrap() != Granule::K4 || cfg!(target_endian = "big") {
        eprintln!("skipped: the recording is of a little-endian machine with pages of 4 KiB");
        return;
    }
    let (_root, sysfs) = tree();
    let recording = Recording::parse(include_str!("../recordings/type1-intel.txt"));
    let host = VfioHost { kernel: recording.kernel(), sysfs };
    let vfio = VfioType1::open_on(&host, DEVICE).unwrap();
    assert_eq!(vfio.limits().raw_ranges(), INTEL);
    assert_eq!(vfio.limits().mappings_left, Some(65_535));
    let device = vfio.device(DEVICE).unwrap();
    assert!(!device.can_reset());

    let small = range(0x7f69_6b14_2000, 4 << 20);
    let mut pages = list(small);
    let pin = vfio.pin(small, &mut pages.sink()).unwrap();
    assert_eq!((pages.filled(), vfio.state().mappings, vfio.state().pinned_bytes), (1024, 1, 4 << 20));
    vfio.unpin(pin, small, DirtyPages::none());

    let large = range(0x7f69_2b20_0000, 1 << 30);
    let pin = vfio.pin(large, &mut list(large).sink()).unwrap();
    assert_eq!(vfio.state().map_calls, 2, "1 GiB is one call");
    vfio.unpin(pin, large, DirtyPages::none());

    let over = range(0x7f69_6ab3_d000, 0x80_1000);
    let error = vfio.pin(over, &mut list(over).sink()).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
    assert_eq!((vfio.state().mappings, vfio.state().pinned_bytes, vfio.state().stuck_bytes), (0, 0, 0));
    drop((device, vfio));
    recording.assert_exhausted();
}

#[test]
fn every_failed_call_of_opening_leaves_nothing_open() {
    let model = KernelModel::new(&INTEL);
    for nth in 1.. {
        let (_root, host) = model.host();
        model.fail_nth(nth, Errno::EIO);
        let opened = VfioType1::open_on(&host, DEVICE).and_then(|vfio| vfio.device(DEVICE).map(drop));
        assert_eq!(opened.is_err(), model.refused(), "call {nth}");
        assert_eq!(model.state().open, 0, "call {nth}");
        if opened.is_ok() {
            assert!(nth > 8, "{nth} calls are too few to have tried all");
            break;
        }
    }
}

#[test]
fn every_failed_call_of_registering_leaves_nothing_mapped_or_charged() {
    // Ranges so small that a region is split over three.
    let page = system_granule().unwrap().bytes();
    let base = 64 << 20;
    let allowed: Vec<_> = (0..3).map(|i| (base * (i + 1), base * (i + 1) + 4 * page - 1)).collect();
    let model = KernelModel::new(&allowed);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(10);
    for errno in [Errno::EFAULT, Errno::ENOMEM, Errno::ENOSPC, Errno::EEXIST, Errno::EPERM, Errno::EINVAL] {
        for nth in 1..=3 {
            model.fail_nth(nth, errno);
            let error = space.register(&memory).unwrap_err();
            assert!(model.refused());
            assert_eq!(error.errno(), errno, "call {nth}: {error}");
            assert!(model.state().mapped.is_empty(), "call {nth} {errno}");
            assert_eq!((vfio.account().charged(), space.snapshot().pinned_pages), (0, 0));
            assert_eq!((vfio.state().mappings, vfio.state().pinned_bytes), (0, 0));
        }
    }
    let registration = space.register(&memory).unwrap();
    assert_eq!(model.state().mapped.len(), 3);
    assert_eq!(model.state().mapped.values().sum::<u64>(), 10 * page);
    let mut runs = Vec::new();
    registration.visit_runs(|_, host, bytes| runs.push((host.raw(), bytes)));
    runs.sort_unstable();
    assert_eq!(runs, model.state().mapped.iter().map(|(&at, &bytes)| (at, bytes)).collect::<Vec<_>>());
    registration.unregister().unwrap();
    assert!(model.state().mapped.is_empty());
    assert_eq!(vfio.state().free_bytes, 12 * page);
}

#[test]
fn a_million_maps_ask_the_kernel_nothing() {
    let model = KernelModel::new(&INTEL);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(256);
    let registration = space.register(&memory).unwrap();
    let mut translator = space.translator();
    let calls = model.state().calls;
    let page = space.granule().bytes();
    for i in 0..1_000_000u64 {
        let ua = UserAddr::new(registration.ua().raw() + i * 7 % 256 * page);
        let mapping = translator.map(ua, PageShift::K4).unwrap();
        translator.unmap(mapping);
    }
    assert_eq!(model.state().calls, calls);
    let mapping = translator.map(registration.ua(), PageShift::K4).unwrap();
    let (&iova, _) = model.state().mapped.first_key_value().unwrap();
    assert_eq!(mapping.hpa().raw(), iova);
    let busy = registration.unregister().unwrap_err();
    assert_eq!((busy.errno(), busy.mapped()), (Errno::EBUSY, 1));
    assert_eq!(model.state().calls, calls, "a refusal needs no kernel");
    translator.unmap(mapping);
    busy.into_inner().unregister().unwrap();
}

#[test]
fn an_unmap_that_went_short_is_not_believed() {
    let model = KernelModel::new(&INTEL);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(4);
    let registration = space.register(&memory).unwrap();
    let iova = *model.state().mapped.first_key_value().unwrap().0;
    // The mapping was removed behind the back end, so the kernel unmaps zero bytes and returns 0.
    model.state().mapped.clear();
    registration.unregister().unwrap();
    assert_eq!(vfio.state().stuck_bytes, memory.bytes());
    let registration = space.register(&memory).unwrap();
    assert_ne!(
        *model.state().mapped.first_key_value().unwrap().0,
        iova,
        "doubtful addresses are not used again"
    );
    registration.unregister().unwrap();
}

#[test]
fn a_positive_answer_is_no_success() {
    let model = KernelModel::new(&INTEL);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    model.state().fake_success = Some("VFIO_IOMMU_MAP_DMA");
    let error = space.register(&memory(1)).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
    assert_eq!(vfio.state().mappings, 0);
}

#[test]
fn the_budget_of_mappings_and_the_room_for_addresses_run_out_with_a_word() {
    let page = system_granule().unwrap().bytes();
    let model = KernelModel::new(&[(64 << 20, (64 << 20) + 8 * page - 1)]);
    model.state().budget = 2;
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let all: Vec<_> = (0..3).map(|_| memory(1)).collect();
    let held: Vec<_> = all[..2].iter().map(|memory| space.register(memory).unwrap()).collect();
    let error = space.register(&all[2]).unwrap_err();
    assert!(
        matches!(error, RegisterError::Pin { error: PinError::NoSlot { need: 1, free: 0 }, .. }),
        "{error}"
    );
    model.state().budget = 100;
    let error = space.register(&memory(7)).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert!(error.to_string().contains("no room for the region"), "{error}");
    drop(held);
    space.register(&memory(8)).unwrap().unregister().unwrap();
}

#[test]
fn the_last_group_stays_while_memory_is_registered() {
    let model = KernelModel::new(&INTEL);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(4);
    let registration = space.register(&memory).unwrap();
    let error = vfio.remove_group_of(DEVICE).unwrap_err();
    assert_eq!(error.errno(), Errno::EBUSY);
    vfio.add_group_of("0000:00:02.0").unwrap();
    vfio.remove_group_of(DEVICE).unwrap();
    assert_eq!(model.state().mapped.len(), 1, "pins outlive a device");
    assert!(matches!(vfio.device(DEVICE), Err(VfioError::NoDevice { .. })));
    vfio.device("0000:00:02.0").unwrap();
    registration.unregister().unwrap();
    vfio.remove_group_of("0000:00:02.0").unwrap();
}

#[test]
fn pins_that_are_not_held_are_counted_and_ignored() {
    let model = KernelModel::new(&INTEL);
    let (_root, vfio) = on(&model);
    let range = range(0x7000_0000, 1 << 20);
    for pin in [0, 1, u64::MAX] {
        vfio.unpin(PinId::new(pin), range, DirtyPages::none());
    }
    assert_eq!((vfio.state().stray_unpins, vfio.state().unmap_calls), (3, 0));
    let pin = vfio.pin(range, &mut list(range).sink()).unwrap();
    vfio.unpin(pin, range, DirtyPages::none());
    vfio.unpin(pin, range, DirtyPages::none());
    assert_eq!((vfio.state().stray_unpins, vfio.state().unmap_calls), (4, 1));
}

#[test]
fn refusals_of_the_container_name_their_remedy() {
    for (request, errno, says) in [
        (1, Errno::ENOENT, "modprobe vfio-pci"),
        (1, Errno::EACCES, "udev rule"),
        (4, Errno::EBUSY, "has one opener"),
        (4, Errno::EACCES, "/dev/vfio/1"),
        (6, Errno::EINVAL, "in another container"),
        (7, Errno::EPERM, "allow_unsafe_interrupts"),
        (7, Errno::ENODEV, "modprobe vfio_iommu_type1"),
    ] {
        let model = KernelModel::new(&INTEL);
        let (_root, host) = model.host();
        model.fail_nth(request, errno);
        let error = VfioType1::open_on(&host, DEVICE).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(model.state().open, 0);
    }
}

#[test]
fn an_iommu_with_larger_pages_than_the_system_is_told_apart_from_a_full_one() {
    let page = system_granule().unwrap().bytes();
    let model = KernelModel::new(&INTEL);
    model.state().page_sizes = page << 4;
    let (_root, vfio) = on(&model);
    let odd = range(0x7000_0000 + page, 16 * page);
    let error = vfio.pin(odd, &mut list(odd).sink()).unwrap_err();
    assert!(matches!(error, PinError::Unsupported { .. }), "{error}");
    let whole = range(0x7000_0000, 32 * page);
    let pin = vfio.pin(whole, &mut list(whole).sink()).unwrap();
    vfio.unpin(pin, whole, DirtyPages::none());
}
