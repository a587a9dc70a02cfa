//! Hardware tables alone: units, runs, sparse windows and their memory.

use std::sync::Arc;

use prereg::{Access, AddressSpace, BusAddr, Errno, Granule, HolderKind, PageShift, UserAddr};
use prereg_iommu::{EntryError, Geometry, HwTable, TableError};
use prereg_sim::SimHost;

use crate::guest::{A, GRANULES};

fn host(granule: Granule) -> (SimHost, Arc<AddressSpace>, prereg::Registration) {
    let host = SimHost::new(granule);
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let memory = space.register(&host.memory(A, 1 << 20)).unwrap();
    (host, space, memory)
}

fn geometry(entries: u64) -> Geometry {
    Geometry::new(BusAddr::new(0), PageShift::K4, entries).unwrap()
}

fn page(index: u64) -> UserAddr {
    UserAddr::new(A + index * 0x1000)
}

#[test]
fn each_live_entry_is_one_mapping_and_a_dropped_table_returns_them_all() {
    for granule in GRANULES {
        let (host, space, memory) = host(granule);
        let mut translator = space.translator();
        let table = HwTable::new(space.clone(), geometry(1 << 20), 9).unwrap();
        for index in 0..600 {
            assert_eq!(table.set(&mut translator, index * 1000, page(index % 7), Access::Read), Ok(None));
        }
        assert_eq!(table.set(&mut translator, 0, page(1), Access::Write), Ok(Some(Access::Read)));
        assert_eq!(table.clear(&mut translator, 0), Ok(Some(Access::Write)));
        assert_eq!(table.clear(&mut translator, 0), Ok(None));
        assert_eq!(table.clear(&mut translator, 1), Ok(None));
        assert_eq!((table.live(), memory.state().unwrap().mapped), (599, 599));

        drop(translator);
        let busy = memory.unregister().unwrap_err();
        assert_eq!(busy.errno(), Errno::EBUSY);
        assert_eq!(busy.holders().iter().map(|held| held.count).sum::<u64>(), 599);
        let memory = busy.into_inner();
        drop(table);
        memory.unregister().unwrap();
        host.assert_clean();
    }
}

#[test]
fn an_unregister_that_is_refused_names_the_container() {
    let (_host, space, memory) = host(Granule::K4);
    let table = HwTable::new(space.clone(), geometry(16), 9).unwrap();
    let mut translator = space.translator_for(table.holder());
    table.set(&mut translator, 3, page(0), Access::ReadWrite).unwrap();
    let busy = memory.unregister().unwrap_err();
    let [held] = busy.holders() else { panic!("{:?}", busy.holders()) };
    assert_eq!((held.holder.container, held.holder.kind, held.count), (9, HolderKind::TableEntry, 1));
}

#[test]
fn a_run_maps_all_pages_or_none() {
    let (_host, space, memory) = host(Granule::K4);
    let mut translator = space.translator();
    let table = HwTable::new(space, geometry(4096), 0).unwrap();
    // Across two blocks of the table, up to the last page of the region.
    table.set_run(&mut translator, 200, 256, page(0), Access::ReadWrite).unwrap();
    assert_eq!((table.live(), memory.state().unwrap().mapped), (256, 256));
    let middle = table.view(300).unwrap().ua;
    assert_eq!(middle, page(100));

    let refused = table.set_run(&mut translator, 300, 8, page(250), Access::Read).unwrap_err();
    assert_eq!(refused.errno(), Errno::EFAULT);
    assert!(refused.is_refusal() && !refused.is_contended());
    assert_eq!((table.live(), memory.state().unwrap().mapped), (248, 248), "the eight of the run are empty");

    table.set_run(&mut translator, 300, 1, page(256), Access::Read).unwrap_err();
    table.set_run(&mut translator, 308, 1, page(256), Access::Read).unwrap_err();
    assert!(table.access(308).is_some(), "the first page refused: nothing changed");
    let top = UserAddr::new(!0xfff);
    table.set_run(&mut translator, 0, 2, top, Access::Read).unwrap_err();
    table.set(&mut translator, 0, UserAddr::new(A + 8), Access::Read).unwrap_err();
    assert_eq!(table.live(), 248);
}

#[test]
fn a_range_outside_the_table_is_refused_whole() {
    let (_host, space, _memory) = host(Granule::K4);
    let mut translator = space.translator();
    let table = HwTable::new(space, geometry(100), 0).unwrap();
    table.set(&mut translator, 99, page(0), Access::Read).unwrap();
    let outside = |index| EntryError::Table(TableError::OutOfRange { index, entries: 100 });
    assert_eq!(table.set(&mut translator, 100, page(0), Access::Read), Err(outside(100)));
    assert_eq!(table.clear(&mut translator, 100), Err(outside(100)));
    assert_eq!(table.clear_range(&mut translator, 99, 2), Err(outside(100)));
    assert_eq!(table.clear_range(&mut translator, 1, u64::MAX), Err(outside(100)));
    assert_eq!(table.set_run(&mut translator, 98, 3, page(0), Access::Read), Err(outside(100)));
    assert_eq!(table.live(), 1);
    assert!(table.access(100).is_none() && table.view(100).is_none());
    assert!(table.hold_mapping(&mut translator, 100).unwrap().is_none());
    assert_eq!(table.clear_range(&mut translator, 100, 0), Ok(0));
}

#[test]
fn a_window_of_a_terabyte_costs_what_is_used() {
    let (_host, space, memory) = host(Granule::K4);
    let mut translator = space.translator();
    let entries = 1 << 28;
    let table = HwTable::new(space, geometry(entries), 0).unwrap();
    table.set(&mut translator, entries / 2, page(0), Access::Read).unwrap();
    assert!(table.memory_bytes() < 64 << 10, "{} bytes", table.memory_bytes());
    for index in [0, entries - 1] {
        table.set(&mut translator, index, page(0), Access::Read).unwrap();
    }
    let mut live = Vec::new();
    table.for_each_live(0, entries, |index, _| live.push(index));
    assert_eq!(live, [0, entries / 2, entries - 1]);

    let before = table.memory_bytes();
    assert_eq!(table.clear_range(&mut translator, 0, entries), Ok(3));
    assert_eq!((table.live(), memory.state().unwrap().mapped, table.memory_bytes()), (0, 0, before));
}

#[test]
fn clearing_the_largest_window_visits_only_what_is_there() {
    let (_host, space, memory) = host(Granule::K4);
    let mut translator = space.translator();
    // Entry by entry this would take months.
    let entries = (1 << 52) - 1;
    let table = HwTable::new(space, geometry(entries), 0).unwrap();
    let used = [0, entries / 3, entries - 1];
    for index in used {
        table.set(&mut translator, index, page(0), Access::Read).unwrap();
    }
    assert!(table.memory_bytes() < 128 << 10, "{} bytes", table.memory_bytes());
    assert_eq!(table.clear_range(&mut translator, 1, entries - 2), Ok(1));
    assert_eq!(table.clear_range(&mut translator, 0, entries), Ok(2));
    assert_eq!((table.live(), memory.state().unwrap().mapped), (0, 0));
}

#[test]
fn prepared_entries_are_mapped_without_more_memory() {
    let (_host, space, _memory) = host(Granule::K4);
    let mut translator = space.translator();
    let table = HwTable::new(space, geometry(1 << 20), 0).unwrap();
    table.prepare(1000, 1000).unwrap();
    let prepared = table.memory_bytes();
    for index in 1000..2000 {
        table.set(&mut translator, index, page(index % 256), Access::Read).unwrap();
    }
    assert_eq!((table.live(), table.memory_bytes()), (1000, prepared));
    assert!(table.prepare((1 << 20) - 1, 2).is_err());
    table.prepare(1 << 20, 0).unwrap();
}
