//! The iommufd back end on a recording of a real kernel and on the kernel model with injected failures.

use super::*;
use crate::memory::GuestMemory;
use crate::pagemap::system_granule;
use crate::vfio::kernel_model::KernelModel;
use crate::vfio::replay::Recording;
use crate::vfio::tree;
use prereg::{
    Access, AddressSpace, DirtyPages, Granule, Iova, PageList, PageShift, Pin, UserAddr, UserRange,
};

const DEVICE: &str = "0000:00:01.0";
const ALLOWED: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, 0xffff_ffff_ffff)];
/// The model's IOAS IDs.
const STAGING: u32 = 1;
const DEVICE_IOAS: u32 = 2;

fn page() -> u64 {
    system_granule().unwrap().bytes()
}

fn memory(pages: u64) -> GuestMemory {
    GuestMemory::anonymous(pages * page()).unwrap()
}

fn on(model: &KernelModel, placement: Placement) -> (tempfile::TempDir, Arc<Iommufd>) {
    let (root, host) = model.host();
    (root, Arc::new(Iommufd::open_on(&host, DEVICE, placement).unwrap()))
}

fn mapped(model: &KernelModel, space: u32) -> Vec<(u64, u64)> {
    let state = model.state();
    state.ioases[&space].iter().map(|(&iova, &(bytes, _))| (iova, bytes)).collect()
}

#[test]
fn a_real_kernels_answers_pin_once_and_show_the_device() {
    if system_granule().unwrap() != Granule::K4 || cfg!(target_endian = "big") {
        eprintln!("skipped: the recording is of a little-endian machine with pages of 4 KiB");
        return;
    }
    let text = include_str!("../vfio/recordings/iommufd-intel.txt");
    let (_root, sysfs) = tree();
    let recording = Recording::parse(text);
    let host = VfioHost { kernel: recording.kernel(), sysfs };
    let iommufd = Iommufd::open_on(&host, DEVICE, Placement::DeviceIoas).unwrap();
    assert!(iommufd.state().pins_without_device);
    assert_eq!(iommufd.limits().alignment, 4096);
    // The user address in the recording.
    let map = text.lines().find(|line| line.contains("IOMMU_IOAS_MAP ")).unwrap();
    let word = |at: usize| {
        let digits = map.split(' ').nth(2).unwrap();
        let bytes: Vec<u8> =
            (at..at + 8).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect();
        u64::from_le_bytes(bytes.try_into().unwrap())
    };
    let range = UserRange::new(UserAddr::new(word(16)), word(24), Granule::K4).unwrap();
    let pin = iommufd.pin(range, &mut PageList::new(range, Granule::K4).sink()).unwrap();
    assert_eq!((iommufd.state().map_calls, iommufd.state().copy_calls), (1, 1));
    iommufd.unpin(pin, range, DirtyPages::none());
    assert_eq!((iommufd.state().pinned_bytes, iommufd.state().stuck_bytes), (0, 0));
    drop(iommufd);
    recording.assert_exhausted();
}

#[test]
fn every_failed_call_of_opening_leaves_nothing_open() {
    let model = KernelModel::new(&ALLOWED);
    for nth in 1.. {
        let (_root, host) = model.host();
        model.fail_nth(nth, Errno::EIO);
        let opened = Iommufd::open_on(&host, DEVICE, Placement::DeviceIoas);
        assert_eq!(opened.is_err(), model.refused(), "call {nth}");
        let good = opened.is_ok();
        drop(opened);
        assert_eq!(model.state().open, 0, "call {nth}");
        if good {
            assert!(nth > 8, "{nth} calls are too few to have tried all");
            break;
        }
    }
}

#[test]
fn memory_is_pinned_once_and_shown_at_its_host_address() {
    let model = KernelModel::new(&ALLOWED);
    let (_root, iommufd) = on(&model, Placement::DeviceIoas);
    assert_eq!(model.state().with_hwpt, [STAGING].into());
    let space = AddressSpace::builder(Arc::clone(&iommufd)).build().unwrap();
    let memory = memory(64);
    let registration = space.register(&memory).unwrap();
    assert_eq!(mapped(&model, STAGING), mapped(&model, DEVICE_IOAS));
    let mut translator = space.translator();
    let mapping = translator.map(registration.ua(), PageShift::K4).unwrap();
    assert_eq!(mapping.hpa().raw(), mapped(&model, DEVICE_IOAS)[0].0);
    let calls = model.state().calls;
    let busy = registration.unregister().unwrap_err();
    assert_eq!((busy.errno(), model.state().calls), (Errno::EBUSY, calls));
    translator.unmap(mapping);
    busy.into_inner().unregister().unwrap();
    assert!(mapped(&model, STAGING).is_empty() && mapped(&model, DEVICE_IOAS).is_empty());
    assert!(iommufd.table().is_none());
}

#[test]
fn every_failed_call_of_registering_leaves_nothing_mapped_or_charged() {
    let base = 64 << 20;
    let allowed: Vec<_> = (0..3).map(|i| (base * (i + 1), base * (i + 1) + 4 * page() - 1)).collect();
    let model = KernelModel::new(&allowed);
    let (_root, iommufd) = on(&model, Placement::DeviceIoas);
    let space = AddressSpace::builder(Arc::clone(&iommufd)).build().unwrap();
    let memory = memory(10);
    for errno in [Errno::EFAULT, Errno::ENOMEM, Errno::EEXIST, Errno::EINVAL, Errno::EPERM] {
        // Three I/O ranges, each mapped and copied.
        for nth in 1..=6 {
            model.fail_nth(nth, errno);
            let error = space.register(&memory).unwrap_err();
            assert!(model.refused());
            assert_eq!(error.errno(), errno, "call {nth}: {error}");
            assert!(
                mapped(&model, STAGING).is_empty() && mapped(&model, DEVICE_IOAS).is_empty(),
                "call {nth}"
            );
            assert_eq!((iommufd.account().charged(), iommufd.state().pinned_bytes), (0, 0));
            assert_eq!(iommufd.state().stuck_bytes, 0);
        }
    }
    space.register(&memory).unwrap().unregister().unwrap();
}

#[test]
fn pins_outlive_the_last_device_where_the_kernel_can_anchor_them() {
    let model = KernelModel::new(&ALLOWED);
    let (_root, iommufd) = on(&model, Placement::DeviceIoas);
    let space = AddressSpace::builder(Arc::clone(&iommufd)).build().unwrap();
    let memory = memory(4);
    let registration = space.register(&memory).unwrap();
    iommufd.remove_device(DEVICE).unwrap();
    assert_eq!((model.state().attached, iommufd.state().devices), (0, 0));
    assert_eq!(mapped(&model, STAGING).len(), 1);
    let calls = iommufd.state().map_calls;
    let open = model.state().open;
    let device = iommufd.add_device(DEVICE).unwrap();
    assert_eq!(model.state().open, open + 1);
    assert_eq!(iommufd.state().map_calls, calls, "a device that comes pins nothing");
    iommufd.remove_device(DEVICE).unwrap();
    let again = iommufd.add_device(DEVICE).unwrap();
    assert!(Arc::ptr_eq(&device, &again), "a device that is open cannot be opened twice");
    assert_eq!(model.state().open, open + 1);
    assert_eq!(model.state().attached, 1);
    registration.unregister().unwrap();
    assert!(matches!(iommufd.remove_device("0000:00:09.0"), Err(VfioError::NoDevice { .. })));
}

#[test]
fn a_kernel_that_cannot_anchor_is_never_trusted_without_a_device() {
    let model = KernelModel::new(&ALLOWED);
    model.state().no_hwpt_alloc = true;
    let (_root, iommufd) = on(&model, Placement::DeviceIoas);
    let space = AddressSpace::builder(Arc::clone(&iommufd)).build().unwrap();
    let memory = memory(4);
    let registration = space.register(&memory).unwrap();
    assert_eq!(iommufd.remove_device(DEVICE).unwrap_err().errno(), Errno::EBUSY);
    registration.unregister().unwrap();
    iommufd.remove_device(DEVICE).unwrap();
    let error = space.register(&memory).unwrap_err();
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    assert!(error.to_string().contains("attach a device first"), "{error}");
    drop((space, iommufd));
    let (_root, staging) = on(&model, Placement::StagingIoas);
    assert_eq!(
        AddressSpace::builder(staging).build().unwrap().register(&memory).unwrap_err().errno(),
        Errno::EOPNOTSUPP
    );
}

#[test]
fn a_table_shows_devices_what_is_held_and_nothing_else() {
    let model = KernelModel::new(&ALLOWED);
    let (_root, iommufd) = on(&model, Placement::StagingIoas);
    let space = AddressSpace::builder(Arc::clone(&iommufd)).build().unwrap();
    let memory = memory(16);
    let registration = space.register(&memory).unwrap();
    assert!(mapped(&model, DEVICE_IOAS).is_empty(), "registered is not reachable");
    let table = iommufd.table().unwrap();
    let mut translator = space.translator();
    let (ua, size) = (registration.ua(), page());
    let second = UserAddr::new(ua.raw() + size);
    let at = |index: u64| Iova::new(0x1000_0000 + index * size);
    let calls = model.state().calls;
    table.map(&mut translator, at(0), second, 4 * size, Access::ReadWrite).unwrap();
    assert_eq!(model.state().calls, calls + 1, "one call, no pin");
    assert_eq!(model.state().ioases[&DEVICE_IOAS][&at(0).raw()], (4 * size, second.raw()));
    table.map(&mut translator, at(4), ua, size, Access::Read).unwrap();

    let calls = model.state().calls;
    for (iova, bytes, errno) in [
        (at(3), size, Errno::EEXIST),
        (at(5), 0, Errno::EINVAL),
        (at(5), size + 1, Errno::EINVAL),
        (Iova::new(at(5).raw() + 1), size, Errno::EINVAL),
        (Iova::new(u64::MAX - size + 1), 2 * size, Errno::EINVAL),
        (at(5), 17 * size, Errno::EFAULT),
    ] {
        let error = table.map(&mut translator, iova, ua, bytes, Access::Read).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
    }
    for (iova, bytes) in [(at(0), size), (at(1), size), (at(9), size)] {
        assert_eq!(table.unmap(&mut translator, iova, bytes).unwrap_err().errno(), Errno::ENOENT);
    }
    assert_eq!((model.state().calls, table.live()), (calls, 2));

    model.fail_nth(1, Errno::ENOMEM);
    let error = table.map(&mut translator, at(8), ua, size, Access::Read).unwrap_err();
    assert_eq!((error.errno(), table.live()), (Errno::ENOMEM, 2));
    let busy = registration.unregister().unwrap_err();
    assert_eq!(busy.mapped(), 2);
    model.fail_nth(1, Errno::EIO);
    assert!(table.unmap(&mut translator, at(0), 4 * size).is_err());
    assert_eq!(table.live(), 2, "what may still be reached stays counted");
    table.unmap(&mut translator, at(0), 4 * size).unwrap();
    drop(table);
    assert!(mapped(&model, DEVICE_IOAS).is_empty());
    busy.into_inner().unregister().unwrap();
}
