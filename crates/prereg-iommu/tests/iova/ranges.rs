//! What can be mapped and unmapped, by the rules of type 1, second version.

use prereg::{Access, Errno, Iova, MapError, UserAddr};
use prereg_iommu::iova::{Backing, IovaMapError, LocalPiece};

use crate::world::{BASE, PAGE, PAGES, World, iova, local, ua};

#[test]
fn a_mapping_counts_one_unit_however_long_and_gives_it_back() {
    let world = World::new();
    world.map(100, 32, 0).unwrap();
    world.map(200, 1, 0).unwrap();
    assert_eq!(world.mapped(), 2);
    let unmapping = world.map.unmap(iova(100), 32 * PAGE).unwrap();
    assert!(unmapping.is_done());
    assert_eq!((unmapping.mappings(), unmapping.bytes()), (1, 32 * PAGE));
    assert_eq!(world.mapped(), 1);
    assert_eq!(world.bell.rung(), 0, "nobody had to wait");
    drop(world.map);
    assert_eq!(world.registration.state().unwrap().mapped, 0);
}

#[test]
fn bad_ranges_are_invalid_and_change_nothing() {
    let world = World::new();
    let map = |at: u64, bytes| world.map.map(Iova::new(at), bytes, local(0), Access::ReadWrite);
    for (at, bytes) in
        [(0, 0), (1, PAGE), (0, PAGE - 1), (0, 1), (u64::MAX - 0xfff, 2 * PAGE), (2 * PAGE, u64::MAX - 0xfff)]
    {
        let error = map(at, bytes).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
        let error = world.map.unmap(Iova::new(at), bytes).map(|_| ()).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
    }
    let misplaced = world.map.map(iova(0), PAGE, Backing::Local(UserAddr::new(BASE + 8)), Access::Read);
    assert_eq!(misplaced.unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(world.map.snapshot().mappings, 0);
    assert_eq!(world.mapped(), 0);
}

#[test]
fn a_range_may_end_at_the_top() {
    let world = World::new();
    let top = Iova::new(u64::MAX - (PAGE - 1));
    world.map.map(top, PAGE, local(3), Access::ReadWrite).unwrap();
    assert_eq!(world.map.hold(top, PAGE, Access::Read).unwrap().bytes(), PAGE);
    assert!(world.map.hold(top, PAGE + 1, Access::Read).is_err());
    let error = world.map.map(top, PAGE, local(3), Access::ReadWrite).unwrap_err();
    assert_eq!(error, IovaMapError::Exists { iova: top, bytes: PAGE });
    // As QEMU asks when a guest turns its IOMMU off: from somewhere to the top, nothing or something mapped there.
    let unmapping = world.map.unmap(Iova::new(0xfef0_0000), 0xffff_ffff_0110_0000).unwrap();
    assert_eq!(unmapping.mappings(), 1);
    let unmapping = world.map.unmap(Iova::new(0xfef0_0000), 0xffff_ffff_0110_0000).unwrap();
    assert_eq!(unmapping.mappings(), 0);
    assert!(unmapping.is_done());
}

#[test]
fn remote_memory_can_cover_everything() {
    let world = World::new();
    let half = 1 << 63;
    world.map.map(Iova::new(0), half, Backing::Remote, Access::ReadWrite).unwrap();
    world.map.map(Iova::new(half), half, Backing::Remote, Access::ReadWrite).unwrap();
    assert_eq!(world.map.snapshot().bytes, 1 << 64);
    let held = world.map.hold(Iova::new(half - 1), 2, Access::Write).unwrap();
    assert_eq!(held.pieces().count(), 2);
    assert!(!held.is_local());
    drop(held);
    let unmapping = world.map.unmap_all();
    assert_eq!((unmapping.mappings(), unmapping.bytes()), (2, u64::MAX));
    assert_eq!(world.map.snapshot().bytes, 0);
}

#[test]
fn overlaps_are_refused_whatever_side_they_come_from() {
    let world = World::new();
    world.map(10, 4, 0).unwrap();
    for (at, pages) in [(10, 4), (8, 3), (13, 1), (11, 1), (0, 64), (13, 9)] {
        let error = world.map(at, pages, 0).unwrap_err();
        assert_eq!(error, IovaMapError::Exists { iova: iova(10), bytes: 4 * PAGE });
        assert_eq!(error.errno(), Errno::EEXIST);
    }
    world.map(9, 1, 0).unwrap();
    world.map(14, 1, 0).unwrap();
    assert_eq!(world.mapped(), 3);
}

#[test]
fn an_unmap_covers_any_number_of_mappings_or_splits_none() {
    let world = World::new();
    for at in [10, 11, 20, 30] {
        world.map(at, 1, at).unwrap();
    }
    world.map(40, 10, 0).unwrap();
    for (at, pages) in [(40, 9), (41, 9), (45, 1), (30, 15), (39, 2), (0, 45)] {
        let error = world.map.unmap(iova(at), pages * PAGE).map(|_| ()).unwrap_err();
        assert_eq!(error, IovaMapError::Splits { iova: iova(40), bytes: 10 * PAGE });
    }
    assert_eq!(world.mapped(), 5, "nothing went");
    assert_eq!(world.map.unmap(iova(12), 8 * PAGE).unwrap().mappings(), 0);
    assert_eq!(world.map.unmap(iova(5), 16 * PAGE).unwrap().mappings(), 3);
    assert_eq!(world.map.unmap(iova(0), 1 << 40).unwrap().mappings(), 2);
    assert_eq!(world.map.unmap_all().mappings(), 0);
    assert_eq!(world.mapped(), 0);
}

#[test]
fn memory_must_be_registered_all_of_it() {
    let world = World::new();
    let error = world.map(0, 2, PAGES - 1).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
    assert!(matches!(error, IovaMapError::Memory(MapError::Unregistered { .. })));
    assert_eq!(world.map.snapshot().mappings, 0);
    world.map(0, 1, PAGES - 1).unwrap();
}

#[test]
fn memory_that_is_going_is_not_mapped() {
    let World { map, registration, space, host, .. } = World::new();
    map.map(iova(0), PAGE, local(0), Access::Read).unwrap();
    drop(registration);
    let error = map.map(iova(1), PAGE, local(1), Access::Read).unwrap_err();
    assert_eq!(error.errno(), Errno::ENXIO);
    assert_eq!(map.unmap_all().mappings(), 1);
    space.reap();
    host.assert_clean();
}

#[test]
fn pieces_of_several_regions_make_one_mapping_or_none() {
    let world = World::new();
    let far = BASE + 4 * PAGES * PAGE;
    let other = world.space.register(&world.host.memory(far, 8 * PAGE)).unwrap();
    let piece = |ua: u64, pages: u64| LocalPiece { ua: UserAddr::new(ua), bytes: pages * PAGE, owner: None };
    let good = [piece(BASE, 2), piece(far + PAGE, 3), piece(BASE + 9 * PAGE, 1)];
    world.map.map(iova(50), 6 * PAGE, Backing::Pieces(good.to_vec()), Access::ReadWrite).unwrap();
    assert_eq!((world.mapped(), other.state().unwrap().mapped), (2, 1));
    let held = world.map.hold(Iova::new(51 * PAGE + 8), 4 * PAGE, Access::Read).unwrap();
    let mut at = Vec::new();
    for stretch in held.stretches() {
        if let prereg_iommu::iova::Stretch::Local { ua, bytes, .. } = stretch {
            at.push((ua.raw(), bytes));
        }
    }
    let expected = [(BASE + PAGE + 8, PAGE - 8), (far + PAGE, 3 * PAGE), (BASE + 9 * PAGE, 8)];
    assert_eq!(at, expected);
    drop(held);
    // The last piece is not registered: the first two are given back.
    let bad = vec![piece(BASE, 1), piece(far, 1), piece(far + 8 * PAGE, 1)];
    let error = world.map.map(iova(60), 3 * PAGE, Backing::Pieces(bad), Access::Read).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
    let short = vec![piece(BASE, 1)];
    let error = world.map.map(iova(60), 3 * PAGE, Backing::Pieces(short), Access::Read).unwrap_err();
    assert_eq!(error, IovaMapError::Pieces { given: PAGE, bytes: 3 * PAGE });
    assert_eq!((world.mapped(), other.state().unwrap().mapped), (2, 1));
    assert_eq!(world.map.unmap(iova(50), 6 * PAGE).unwrap().mappings(), 1);
    assert_eq!((world.mapped(), other.state().unwrap().mapped), (0, 0));
    assert_eq!(ua(0).raw(), BASE);
}
