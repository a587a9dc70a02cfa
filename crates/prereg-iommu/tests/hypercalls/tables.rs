//! Scenarios 130 to 133 of docs/specification.md: creating, removing and attaching tables, and device accesses.

use std::sync::Arc;

use prereg::{AddressSpace, BusAddr, Errno, GuestAddr, PageShift, UserAddr};
use prereg_iommu::{
    AttachError, CreateError, Geometry, HReturn, HwTable, Hypercalls, Liobn, MemorySlots, Rules, TceTable,
};
use prereg_sim::SimHost;

use crate::guest::*;

const OK: HReturn = HReturn::SUCCESS;
const TOO_HARD: HReturn = HReturn::TOO_HARD;
const PAGE: u64 = 0x1_0000;

#[test]
fn scenario_130_a_hardware_table_outlives_the_table_it_was_attached_to() {
    on_each_granule(|guest| {
        let hardware = guest.hardware().remove(0);
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        let removed = guest.calls.remove(Liobn::new(LIOBN)).unwrap();
        assert_eq!(guest.fast(put(0, 0)), TOO_HARD);
        drop(removed);
        assert_eq!((hardware.live(), guest.mapped()), (16, 16), "its other owner still has it");
        guest.create(window(0, PageShift::K64, 256));
        guest.calls.table_mut(Liobn::new(LIOBN)).unwrap().attach(hardware).unwrap();
        assert_eq!(guest.fast(stuff(0, 0, 256)), OK);
        assert_eq!(guest.mapped(), 0);
    });
}

#[test]
fn scenario_131_133_a_hardware_table_must_fit_the_guests() {
    let host = SimHost::new(prereg::Granule::K4);
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let start = 0x10_0000;
    let mut table = TceTable::new(Liobn::new(LIOBN), window(start, PageShift::K64, 256)).unwrap();
    let hardware = |start, shift, entries| {
        let geometry = Geometry::new(BusAddr::new(start), shift, entries).unwrap();
        Arc::new(HwTable::new(space.clone(), geometry, 0).unwrap())
    };
    let good = hardware(start, PageShift::K4, 4096);
    assert_eq!(table.attach(good.clone()), Ok(1));
    assert_eq!(table.attach(good.clone()), Ok(2));
    assert_eq!(table.attach(hardware(start, PageShift::K4, 5000)), Ok(1));
    assert_eq!(table.attach(hardware(start, PageShift::K64, 256)), Ok(1));
    let refusals = [
        table.attach(hardware(0, PageShift::M2, 512)).unwrap_err(),
        table.attach(hardware(0, PageShift::K4, 8192)).unwrap_err(),
        table.attach(hardware(start, PageShift::K4, 4095)).unwrap_err(),
    ];
    assert!(matches!(
        refusals,
        [AttachError::PageTooLarge { .. }, AttachError::OtherStart { .. }, AttachError::TooSmall { .. }]
    ));
    let elsewhere = Arc::new(AddressSpace::builder(host).build().unwrap());
    let foreign = HwTable::new(elsewhere, *good.geometry(), 0).unwrap();
    assert_eq!(table.attach(Arc::new(foreign)), Err(AttachError::OtherSpace));
    assert!(refusals.iter().all(|refused| refused.errno() == Errno::EINVAL));

    assert_eq!(table.hardware().count(), 3);
    assert_eq!(table.detach(&good), Some(1));
    assert_eq!(table.detach(&good), Some(0));
    assert_eq!(table.detach(&good), None);
    assert_eq!(table.hardware().count(), 2);

    let mut small = TceTable::new(Liobn::new(1), window(0, PageShift::K4, 16)).unwrap();
    assert!(matches!(small.attach(hardware(0, PageShift::K64, 16)), Err(AttachError::PageTooLarge { .. })));
}

#[test]
fn scenario_132_a_liobn_has_one_table() {
    let mut calls = Hypercalls::new(Rules::Kvm, MemorySlots::new());
    for liobn in [5, 1, 3] {
        calls.create(Liobn::new(liobn), window(0, PageShift::K4, 16)).unwrap();
    }
    let refused = calls.create(Liobn::new(3), window(0, PageShift::K64, 1)).unwrap_err();
    assert_eq!((refused, refused.errno()), (CreateError::Taken { liobn: Liobn::new(3) }, Errno::EBUSY));
    assert_eq!(calls.tables().map(|table| table.liobn().raw()).collect::<Vec<_>>(), [1, 3, 5]);
    assert!(calls.remove(Liobn::new(4)).is_none());
    assert!(calls.remove(Liobn::new(3)).is_some());
    calls.create(Liobn::new(3), window(0, PageShift::K64, 1)).unwrap();
}

#[test]
fn a_translator_of_another_address_space_changes_nothing() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        let other = AddressSpace::builder(guest.host.clone()).build().unwrap();
        let mut stranger = other.translator();
        for call in [put(0, G | 1), put(0, 0), stuff(0, 0, 4)] {
            assert_eq!(guest.calls.fast(&mut stranger, &guest.lists, call).code, TOO_HARD);
            assert_eq!(guest.calls.call(&mut stranger, &guest.lists, call).code, HReturn::HARDWARE);
        }
        assert_eq!((guest.mapped(), guest.value(0)), (16, G | 3));
    });
}

#[test]
fn a_guest_page_that_leaves_its_slot_is_never_mapped() {
    // The slot ends inside the last guest page; the user memory behind its end is registered, but not the guest's.
    let mut guest = Guest::of_the_scenarios(prereg::Granule::K4, Rules::Kvm);
    let mut short = MemorySlots::new();
    short.insert(GuestAddr::new(G), UserAddr::new(A), RAM - 0x1000).unwrap();
    guest.calls.replace_slots(short);
    let last = G + RAM - PAGE;
    assert_eq!(guest.fast(put(0, last | 3)), TOO_HARD);
    assert_eq!(guest.call(put(0, last | 3)).code, OK);
    assert_eq!((guest.live(), guest.value(0)), (0, last | 3));
    guest.end();
}

#[test]
fn a_device_finds_what_the_guest_wrote_and_holds_the_memory_while_it_looks() {
    on_each_granule(|guest| {
        assert_eq!(guest.call(put(PAGE, (G + PAGE) | 1)).code, OK);
        let liobn = Liobn::new(LIOBN);
        let (calls, translator) = (&guest.calls, &mut guest.translator);
        let found = calls.lookup(translator, liobn, BusAddr::new(PAGE + 0x3456)).unwrap().unwrap();
        assert_eq!(
            (found.guest.page, found.guest.access),
            (GuestAddr::new(G + PAGE), Some(prereg::Access::Read))
        );
        let (mapping, access) = found.host.unwrap();
        assert_eq!(access, prereg::Access::Read);
        assert_eq!(Some(mapping.hpa()), guest.host.backs(A + PAGE + 0x3000), "the sub-page of the access");
        assert_eq!(guest.mapped(), 17);
        drop(mapping);

        let (calls, translator) = (&guest.calls, &mut guest.translator);
        let empty = calls.lookup(translator, liobn, BusAddr::new(0)).unwrap().unwrap();
        assert!(empty.guest.access.is_none() && empty.host.is_none());
        assert!(calls.lookup(translator, liobn, BusAddr::new(256 * PAGE)).unwrap().is_none());
        assert!(calls.lookup(translator, Liobn::new(1), BusAddr::new(0)).unwrap().is_none());
    });
}
