//! Ranges of map and unmap, by the rules of type1, version 2.

use prereg::{Access, Errno, Iova, MapError, UserAddr};
use prereg_iommu::iova::{Backing, IovaMapError, LocalSegment};

use crate::fixture::{BASE, Fixture, PAGE, PAGES, iova, local, ua};

#[test]
fn a_mapping_counts_one_unit_however_long_and_gives_it_back() {
    let fixture = Fixture::new();
    fixture.map(100, 32, 0).unwrap();
    fixture.map(200, 1, 0).unwrap();
    assert_eq!(fixture.mapped(), 2);
    let unmapping = fixture.map.unmap(iova(100), 32 * PAGE).unwrap();
    assert!(unmapping.is_done());
    assert_eq!((unmapping.mappings(), unmapping.bytes()), (1, 32 * PAGE));
    assert_eq!(fixture.mapped(), 1);
    assert_eq!(fixture.drains.count(), 0, "no unmap waited");
    drop(fixture.map);
    assert_eq!(fixture.registration.state().unwrap().mapped, 0);
}

#[test]
fn bad_ranges_are_invalid_and_change_nothing() {
    let fixture = Fixture::new();
    let map = |at: u64, bytes| fixture.map.map(Iova::new(at), bytes, local(0), Access::ReadWrite);
    for (at, bytes) in
        [(0, 0), (1, PAGE), (0, PAGE - 1), (0, 1), (u64::MAX - 0xfff, 2 * PAGE), (2 * PAGE, u64::MAX - 0xfff)]
    {
        let error = map(at, bytes).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
        let error = fixture.map.unmap(Iova::new(at), bytes).map(|_| ()).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
    }
    let misplaced = fixture.map.map(iova(0), PAGE, Backing::Local(UserAddr::new(BASE + 8)), Access::Read);
    assert_eq!(misplaced.unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(fixture.map.snapshot().mappings, 0);
    assert_eq!(fixture.mapped(), 0);
}

#[test]
fn a_range_may_end_at_the_top() {
    let fixture = Fixture::new();
    let top = Iova::new(u64::MAX - (PAGE - 1));
    fixture.map.map(top, PAGE, local(3), Access::ReadWrite).unwrap();
    assert_eq!(fixture.map.hold(top, PAGE, Access::Read).unwrap().bytes(), PAGE);
    assert!(fixture.map.hold(top, PAGE + 1, Access::Read).is_err());
    let error = fixture.map.map(top, PAGE, local(3), Access::ReadWrite).unwrap_err();
    assert_eq!(error, IovaMapError::Exists { iova: top, bytes: PAGE });
    // As QEMU does when a guest disables its IOMMU: from an address to the top, whether something is mapped there or not.
    let unmapping = fixture.map.unmap(Iova::new(0xfef0_0000), 0xffff_ffff_0110_0000).unwrap();
    assert_eq!(unmapping.mappings(), 1);
    let unmapping = fixture.map.unmap(Iova::new(0xfef0_0000), 0xffff_ffff_0110_0000).unwrap();
    assert_eq!(unmapping.mappings(), 0);
    assert!(unmapping.is_done());
}

#[test]
fn remote_memory_can_cover_everything() {
    let fixture = Fixture::new();
    let half = 1 << 63;
    fixture.map.map(Iova::new(0), half, Backing::Remote, Access::ReadWrite).unwrap();
    fixture.map.map(Iova::new(half), half, Backing::Remote, Access::ReadWrite).unwrap();
    assert_eq!(fixture.map.snapshot().bytes, 1 << 64);
    let held = fixture.map.hold(Iova::new(half - 1), 2, Access::Write).unwrap();
    assert_eq!(held.host_segments().count(), 2);
    assert!(!held.is_local());
    drop(held);
    let unmapping = fixture.map.unmap_all();
    assert_eq!((unmapping.mappings(), unmapping.bytes()), (2, u64::MAX));
    assert_eq!(fixture.map.snapshot().bytes, 0);
}

#[test]
fn overlaps_are_refused_whatever_side_they_come_from() {
    let fixture = Fixture::new();
    fixture.map(10, 4, 0).unwrap();
    for (at, pages) in [(10, 4), (8, 3), (13, 1), (11, 1), (0, 64), (13, 9)] {
        let error = fixture.map(at, pages, 0).unwrap_err();
        assert_eq!(error, IovaMapError::Exists { iova: iova(10), bytes: 4 * PAGE });
        assert_eq!(error.errno(), Errno::EEXIST);
    }
    fixture.map(9, 1, 0).unwrap();
    fixture.map(14, 1, 0).unwrap();
    assert_eq!(fixture.mapped(), 3);
}

#[test]
fn an_unmap_covers_any_number_of_mappings_or_splits_none() {
    let fixture = Fixture::new();
    for at in [10, 11, 20, 30] {
        fixture.map(at, 1, at).unwrap();
    }
    fixture.map(40, 10, 0).unwrap();
    for (at, pages) in [(40, 9), (41, 9), (45, 1), (30, 15), (39, 2), (0, 45)] {
        let error = fixture.map.unmap(iova(at), pages * PAGE).map(|_| ()).unwrap_err();
        assert_eq!(error, IovaMapError::Splits { iova: iova(40), bytes: 10 * PAGE });
    }
    assert_eq!(fixture.mapped(), 5, "nothing went");
    assert_eq!(fixture.map.unmap(iova(12), 8 * PAGE).unwrap().mappings(), 0);
    assert_eq!(fixture.map.unmap(iova(5), 16 * PAGE).unwrap().mappings(), 3);
    assert_eq!(fixture.map.unmap(iova(0), 1 << 40).unwrap().mappings(), 2);
    assert_eq!(fixture.map.unmap_all().mappings(), 0);
    assert_eq!(fixture.mapped(), 0);
}

#[test]
fn memory_must_be_registered_all_of_it() {
    let fixture = Fixture::new();
    let error = fixture.map(0, 2, PAGES - 1).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
    assert!(matches!(error, IovaMapError::Memory(MapError::Unregistered { .. })));
    assert_eq!(fixture.map.snapshot().mappings, 0);
    fixture.map(0, 1, PAGES - 1).unwrap();
}

#[test]
fn memory_that_is_going_is_not_mapped() {
    let Fixture { map, registration, space, host, .. } = Fixture::new();
    map.map(iova(0), PAGE, local(0), Access::Read).unwrap();
    drop(registration);
    let error = map.map(iova(1), PAGE, local(1), Access::Read).unwrap_err();
    assert_eq!(error.errno(), Errno::ENXIO);
    assert_eq!(map.unmap_all().mappings(), 1);
    space.reap();
    host.assert_clean();
}

#[test]
fn segments_of_several_regions_make_one_mapping_or_none() {
    let fixture = Fixture::new();
    let far = BASE + 4 * PAGES * PAGE;
    let other = fixture.space.register(&fixture.host.memory(far, 8 * PAGE)).unwrap();
    let piece =
        |ua: u64, pages: u64| LocalSegment { ua: UserAddr::new(ua), bytes: pages * PAGE, owner: None };
    let good = [piece(BASE, 2), piece(far + PAGE, 3), piece(BASE + 9 * PAGE, 1)];
    fixture.map.map(iova(50), 6 * PAGE, Backing::Segments(good.to_vec()), Access::ReadWrite).unwrap();
    assert_eq!((fixture.mapped(), other.state().unwrap().mapped), (2, 1));
    let held = fixture.map.hold(Iova::new(51 * PAGE + 8), 4 * PAGE, Access::Read).unwrap();
    let mut at = Vec::new();
    for stretch in held.user_segments() {
        if let prereg_iommu::iova::UserSegment::Local { ua, bytes, .. } = stretch {
            at.push((ua.raw(), bytes));
        }
    }
    let expected = [(BASE + PAGE + 8, PAGE - 8), (far + PAGE, 3 * PAGE), (BASE + 9 * PAGE, 8)];
    assert_eq!(at, expected);
    drop(held);
    // The last segment is not registered: the first two are released.
    let bad = vec![piece(BASE, 1), piece(far, 1), piece(far + 8 * PAGE, 1)];
    let error = fixture.map.map(iova(60), 3 * PAGE, Backing::Segments(bad), Access::Read).unwrap_err();
    assert_eq!(error.errno(), Errno::EFAULT);
    let short = vec![piece(BASE, 1)];
    let error = fixture.map.map(iova(60), 3 * PAGE, Backing::Segments(short), Access::Read).unwrap_err();
    assert_eq!(error, IovaMapError::LengthMismatch { given: PAGE, bytes: 3 * PAGE });
    assert_eq!((fixture.mapped(), other.state().unwrap().mapped), (2, 1));
    assert_eq!(fixture.map.unmap(iova(50), 6 * PAGE).unwrap().mappings(), 1);
    assert_eq!((fixture.mapped(), other.state().unwrap().mapped), (0, 0));
    assert_eq!(ua(0).raw(), BASE);
}
