//! Accesses: what they see, what they keep, and who is told when the last one leaves.

use prereg::{Access, Errno, Iova};
use prereg_iommu::iova::{Backing, IovaAccessError, Piece};

use crate::world::{BASE, PAGE, World, iova, local};

#[test]
fn pieces_are_what_lies_behind_the_range() {
    let world = World::new();
    world.map(10, 4, 5).unwrap();
    world.map(14, 1, 0).unwrap();
    let held = world.map.hold(Iova::new(12 * PAGE + 0x10), 2 * PAGE + 0x20, Access::ReadWrite).unwrap();
    assert_eq!(held.bytes(), 2 * PAGE + 0x20);
    let mut expected = vec![(BASE + 7 * PAGE + 0x10, PAGE - 0x10), (BASE + 8 * PAGE, PAGE), (BASE, 0x30)];
    for piece in held.pieces() {
        let Piece::Local { ua, host, bytes } = piece else { panic!("{piece:?}") };
        assert_eq!((ua.raw(), bytes), expected.remove(0));
        assert_eq!(Some(host), world.host.backs(ua.raw()));
    }
    assert!(expected.is_empty());
    assert!(held.is_local());
}

#[test]
fn a_hole_or_a_missing_right_refuses_all_of_it() {
    let world = World::new();
    world.map(0, 2, 0).unwrap();
    world.map.map(iova(2), PAGE, local(2), Access::Read).unwrap();
    world.map.map(iova(3), PAGE, local(3), Access::Write).unwrap();
    world.map(5, 1, 5).unwrap();
    let hold = |at, bytes, access| world.map.hold(Iova::new(at), bytes, access).map(|held| held.bytes());
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
    assert_eq!(world.map.snapshot().accesses, 0, "nothing is held");
}

#[test]
fn an_unmap_is_over_when_the_last_access_leaves_and_is_told_once() {
    let world = World::new();
    world.map(0, 4, 0).unwrap();
    let first = world.map.hold(iova(0), PAGE, Access::Read).unwrap();
    let second = world.map.hold(iova(1), PAGE, Access::Write).unwrap();
    assert_eq!(world.map.snapshot().accesses, 2);
    let unmapping = world.map.unmap(iova(0), 4 * PAGE).unwrap();
    assert!(!unmapping.is_done());
    let waiting = unmapping.waiting();
    assert_eq!((waiting.len(), waiting[0].iova, waiting[0].accesses), (1, iova(0), 2));
    assert_eq!(world.map.snapshot().closing, waiting);
    let refused = world.map.hold(iova(2), 1, Access::Read).unwrap_err();
    assert_eq!((refused, refused.errno()), (IovaAccessError::Closing { iova: iova(2) }, Errno::ENXIO));
    drop(first);
    assert!(!unmapping.is_done());
    assert_eq!((world.bell.rung(), world.mapped()), (0, 1));
    assert_eq!(second.pieces().count(), 1, "the memory is still there");
    drop(second);
    assert!(unmapping.is_done());
    assert_eq!((world.bell.rung(), world.mapped()), (1, 0));
    assert!(unmapping.waiting().is_empty() && world.map.snapshot().closing.is_empty());
    assert_eq!(world.map.hold(iova(2), 1, Access::Read).unwrap_err().errno(), Errno::EFAULT);
}

#[test]
fn a_new_mapping_takes_the_place_of_one_that_drains() {
    let world = World::new();
    world.map(0, 1, 0).unwrap();
    let old = world.map.hold(iova(0), PAGE, Access::Read).unwrap();
    let unmapping = world.map.unmap(iova(0), PAGE).unwrap();
    world.map(0, 1, 9).unwrap();
    let new = world.map.hold(iova(0), PAGE, Access::Read).unwrap();
    assert_ne!(old.pieces().next(), new.pieces().next());
    assert_eq!(world.map.snapshot().accesses, 1);
    drop(new);
    assert!(!unmapping.is_done());
    drop(old);
    assert!(unmapping.is_done());
    assert_eq!(world.mapped(), 1);
}

#[test]
fn one_access_keeps_every_mapping_it_touches() {
    let world = World::new();
    for at in 0..4 {
        world.map(at, 1, 10 + at).unwrap();
    }
    let held = world.map.hold(iova(1), 2 * PAGE, Access::ReadWrite).unwrap();
    let unmapping = world.map.unmap_all();
    assert_eq!((unmapping.mappings(), unmapping.waiting().len()), (4, 2));
    assert_eq!(world.mapped(), 2);
    drop(held);
    assert!(unmapping.is_done());
    assert_eq!(world.bell.rung(), 2, "once a mapping that waited");
    assert_eq!(world.mapped(), 0);
}

#[test]
fn an_access_outlives_the_map_and_the_address_space() {
    let World { map, registration, space, host, bell } = World::new();
    map.map(iova(0), PAGE, local(0), Access::ReadWrite).unwrap();
    let held = map.hold(iova(0), PAGE, Access::ReadWrite).unwrap();
    drop(map);
    drop(registration);
    drop(space);
    assert_eq!(host.pinned_pages(), 64);
    assert_eq!(held.pieces().count(), 1);
    std::thread::spawn(move || drop(held)).join().unwrap();
    assert_eq!(bell.rung(), 1);
    host.assert_clean();
}

#[test]
fn what_is_remote_says_where() {
    let world = World::new();
    world.map(0, 1, 0).unwrap();
    world.map.map(iova(1), PAGE, Backing::Remote, Access::Read).unwrap();
    let held = world.map.hold(Iova::new(PAGE - 4), 8, Access::Read).unwrap();
    let pieces: Vec<_> = held.pieces().collect();
    assert!(matches!(pieces[0], Piece::Local { bytes: 4, .. }));
    assert_eq!(pieces[1], Piece::Remote { iova: iova(1), bytes: 4 });
    assert!(!held.is_local());
    let unmapping = world.map.unmap(iova(1), PAGE).unwrap();
    assert!(!unmapping.is_done(), "remote memory is waited for too");
    drop(held);
    assert!(unmapping.is_done());
}
