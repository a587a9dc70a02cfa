//! Scenarios 105 to 129 of docs/specification.md, by number, on simulated hosts with 4 KiB and 64 KiB system pages.
//!
//! The table has 256 guest pages of 64 KiB over a hardware table of 4 KiB pages, so one guest entry is 16 hardware entries.

use std::sync::Arc;

use prereg::{AddressSpace, BusAddr, Errno, GuestAddr, PageShift, UserAddr};
use prereg_iommu::{HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Rules};
use prereg_sim::{MapSpec, SimHost};

use crate::guest::*;

const OK: HReturn = HReturn::SUCCESS;
const PARAMETER: HReturn = HReturn::PARAMETER;
const TOO_HARD: HReturn = HReturn::TOO_HARD;
const PAGE: u64 = 0x1_0000;

#[test]
fn scenario_105_put_to_an_unknown_liobn_is_too_hard() {
    on_each_granule(|guest| {
        for liobn in [0, 0x42, u64::from(LIOBN) + 1, u64::from(LIOBN) | 1 << 32, u64::MAX] {
            let call = Hypercall::Put { liobn, ioba: BusAddr::new(0), tce: prereg_iommu::Tce::new(G | 3) };
            assert_eq!(guest.fast(call), TOO_HARD);
            assert_eq!(guest.call(call).code, PARAMETER, "the slow path has the last word");
        }
        assert_eq!((guest.value(0), guest.mapped()), (0, 0));
    });
}

#[test]
fn scenario_106_put_outside_the_window_or_off_a_page_is_a_bad_parameter() {
    on_each_granule(|guest| {
        for ioba in [1, 0x1000, 0x8000, 256 * PAGE, 256 * PAGE - 1, 1 << 63, !0xffff, u64::MAX] {
            let reply = guest.call(put(ioba, G | 3));
            assert_eq!((reply.code, reply.fell_back_to_userspace), (PARAMETER, false), "{ioba:#x}");
        }
        assert_eq!(guest.mapped(), 0);
    });
}

#[test]
fn scenario_107_put_maps_every_sub_page() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(PAGE, G | 3)), OK);
        assert_eq!((guest.mapped(), guest.live(), guest.value(PAGE)), (16, 16, G | 3));
        let table = &guest.hardware()[0];
        for index in 0..16 {
            let ua = A + index * 0x1000;
            assert_eq!(table.view(16 + index).unwrap().ua, UserAddr::new(ua));
            let (mapping, _) = table.hold_mapping(&mut guest.translator, 16 + index).unwrap().unwrap();
            assert_eq!(mapping.hpa(), guest.host.backs(ua).unwrap());
        }
        assert!(table.access(15).is_none() && table.access(32).is_none());
    });
}

#[test]
fn scenario_108_put_twice_counts_once() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        assert_eq!(guest.mapped(), 16);
    });
}

/// Maps page `G` with `permission` at entry 0, unmaps it, and returns the system pages reported as dirty.
fn dirty_after(granule: prereg::Granule, permission: u64) -> u64 {
    let mut guest = Guest::of_the_scenarios(granule, Rules::Kvm);
    assert_eq!(guest.fast(put(0, G | permission)), OK);
    assert_eq!(guest.fast(put(0, 0)), OK);
    assert_eq!((guest.mapped(), guest.live(), guest.value(0)), (0, 0, 0));
    let host = guest.host.clone();
    guest.end();
    let written = host.written_pages();
    assert!(written.iter().all(|page| page.raw() - A < PAGE), "{written:?}");
    written.len() as u64
}

#[test]
fn scenario_109_pages_a_device_could_write_are_dirty_after_the_unmap() {
    for granule in GRANULES {
        assert_eq!(dirty_after(granule, 3), PAGE / granule.bytes());
    }
}

#[test]
fn scenario_110_pages_a_device_could_only_read_are_not() {
    for granule in GRANULES {
        assert_eq!(dirty_after(granule, 1), 0);
    }
}

#[test]
fn scenario_111_write_only_pages_are_dirty_too() {
    for granule in GRANULES {
        assert_eq!(dirty_after(granule, 2), PAGE / granule.bytes());
    }
}

#[test]
fn scenario_112_poison_unmaps_and_reads_back() {
    on_each_granule(|guest| {
        for poison in [0xdead_0000, 0xdead_beef & !3, !3] {
            assert_eq!(guest.fast(put(0, G | 3)), OK);
            assert_eq!(guest.fast(put(0, poison)), OK);
            assert_eq!((guest.mapped(), guest.value(0)), (0, poison));
        }
    });
}

#[test]
fn scenario_113_an_address_off_a_guest_page_is_too_hard_and_changes_nothing() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(0, G | 1)), OK);
        for tce in [(G + 0x1000) | 3, (G + 0x800) | 3, G | 7, u64::MAX] {
            assert_eq!(guest.fast(put(0, tce)), TOO_HARD, "{tce:#x}");
        }
        assert_eq!((guest.mapped(), guest.value(0)), (16, G | 1));
        // The slow path stores the value and maps the page that a device will access.
        let reply = guest.call(put(0, (G + PAGE + 0x1000) | 3));
        assert_eq!((reply.code, reply.fell_back_to_userspace), (OK, true));
        assert_eq!((guest.mapped(), guest.value(0)), (16, (G + PAGE + 0x1000) | 3));
        let ua = guest.hardware()[0].view(0).unwrap().ua;
        assert_eq!(ua, UserAddr::new(A + PAGE));
    });
}

#[test]
fn scenario_114_an_address_outside_the_slots_is_too_hard() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        for address in [0, G - PAGE, G + RAM, 1 << 40, !0xffff] {
            assert_eq!(guest.fast(put(0, address | 3)), TOO_HARD, "{address:#x}");
        }
        assert_eq!((guest.mapped(), guest.value(0)), (16, G | 3));
        assert_eq!(guest.call(put(0, (G + RAM) | 3)).code, OK);
        assert_eq!((guest.mapped(), guest.value(0)), (0, (G + RAM) | 3), "stored, and no longer mapped");
    });
}

#[test]
fn scenario_115_unregistered_memory_is_too_hard_only_with_a_hardware_table() {
    for granule in GRANULES {
        let mut guest = Guest::bare(granule, Rules::Kvm);
        guest.create(window(0, PageShift::K64, 256));
        assert_eq!(guest.fast(put(0, G | 3)), OK, "emulated only");
        guest.attach(PageShift::K4);
        assert_eq!(guest.fast(put(PAGE, G | 3)), TOO_HARD);
        assert_eq!((guest.value(0), guest.value(PAGE)), (G | 3, 0));
        let reply = guest.call(put(PAGE, G | 3));
        assert_eq!((reply.code, reply.fell_back_to_userspace), (OK, true));
        assert_eq!((guest.value(PAGE), guest.live()), (G | 3, 0));
        guest.end();
    }
}

/// 16 subpages of which the tenth is not registered: two regions with a gap of one system page.
fn with_a_hole() -> (Guest, prereg::Registration) {
    let mut guest = Guest::bare(prereg::Granule::K4, Rules::Kvm);
    guest.register(A, 9 * 0x1000);
    let behind = guest.space.register(&guest.host.memory(A + 0xa000, 0x6000)).unwrap();
    guest.create(window(0, PageShift::K64, 256));
    (guest, behind)
}

#[test]
fn scenario_116_a_sub_page_that_cannot_be_mapped_rolls_all_of_them_back() {
    let (mut guest, behind) = with_a_hole();
    let table = guest.attach(PageShift::K4);
    assert_eq!(guest.fast(put(0, G | 3)), TOO_HARD);
    assert_eq!((guest.mapped(), guest.mapped_at(A + 0xa000), table.live(), guest.value(0)), (0, 0, 0, 0));
    let reply = guest.call(put(0, G | 3));
    assert_eq!((reply.code, reply.fell_back_to_userspace), (OK, true));
    assert_eq!((guest.mapped(), table.live(), guest.value(0)), (0, 0, G | 3));
    behind.unregister().unwrap();
    guest.end();
}

#[test]
fn scenario_116_the_roll_back_gives_back_what_was_there_before_and_touches_no_neighbour() {
    let (mut guest, behind) = with_a_hole();
    // Guest page 1 is mapped in both neighbours of entry 1, and in entry 1 itself.
    let whole = guest.space.register(&guest.host.memory(A + PAGE, PAGE)).unwrap();
    let table = guest.attach(PageShift::K4);
    for ioba in [0, PAGE, 2 * PAGE] {
        assert_eq!(guest.fast(put(ioba, (G + PAGE) | 3)), OK);
    }
    assert_eq!(guest.mapped_at(A + PAGE), 48);
    assert_eq!(guest.fast(put(PAGE, G | 3)), TOO_HARD);
    assert_eq!((guest.mapped(), guest.mapped_at(A + PAGE), table.live()), (0, 32, 32));
    assert!((0..16).chain(32..48).all(|index| table.access(index).is_some()));
    assert!((16..32).all(|index| table.access(index).is_none()));
    for ioba in [0, PAGE, 2 * PAGE] {
        assert_eq!(guest.fast(put(ioba, 0)), OK);
    }
    behind.unregister().unwrap();
    whole.unregister().unwrap();
    guest.end();
}

/// A guest page of 2 MiB of which the first half may be mapped with 64 KiB pages and the second only with 4 KiB ones; so
/// a table of 4 KiB pages takes it and one of 64 KiB pages fails half way.
#[test]
fn scenario_117_a_second_table_that_fails_is_cleared_and_the_slow_path_converges() {
    const HALF: u64 = 1 << 20;
    let host = SimHost::new(prereg::Granule::K4);
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let near = space.register(&host.map(A, HALF, MapSpec::huge(PageShift::K64))).unwrap();
    let far = space.register(&host.memory(A + HALF, HALF)).unwrap();
    let mut slots = MemorySlots::new();
    slots.insert(GuestAddr::new(0), UserAddr::new(A), 2 * HALF).unwrap();
    let mut calls = Hypercalls::new(Rules::Kvm, slots);
    let geometry = window(0, PageShift::M2, 4);
    let table = calls.create(Liobn::new(LIOBN), geometry).unwrap();
    let tables = [PageShift::K4, PageShift::K64].map(|shift| {
        let hardware = Arc::new(HwTable::new(space.clone(), geometry.split(shift).unwrap(), 0).unwrap());
        table.attach(hardware.clone()).unwrap();
        hardware
    });
    let mut translator = space.translator();
    let no_list = |_: GuestAddr, _: &mut [u64]| Err(NotRam);

    let code = calls.fast(&mut translator, &no_list, put(0, 3)).code;
    assert_eq!((code, tables[0].live(), tables[1].live()), (TOO_HARD, 512, 0));
    assert_eq!(near.state().unwrap().mapped + far.state().unwrap().mapped, 512);
    let values = |calls: &Hypercalls| calls.table(Liobn::new(LIOBN)).unwrap().value(0).raw();
    assert_eq!(values(&calls), 0, "the guest's table is as it was");

    let reply = calls.call(&mut translator, &no_list, put(0, 3));
    assert_eq!(
        (reply.code, reply.fell_back_to_userspace, tables[0].live(), tables[1].live()),
        (OK, true, 512, 0)
    );
    assert_eq!(values(&calls), 3);
    assert_eq!(near.state().unwrap().mapped + far.state().unwrap().mapped, 512);

    assert_eq!(calls.call(&mut translator, &no_list, stuff(0, 0, 4)).code, OK);
    near.unregister().unwrap();
    far.unregister().unwrap();
    drop((calls, translator, tables, space));
    host.assert_clean();
}

#[test]
fn a_second_table_that_cannot_start_leaves_the_first_as_it_was() {
    let mut guest = Guest::of_the_scenarios(prereg::Granule::K4, Rules::Kvm);
    assert_eq!(guest.fast(put(0, G | 1)), OK);
    let large = guest.attach(PageShift::K64);
    for call in [put(0, (G + PAGE) | 3), put(PAGE, G | 3)] {
        assert_eq!(guest.fast(call), TOO_HARD, "base pages are no 64 KiB");
    }
    assert_eq!((guest.live(), guest.value(0), guest.value(PAGE)), (16, G | 1, 0));
    assert_eq!(guest.hardware()[0].view(0).map(|entry| entry.ua), Some(UserAddr::new(A)));
    // The slow path maps where it can.
    assert_eq!(guest.call(put(0, (G + PAGE) | 3)).code, OK);
    assert_eq!((guest.mapped(), guest.live(), large.live()), (16, 16, 0));
    drop(large);
    guest.end();
}

#[test]
fn scenario_118_the_shape_of_a_list_is_checked() {
    on_each_granule(|guest| {
        guest.lists.0.insert(LIST, vec![G | 3; 600]);
        for (list, pages, code) in [
            (LIST, 513, PARAMETER),
            (LIST, u64::MAX, PARAMETER),
            (LIST + 8, 1, PARAMETER),
            (LIST + 0x800, 1, PARAMETER),
            (LIST | 3, 1, PARAMETER),
            (LIST, 0, OK),
            (LIST, 257, PARAMETER),
        ] {
            let reply = guest.call(indirect(0, list, pages));
            assert_eq!((reply.code, reply.fell_back_to_userspace), (code, false), "{list:#x} {pages}");
        }
        assert_eq!(guest.mapped(), 0);
    });
}

#[test]
fn scenario_119_a_list_outside_guest_memory_is_too_hard() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        for list in [0, G + RAM, 1 << 50, !0xfff] {
            assert_eq!(guest.fast(indirect(0, list, 1)), TOO_HARD);
        }
        assert_eq!(guest.fast(indirect(0, G, 1)), TOO_HARD, "in a slot, but it cannot be read");
        guest.lists.0.insert(G + RAM, vec![0]);
        assert_eq!(guest.fast(indirect(0, G + RAM, 1)), TOO_HARD, "it can be read, but in no slot");
        guest.lists.0.clear();
        assert_eq!(guest.mapped(), 16);
        // The slow path reads zeros where there is no memory.
        assert_eq!(guest.call(indirect(0, G + RAM, 1)).code, OK);
        assert_eq!((guest.mapped(), guest.value(0)), (0, 0));
    });
}

#[test]
fn scenario_120_a_bad_value_in_a_list_stops_it_before_anything_changes() {
    on_each_granule(|guest| {
        for bad in [(G + RAM) | 3, (G + 0x1000) | 3, 1 << 50 | 1] {
            let mut values = [G | 3, (G + PAGE) | 3, 0, G | 1, G | 3, G | 3, G | 3, G | 3];
            values[4] = bad;
            let call = guest.list(0, &values);
            assert_eq!(guest.fast(call), TOO_HARD);
            assert_eq!((guest.mapped(), guest.live()), (0, 0));
            assert!((0..8).all(|index| guest.value(index * PAGE) == 0));
        }
    });
}

#[test]
fn scenario_121_a_list_that_changes_while_it_is_written_maps_what_was_checked() {
    on_each_granule(|guest| {
        // The first read of guest memory returns good values, later ones bad values.
        let looks = core::cell::Cell::new(0);
        let changing = |_: GuestAddr, values: &mut [u64]| {
            values.fill(if looks.replace(looks.get() + 1) == 0 { G | 3 } else { 1 << 50 | 3 });
            Ok(())
        };
        let reply = guest.calls.call(&mut guest.translator, &changing, indirect(0, LIST, 8));
        assert_eq!((reply.code, reply.fell_back_to_userspace, looks.get()), (OK, false, 1));
        assert_eq!((guest.mapped(), guest.live()), (128, 128));
        assert!((0..8).all(|index| guest.value(index * PAGE) == G | 3));
    });
}

#[test]
fn scenario_122_a_value_without_permission_in_a_list_unmaps() {
    for granule in GRANULES {
        let mut guest = Guest::of_the_scenarios(granule, Rules::Kvm);
        let low = guest.space.register(&guest.host.memory(A + (1 << 30), RAM)).unwrap();
        let mut slots = slots();
        slots.insert(GuestAddr::new(0), low.ua(), RAM).unwrap();
        guest.calls.replace_slots(slots);
        let full = guest.list(0, &[G | 3; 4]);
        assert_eq!(guest.fast(full), OK);
        assert_eq!(guest.mapped(), 64);
        let holes = guest.list(0, &[G | 3, 0, G + PAGE, G | 1]);
        assert_eq!(guest.fast(holes), OK);
        assert_eq!((guest.mapped(), guest.live(), guest.mapped_at(A + (1 << 30))), (32, 32, 0));
        assert_eq!([0, 1, 2, 3].map(|index| guest.value(index * PAGE)), [G | 3, 0, G + PAGE, G | 1]);
        assert_eq!(guest.fast(stuff(0, 0, 4)), OK);
        low.unregister().unwrap();
        guest.end();
    }
}

#[test]
fn poison_outside_of_memory_in_a_list_is_refused_where_it_stands() {
    on_each_granule(|guest| {
        let before = guest.list(0, &[(G + PAGE) | 3; 4]);
        assert_eq!(guest.fast(before), OK);
        let list = guest.list(0, &[G | 3, G | 1, 1 << 50, G | 3]);
        let reply = guest.call(list);
        assert_eq!((reply.code, reply.fell_back_to_userspace), (PARAMETER, false));
        assert_eq!(guest.mapped(), 64, "the first two replaced, the others kept");
        let values = [0, 1, 2, 3].map(|index| guest.value(index * PAGE));
        assert_eq!(values, [G | 3, G | 1, (G + PAGE) | 3, (G + PAGE) | 3]);
    });
}

#[test]
fn scenario_123_stuff_of_a_value_with_permission_is_a_bad_parameter() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        for tce in [G | 1, G | 2, G | 3, 1, u64::MAX] {
            let reply = guest.call(stuff(0, tce, 4));
            assert_eq!((reply.code, reply.fell_back_to_userspace), (PARAMETER, false));
        }
        assert_eq!((guest.mapped(), guest.value(0)), (16, G | 3));
    });
}

#[test]
fn scenario_124_stuff_of_zero_gives_every_unit_back() {
    on_each_granule(|guest| {
        let full = guest.list(0, &[G | 3; 256]);
        assert_eq!(guest.fast(full), OK);
        assert_eq!(guest.mapped(), 4096);
        assert_eq!(guest.fast(stuff(0, 0, 256)), OK);
        assert_eq!((guest.mapped(), guest.live()), (0, 0));
        assert!((0..256).all(|index| guest.value(index * PAGE) == 0));
    });
}

#[test]
fn scenario_125_stuffed_poison_reads_back() {
    on_each_granule(|guest| {
        assert_eq!(guest.fast(put(PAGE, G | 3)), OK);
        assert_eq!(guest.fast(stuff(0, 0xdead_0000, 256)), OK);
        assert!((0..256).all(|index| guest.value(index * PAGE) == 0xdead_0000));
        assert_eq!(guest.mapped(), 0);
    });
}

#[test]
fn scenario_126_stuff_of_a_table_that_was_never_touched_allocates_nothing() {
    for rules in [Rules::Kvm, Rules::Qemu] {
        let mut guest = Guest::bare(prereg::Granule::K4, rules);
        guest.create(window(0, PageShift::K4, 1 << 28));
        let hardware = guest.attach(PageShift::K4);
        let table = |guest: &Guest| guest.calls.table(Liobn::new(LIOBN)).unwrap().memory_bytes();
        let before = (table(&guest), hardware.memory_bytes());
        let reply = guest.call(stuff(0, 0, 1 << 28));
        assert_eq!((reply.code, reply.fell_back_to_userspace), (OK, false));
        assert_eq!((table(&guest), hardware.memory_bytes()), before);
        assert!(before.0 + before.1 < 16 << 10, "{before:?}");
        guest.end();
    }
}

#[test]
fn scenario_127_an_entry_never_written_reads_zero() {
    on_each_granule(|guest| {
        for index in [0, 1, 255] {
            let reply = guest.call(get(index * PAGE));
            assert_eq!((reply.code, reply.value.map(prereg_iommu::Tce::raw)), (OK, Some(0)));
        }
        for ioba in [1, 256 * PAGE, u64::MAX] {
            let reply = guest.call(get(ioba));
            assert_eq!((reply.code, reply.value), (PARAMETER, None));
        }
    });
}

#[test]
fn scenario_128_memory_with_live_guest_entries_cannot_be_unregistered() {
    for granule in GRANULES {
        let mut guest = Guest::of_the_scenarios(granule, Rules::Kvm);
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        let refused = guest.ram.take().unwrap().unregister().unwrap_err();
        assert_eq!((refused.errno(), refused.mapped()), (Errno::EBUSY, 16));
        guest.ram = Some(refused.into_inner());
        assert_eq!(guest.fast(put(PAGE, G | 1)), OK, "the region stays fully usable");
        assert_eq!(guest.fast(stuff(0, 0, 256)), OK);
        guest.end();
    }
}

#[test]
fn scenario_129_put_while_the_region_is_dying_is_too_hard() {
    for granule in GRANULES {
        let mut guest = Guest::of_the_scenarios(granule, Rules::Kvm);
        assert_eq!(guest.fast(put(0, G | 3)), OK);
        let dying = guest.ram.take().unwrap().drain();
        assert_eq!(guest.fast(put(PAGE, G | 3)), TOO_HARD);
        assert_eq!(guest.fast(put(0, G | 1)), TOO_HARD);
        let list = guest.list(2 * PAGE, &[G | 3]);
        assert_eq!(guest.fast(list), TOO_HARD);
        assert_eq!((guest.live(), guest.value(0), guest.value(PAGE)), (16, G | 3, 0));
        assert!(!dying.is_done());
        assert_eq!(guest.fast(put(0, 0)), OK);
        dying.wait();
        guest.end();
    }
}
