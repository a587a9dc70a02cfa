//! Accesses: contents, lifetime, and the notification after the last one.

use prereg::{Access, Errno, Iova};
use prereg_iommu::iova::{Backing, HostSegment, IovaAccessError};

use crate::fixture::{BASE, Fixture, PAGE, iova, local};

#[test]
fn host_segments_are_the_memory_of_the_range() {
    let fixture = Fixture::new();
    fixture.map(10, 4, 5).unwrap();
    fixture.map(14, 1, 0).unwrap();
    let held = fixture.map.hold(Iova::new(12 * PAGE + 0x10), 2 * PAGE + 0x20, Access::ReadWrite).unwrap();
    assert_eq!(held.bytes(), 2 * PAGE + 0x20);
    let mut expected = vec![(BASE + 7 * PAGE + 0x10, PAGE - 0x10), (BASE + 8 * PAGE, PAGE), (BASE, 0x30)];
    for piece in held.host_segments() {
        let HostSegment::Local { ua, host, bytes } = piece else { panic!("{piece:?}") };
        assert_eq!((ua.raw(), bytes), expected.remove(0));
        assert_eq!(Some(host), fixture.host.backs(ua.raw()));
    }
    assert!(expected.is_empty());
    assert!(held.is_local());
}

#[test]
fn a_hole_or_a_missing_right_refuses_all_of_it() {
    let fixture = Fixture::new();
    fixture.map(0, 2, 0).unwrap();
    fixture.map.map(iova(2), PAGE, local(2), Access::Read).unwrap();
    fixture.map.map(iova(3), PAGE, local(3), Access::Write).unwrap();
    fixture.map(5, 1, 5).unwrap();
    let hold = |at, bytes, access| fixture.map.hold(Iova::new(at), bytes, access).map(|held| held.bytes());
    assert_eq!(hold(PAGE, 2 * PAGE, Access::Read), Ok(2 * PAGE));
    let refused = hold(PAGE, 2 * PAGE, Access::Write).unwrap_err();
    assert_eq!(refused, IovaAccessError::Protected { iova: iova(2), access: Access::Write });
    assert_eq!(refused.errno(), Errno::EACCES);
    assert_eq!(hold(3 * PAGE, 1, Access::ReadWrite).unwrap_err().errno(), Errno::EACCES);
    assert_eq!(hold(3 * PAGE, 8, Access::Write), Ok(8));
    let refused = hold(3 * PAGE, 2 * PAGE, Access::Write).unwrap_err();
    assert_eq!((refused, refused.errno()), (IovaAccessError::Unmapped { iova: iova(4) }, Errno::EFAULT));
    assert_eq!(hold(4 * PAGE, 1, Access::Read), Err(IovaAccessError::Unmapped { iova: iova(4) }));
    assert_eq!(hold(0, 0, Access::Read).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(hold(u64::MAX, 2, Access::Read).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(fixture.map.snapshot().accesses, 0, "nothing is held");
}

#[test]
fn an_unmap_ends_with_the_last_access_and_is_reported_once() {
    let fixture = Fixture::new();
    fixture.map(0, 4, 0).unwrap();
    let first = fixture.map.hold(iova(0), PAGE, Access::Read).unwrap();
    let second = fixture.map.hold(iova(1), PAGE, Access::Write).unwrap();
    assert_eq!(fixture.map.snapshot().accesses, 2);
    let unmapping = fixture.map.unmap(iova(0), 4 * PAGE).unwrap();
    assert!(!unmapping.is_done());
    let waiting = unmapping.waiting();
    assert_eq!((waiting.len(), waiting[0].iova, waiting[0].accesses), (1, iova(0), 2));
    assert_eq!(fixture.map.snapshot().closing, waiting);
    let refused = fixture.map.hold(iova(2), 1, Access::Read).unwrap_err();
    assert_eq!((refused, refused.errno()), (IovaAccessError::Closing { iova: iova(2) }, Errno::ENXIO));
    drop(first);
    assert!(!unmapping.is_done());
    assert_eq!((fixture.drains.count(), fixture.mapped()), (0, 1));
    assert_eq!(second.host_segments().count(), 1, "the memory is still there");
    drop(second);
    assert!(unmapping.is_done());
    assert_eq!((fixture.drains.count(), fixture.mapped()), (1, 0));
    assert!(unmapping.waiting().is_empty() && fixture.map.snapshot().closing.is_empty());
    assert_eq!(fixture.map.hold(iova(2), 1, Access::Read).unwrap_err().errno(), Errno::EFAULT);
}

#[test]
fn a_new_mapping_takes_the_place_of_one_that_drains() {
    let fixture = Fixture::new();
    fixture.map(0, 1, 0).unwrap();
    let old = fixture.map.hold(iova(0), PAGE, Access::Read).unwrap();
    let unmapping = fixture.map.unmap(iova(0), PAGE).unwrap();
    fixture.map(0, 1, 9).unwrap();
    let new = fixture.map.hold(iova(0), PAGE, Access::Read).unwrap();
    assert_ne!(old.host_segments().next(), new.host_segments().next());
    assert_eq!(fixture.map.snapshot().accesses, 1);
    drop(new);
    assert!(!unmapping.is_done());
    drop(old);
    assert!(unmapping.is_done());
    assert_eq!(fixture.mapped(), 1);
}

#[test]
fn one_access_keeps_every_mapping_it_touches() {
    let fixture = Fixture::new();
    for at in 0..4 {
        fixture.map(at, 1, 10 + at).unwrap();
    }
    let held = fixture.map.hold(iova(1), 2 * PAGE, Access::ReadWrite).unwrap();
    let unmapping = fixture.map.unmap_all();
    assert_eq!((unmapping.mappings(), unmapping.waiting().len()), (4, 2));
    assert_eq!(fixture.mapped(), 2);
    drop(held);
    assert!(unmapping.is_done());
    assert_eq!(fixture.drains.count(), 2, "once a mapping that waited");
    assert_eq!(fixture.mapped(), 0);
}

#[test]
fn an_access_outlives_the_map_and_the_address_space() {
    let Fixture { map, registration, space, host, drains } = Fixture::new();
    map.map(iova(0), PAGE, local(0), Access::ReadWrite).unwrap();
    let held = map.hold(iova(0), PAGE, Access::ReadWrite).unwrap();
    drop(map);
    drop(registration);
    drop(space);
    assert_eq!(host.pinned_pages(), 64);
    assert_eq!(held.host_segments().count(), 1);
    std::thread::spawn(move || drop(held)).join().unwrap();
    assert_eq!(drains.count(), 1);
    host.assert_clean();
}

#[test]
fn what_is_remote_says_where() {
    let fixture = Fixture::new();
    fixture.map(0, 1, 0).unwrap();
    fixture.map.map(iova(1), PAGE, Backing::Remote, Access::Read).unwrap();
    let held = fixture.map.hold(Iova::new(PAGE - 4), 8, Access::Read).unwrap();
    let segments: Vec<_> = held.host_segments().collect();
    assert!(matches!(segments[0], HostSegment::Local { bytes: 4, .. }));
    assert_eq!(segments[1], HostSegment::Remote { iova: iova(1), bytes: 4 });
    assert!(!held.is_local());
    let unmapping = fixture.map.unmap(iova(1), PAGE).unwrap();
    assert!(!unmapping.is_done(), "remote memory is waited for too");
    drop(held);
    assert!(unmapping.is_done());
}

#[test]
fn held_memory_is_revoked_from_the_call_on_and_stays_held() {
    let fixture = Fixture::new();
    fixture.map(0, 2, 0).unwrap();
    let before = fixture.map.hold(iova(0), PAGE, Access::Read).unwrap();
    assert!(!before.is_revoked());
    fixture.map.revoke();
    let after = fixture.map.hold(iova(1), PAGE, Access::Read).unwrap();
    assert!(before.is_revoked() && after.is_revoked());
    assert_eq!((before.host_segments().count(), fixture.mapped()), (1, 1), "still pinned");
}
