//! Scenarios 91 to 103 and 133 of docs/specification.md: windows, their charges, and their groups.

use std::sync::Arc;

use prereg::{BusAddr, Errno, PageShift};
use prereg_iommu::container::{Container, Group, Platform, SoftwareGroup, Version};
use prereg_iommu::{Geometry, Liobn, TceTable};

use crate::fixture::{A, Hardware, K4, Process, User, W1, fresh, group, number};

#[test]
fn scenario_91_shapes_that_no_window_has_are_refused_and_cost_nothing() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.remove(0).unwrap();
        for (shift, bytes, levels) in [
            (13, 1 << 30, 1),
            (64, 1 << 30, 1),
            (u32::MAX, 1 << 30, 1),
            (16, 1 << 30, 0),
            (16, 1 << 30, 6),
            (16, 3 << 30, 1),
            (16, 0, 1),
            (16, 1 << 15, 1),
            (16, 1 << 63, 1),
            (16, u64::MAX, 5),
        ] {
            assert_eq!(user.create(shift, bytes, levels), Err(Errno::EINVAL), "{shift} {bytes:#x} {levels}");
        }
        assert_eq!(user.create(16, 1 << 48, 1), Err(Errno::ENOMEM));
        assert_eq!((process.locked(), user.container.windows().count()), (0, 0));
    });
}

#[test]
fn scenario_92_the_default_window_takes_the_first_of_two_slots() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        assert_eq!(user.create(16, 1 << 30, 1), Ok(W1));
        assert_eq!(user.container.windows().count(), 2, "the default one came first");
        assert_eq!(user.create(16, 1 << 30, 1), Err(Errno::ENOSPC));
    });
}

#[test]
fn scenario_93_a_default_window_that_is_removed_is_never_made() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.remove(0).unwrap();
        assert_eq!((user.remove(0), process.locked()), (Err(Errno::EINVAL), 0));
        assert_eq!(user.create(16, 1 << 30, 1), Ok(0));
        assert_eq!(user.create(16, 1 << 30, 1), Ok(W1));
        assert_eq!(user.create(16, 1 << 30, 1), Err(Errno::ENOSPC));
    });
}

#[test]
fn scenario_94_a_table_over_the_limit_is_enomem_and_leaves_its_slot_free() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.remove(0).unwrap();
        process.host.limit_pages(63);
        assert_eq!(user.create(16, 1 << 30, 1), Err(Errno::ENOMEM));
        assert_eq!((process.locked(), user.container.windows().count()), (0, 0));
        process.host.limit_pages(64);
        assert_eq!(user.create(16, 1 << 30, 1), Ok(0));
    });
}

#[test]
fn scenario_95_a_table_is_charged_twice_its_size_until_it_is_removed() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.remove(0).unwrap();
        user.create(16, 1 << 30, 1).unwrap();
        assert_eq!(process.locked(), 64, "twice 2^14 entries of 8 bytes");
        user.remove(0).unwrap();
        assert_eq!(process.locked(), 0);
    });
}

#[test]
fn scenario_96_a_window_goes_with_its_mappings() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.map(A, 0, 4 * K4).unwrap();
        user.remove(0).unwrap();
        assert_eq!((process.counts(A), process.locked()), ((1, 1), 16));
        assert_eq!(user.map(A, 0, K4), Err(Errno::ENXIO));
        user.unregister(A, 16).unwrap();
    });
}

#[test]
fn scenario_97_a_window_is_removed_by_its_start() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.map(A, 0, 4 * K4).unwrap();
        assert_eq!(user.remove(W1), Err(Errno::EINVAL));
        assert_eq!(user.remove(K4), Err(Errno::EINVAL));
        assert_eq!((process.counts(A), user.live()), ((1, 5), 4));
    });
}

#[test]
fn scenario_98_nothing_is_asked_of_a_container_without_an_iommu() {
    fresh(|process| {
        let mut user = User { process, container: Container::new(1) };
        assert_eq!(number(user.container.set_iommu(Version::V2)), Err(Errno::EINVAL));
        assert_eq!(user.create(16, 1 << 30, 1), Err(Errno::EINVAL));
        user.container.attach(group(0)).unwrap();
        assert_eq!(user.register(A, 16), Err(Errno::EINVAL));
        user.container.set_iommu(Version::V2).unwrap();
        assert_eq!(number(user.container.set_iommu(Version::V2)), Err(Errno::EINVAL));
        user.register(A, 16).unwrap();
        assert!(user.container.detach(0));
        assert!(!user.container.detach(0));
        assert_eq!((process.locked(), user.register(A, 16)), (0, Err(Errno::EINVAL)));
    });
}

#[test]
fn scenario_100_groups_that_do_not_go_together_are_refused() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        assert_eq!(number(user.container.attach(group(0))), Err(Errno::EBUSY));
        let foreign: Arc<dyn Group> = Arc::new(SoftwareGroup::new(1, Platform::PSERIES));
        assert_eq!(number(user.container.attach(foreign)), Err(Errno::EPERM));
        user.container.attach(group(1)).unwrap();
        let mut v1 = User::of(process, 2, Version::V1);
        assert_eq!(number(v1.container.attach(group(3))), Err(Errno::EBUSY));
        let none = Platform { max_windows: 0, ..Platform::POWERNV };
        let plain: Arc<dyn Group> = Arc::new(SoftwareGroup::new(4, none));
        assert_eq!(number(user.container.attach(plain)), Err(Errno::EINVAL));
        assert_eq!(user.container.groups().len(), 2);
    });
}

/// A container with two groups and one page mapped.
fn two_groups<'p>(process: &'p Process, first: &Arc<Hardware>, second: &Arc<Hardware>) -> User<'p> {
    let mut user = User { process, container: Container::new(1) };
    user.container.attach(first.clone()).unwrap();
    user.container.attach(second.clone()).unwrap();
    user.container.set_iommu(Version::V2).unwrap();
    user.register(A, 16).unwrap();
    user.map(A, 0, K4).unwrap();
    user
}

#[test]
fn scenario_101_an_entry_is_one_unit_however_many_groups_there_are() {
    fresh(|process| {
        let (first, second) = (Hardware::new(0, None), Hardware::new(1, None));
        let user = two_groups(process, &first, &second);
        assert_eq!((process.counts(A), first.windows(), second.windows()), ((1, 2), 1, 1));
        drop(user);
        assert_eq!((first.windows(), second.windows()), (0, 0));
    });
}

#[test]
fn scenario_102_a_group_that_leaves_takes_no_mapping_with_it() {
    fresh(|process| {
        let (first, second) = (Hardware::new(0, None), Hardware::new(1, None));
        let mut user = two_groups(process, &first, &second);
        user.container.detach(0);
        assert_eq!((process.counts(A), first.windows(), second.windows()), ((1, 2), 0, 1));
        user.unmap(0, K4).unwrap();
        user.map(A, 0, K4).unwrap();
        user.container.detach(1);
        assert_eq!((process.region(A), process.locked(), second.windows()), (None, 0, 0));
    });
}

#[test]
fn scenario_103_a_group_that_cannot_be_programmed_does_not_join() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.create(16, 1 << 30, 1).unwrap();
        let broken = Hardware::new(1, Some(1));
        assert_eq!(number(user.container.attach(broken.clone())), Err(Errno::EIO));
        assert_eq!(
            (broken.windows(), user.container.groups().len(), user.container.windows().count()),
            (0, 1, 2)
        );
        let mut other = User { process, container: Container::new(2) };
        let first = Hardware::new(2, None);
        other.container.attach(first.clone()).unwrap();
        other.container.attach(Hardware::new(3, Some(0))).unwrap();
        other.container.set_iommu(Version::V2).unwrap();
        let locked = process.locked();
        assert_eq!(other.create(16, 1 << 30, 1), Err(Errno::EIO));
        assert_eq!((process.locked(), first.windows()), (locked, 0));
    });
}

#[test]
fn scenario_133_a_window_of_larger_pages_serves_no_guest_table() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.remove(0).unwrap();
        user.create(16, 1 << 30, 1).unwrap();
        let window = user.container.windows().next().unwrap().1.clone();
        for (shift, fits) in [(12, false), (16, true), (21, true)] {
            let shift = PageShift::new(shift).unwrap();
            let shape = Geometry::for_guest(BusAddr::new(0), shift, 16).unwrap();
            let mut guest = TceTable::new(Liobn::new(1), shape).unwrap();
            let joined = guest.attach(window.clone()).map_err(|error| error.errno());
            assert_eq!(joined.is_ok(), fits, "{shift}");
            assert!(fits || joined == Err(Errno::EINVAL));
        }
    });
}
