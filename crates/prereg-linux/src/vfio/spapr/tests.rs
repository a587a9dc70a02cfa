//! The SPAPR back end on a recording of a real kernel and on the kernel model, with injected failures and false
//! successes.

use super::super::kernel_model::{HIGH, KernelModel, WINDOW};
use super::super::replay::Recording;
use super::super::sysfs::tests::tree;
use super::table::SpaprTableError;
use super::*;
use crate::memory::GuestMemory;
use crate::pagemap::system_granule;
use prereg::{Access, AddressSpace, BusAddr, DirtyPages, Granule, PageList, Pin, UserAddr};

const DEVICE: &str = "0000:00:01.0";

/// Page size of the tables' entries.
const PAGE: u64 = 4096;

fn memory(bytes: u64) -> GuestMemory {
    let granule = system_granule().unwrap().bytes();
    GuestMemory::anonymous(bytes.next_multiple_of(granule)).unwrap()
}

fn on(model: &KernelModel) -> (tempfile::TempDir, Arc<VfioSpaprV2>) {
    let (root, host) = model.host();
    (root, Arc::new(VfioSpaprV2::open_on(&host, DEVICE).unwrap()))
}

fn at(index: u64) -> BusAddr {
    BusAddr::new(0x10_0000 + index * PAGE)
}

/// User addresses in the kernel's entries from `at(0)` on.
fn entries(model: &KernelModel, count: u64) -> Vec<Option<u64>> {
    (0..count).map(|index| model.state().entries.get(&at(index).raw()).copied()).collect()
}

#[test]
fn a_real_kernels_answers_make_registrations_and_entries() {
    if system_granule().unwrap() != Granule::K4 || cfg!(target_endian = "big") {
        eprintln!("skipped: the recording is of a little-endian machine with pages of 4 KiB");
        return;
    }
    let (_root, sysfs) = tree();
    let recording = Recording::parse(include_str!("../recordings/spapr-4k.txt"));
    let host = VfioHost { kernel: recording.kernel(), sysfs };
    let vfio = VfioSpaprV2::open_on(&host, DEVICE).unwrap();
    let limits = vfio.limits();
    assert_eq!((limits.default_bytes, limits.windows, limits.levels), (1 << 31, 2, 5));
    assert_eq!(limits.page_sizes, 0x4021_1000);
    let device = vfio.device(DEVICE).unwrap();
    let range = |ua, bytes| UserRange::new(UserAddr::new(ua), bytes, Granule::K4).unwrap();
    let small = range(0x3fff_ab00_a000, 4 << 20);
    let pin = vfio.pin(small, &mut PageList::new(small, Granule::K4).sink()).unwrap();
    assert_eq!(vfio.state().pinned_bytes, 4 << 20);
    vfio.unpin(pin, small, DirtyPages::none());
    assert_eq!((vfio.state().pinned_bytes, vfio.state().stuck_bytes), (0, 0));
    drop((device, vfio));
    recording.assert_exhausted();
}

#[test]
fn every_failed_call_of_opening_leaves_nothing_open() {
    let model = KernelModel::new(&[]);
    for nth in 1.. {
        let (_root, host) = model.host();
        model.fail_nth(nth, Errno::EIO);
        let opened = VfioSpaprV2::open_on(&host, DEVICE).and_then(|vfio| vfio.device(DEVICE).map(drop));
        assert_eq!(opened.is_err(), model.refused(), "call {nth}");
        assert_eq!(model.state().open, 0, "call {nth}");
        if opened.is_ok() {
            assert!(nth > 8, "{nth} calls are too few to have tried all");
            break;
        }
    }
}

#[test]
fn a_refused_or_partial_registration_leaves_nothing_pinned_or_charged() {
    let model = KernelModel::new(&[]);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(16 * PAGE);
    for errno in [Errno::EFAULT, Errno::ENOMEM, Errno::EINVAL, Errno::EBUSY, Errno::EPERM] {
        model.fail_nth(1, errno);
        let error = space.register(&memory).unwrap_err();
        assert_eq!(error.errno(), errno, "{error}");
    }
    // The result of a kernel that could pin only the first pages.
    model.state().fake_success = Some("VFIO_IOMMU_SPAPR_REGISTER_MEMORY");
    assert_eq!(space.register(&memory).unwrap_err().errno(), Errno::EFAULT);
    model.state().fake_success = None;
    assert!(model.state().registered.is_empty());
    assert_eq!((vfio.account().charged(), vfio.state().pinned_bytes), (0, 0));
    space.register(&memory).unwrap().unregister().unwrap();
}

#[test]
fn mapped_memory_is_busy_although_the_kernel_would_let_it_go() {
    let model = KernelModel::new(&[]);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(16 * PAGE);
    let registration = space.register(&memory).unwrap();
    let table = vfio.default_window().unwrap();
    let mut translator = space.translator();
    table.put(&mut translator, at(0), registration.ua(), Access::ReadWrite).unwrap();
    let calls = model.state().calls;
    let busy = registration.unregister().unwrap_err();
    assert_eq!((busy.errno(), busy.mapped()), (Errno::EBUSY, 1));
    assert_eq!(model.state().calls, calls, "no system call");
    assert!(table.clear(&mut translator, at(0)).unwrap());
    busy.into_inner().unregister().unwrap();
    assert!(model.state().registered.is_empty());
}

#[test]
fn every_change_of_a_table_is_one_call_at_most() {
    let model = KernelModel::new(&[]);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(600 * PAGE);
    let registration = space.register(&memory).unwrap();
    let table = vfio.default_window().unwrap();
    let mut translator = space.translator();
    let ua = |index: u64| UserAddr::new(registration.ua().raw() + index * PAGE);
    let calls = || model.state().calls;
    let mut before = calls();
    let mut new_calls = || {
        let new_calls = calls() - before;
        before = calls();
        new_calls
    };
    table.put(&mut translator, at(3), ua(0), Access::Read).unwrap();
    assert_eq!(new_calls(), 1);
    table.put_run(&mut translator, at(0), ua(0), 512, Access::ReadWrite).unwrap();
    assert_eq!((new_calls(), table.live()), (1, 512));
    let scattered = [ua(9), ua(8), ua(7), ua(20), ua(21)];
    table.put_list(&mut translator, at(0), &scattered, Access::ReadWrite).unwrap();
    assert_eq!(new_calls(), 4, "one for each run of pages that follow each other");
    assert_eq!(entries(&model, 6)[..5], scattered.map(|ua| Some(ua.raw())));
    assert_eq!(entries(&model, 6)[5], Some(ua(5).raw()));
    assert_eq!(table.entry(at(3)), Some((ua(20), Access::ReadWrite)));
    assert_eq!(table.stuff(&mut translator, at(0), 600).unwrap(), 512);
    assert_eq!(new_calls(), 1);
    assert_eq!(table.stuff(&mut translator, at(0), 600).unwrap(), 0);
    table.put_run(&mut translator, at(0), ua(0), 0, Access::Read).unwrap();
    assert_eq!(new_calls(), 0, "nothing to do takes no system call");
    assert!(model.state().entries.is_empty());
    registration.unregister().unwrap();
}

#[test]
fn what_lies_outside_is_refused_before_the_kernel_sees_it() {
    let model = KernelModel::new(&[]);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(16 * PAGE);
    let registration = space.register(&memory).unwrap();
    let table = vfio.default_window().unwrap();
    let mut translator = space.translator();
    let calls = model.state().calls;
    let ua = registration.ua();
    for (ioba, pages) in [
        (WINDOW - PAGE, 2),
        (WINDOW, 1),
        (!(PAGE - 1), 1),
        (PAGE / 2, 1),
        (0, WINDOW / PAGE + 1),
        (0, u64::MAX),
    ] {
        let ioba = BusAddr::new(ioba);
        let error = table.put_run(&mut translator, ioba, ua, pages, Access::Read).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
        assert_eq!(table.stuff(&mut translator, ioba, pages).unwrap_err().errno(), Errno::EINVAL);
    }
    let error = table.put(&mut translator, at(0), UserAddr::new(ua.raw() + 1), Access::Read).unwrap_err();
    assert_eq!(error.errno(), Errno::EINVAL, "{error}");
    let past = UserAddr::new(ua.raw() + memory.bytes() - PAGE);
    let error = table.put_run(&mut translator, at(0), past, 2, Access::Read).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT, "{error}");
    let high = UserAddr::new(!(PAGE - 1));
    assert!(table.put_run(&mut translator, at(0), high, 3, Access::Read).is_err());
    assert_eq!(model.state().calls, calls);
    assert_eq!(table.live(), 0);
    registration.unregister().unwrap();
}

#[test]
fn a_refused_map_puts_back_what_was_there() {
    let model = KernelModel::new(&[]);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let (old, new) = (memory(16 * PAGE), memory(16 * PAGE));
    let (old, new) = (space.register(&old).unwrap(), space.register(&new).unwrap());
    let table = vfio.default_window().unwrap();
    let mut translator = space.translator();
    table.put_run(&mut translator, at(2), old.ua(), 4, Access::ReadWrite).unwrap();
    table.put(&mut translator, at(7), old.ua(), Access::Read).unwrap();
    let before = entries(&model, 10);

    model.fail_nth(1, Errno::ENOMEM);
    let error = table.put_run(&mut translator, at(0), new.ua(), 10, Access::ReadWrite).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM, "{error}");
    assert!(matches!(error, SpaprTableError::Kernel { lost: 0, .. }));
    assert_eq!(entries(&model, 10), before);
    model.state().fake_success = Some("VFIO_IOMMU_MAP_DMA");
    let error = table.put(&mut translator, at(7), new.ua(), Access::ReadWrite).unwrap_err();
    model.state().fake_success = None;
    // The model also refuses to restore the old mapping: the entry is empty and not counted.
    assert!(matches!(error, SpaprTableError::Kernel { errno: Errno::EINVAL, lost: 1, .. }), "{error}");
    assert_eq!((table.entry(at(7)), entries(&model, 8)[7]), (None, None));

    new.unregister().unwrap();
    let busy = old.unregister().unwrap_err();
    assert_eq!(busy.mapped(), 4);
    drop(table);
    assert!(model.state().entries.is_empty());
    busy.into_inner().unregister().unwrap();
}

#[test]
fn entries_that_the_kernel_would_not_empty_stay_counted() {
    let model = KernelModel::new(&[]);
    let (_root, vfio) = on(&model);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().unwrap();
    let memory = memory(16 * PAGE);
    let registration = space.register(&memory).unwrap();
    let table = vfio.default_window().unwrap();
    let mut translator = space.translator();
    table.put_run(&mut translator, at(0), registration.ua(), 3, Access::Read).unwrap();
    model.fail_nth(1, Errno::EIO);
    assert_eq!(table.stuff(&mut translator, at(1), 1).unwrap_err().errno(), Errno::EIO);
    let busy = registration.unregister().unwrap_err();
    assert_eq!((busy.mapped(), table.live()), (3, 3));
    model.fail_nth(1, Errno::EIO);
    drop(table);
    let busy = busy.into_inner().unregister().unwrap_err();
    assert_eq!(busy.mapped(), 3, "what a device may still reach is never unregistered");
    drop(busy);
}

#[test]
fn windows_come_and_go_and_are_never_asked_for_in_vain() {
    let model = KernelModel::new(&[]);
    let (_root, vfio) = on(&model);
    let default = vfio.default_window().unwrap();
    let error = vfio.default_window().unwrap_err();
    assert!(error.to_string().contains("has a table already"), "{error}");
    let high = vfio.create_window(PageShift::K64, 1 << 31, WindowPlace::Beside).unwrap();
    assert_eq!((high.start().raw(), high.bytes(), high.shift()), (HIGH, 1 << 31, PageShift::K64));
    let calls = model.state().calls;
    for (page, bytes, place) in [
        (PageShift::K4, 1 << 30, WindowPlace::Beside),
        (PageShift::K4, 1 << 30, WindowPlace::InsteadOfDefault),
        (PageShift::M2, 1 << 30, WindowPlace::Beside),
        (PageShift::K4, (1 << 30) + 4096, WindowPlace::Beside),
    ] {
        assert_eq!(vfio.create_window(page, bytes, place).unwrap_err().errno(), Errno::EINVAL);
    }
    assert_eq!(model.state().calls, calls);
    drop((default, high));
    assert!(model.state().windows.is_empty());
    let low = vfio.create_window(PageShift::K4, 1 << 28, WindowPlace::InsteadOfDefault).unwrap();
    assert_eq!(low.start().raw(), 0);
    assert!(vfio.default_window().is_err());
    drop(low);
    model.fail_nth(1, Errno::ENOMEM);
    let error = vfio.create_window(PageShift::K4, 1 << 28, WindowPlace::Beside).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM);
    vfio.create_window(PageShift::K4, 1 << 28, WindowPlace::Beside).unwrap();
}
