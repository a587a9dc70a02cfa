//! Scenarios 72 to 89 of docs/specification.md (90 is in `race`): what is mapped, replaced and cleared. A is 16 pages, B the

use std::time::Instant;

use prereg::{Access, Errno, Granule, PageShift};
use prereg_iommu::container::Version;
use prereg_sim::{MapSpec, SimHost};

use crate::fixture::{A, B, DEFAULT, K4, Process, User, fresh, number};

#[test]
fn scenario_72_every_entry_counts_once_and_the_default_window_is_paid_once() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        assert_eq!(process.locked(), 16);
        user.map(A, 0, 4 * K4).unwrap();
        assert_eq!((process.counts(A), process.locked()), ((1, 5), 16 + DEFAULT));
        user.map(A, 8 * K4, 4 * K4).unwrap();
        assert_eq!((process.counts(A), process.locked()), ((1, 9), 16 + DEFAULT));
    });
}

#[test]
fn scenario_73_mapping_the_same_page_again_changes_nothing() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.map(A, 0, K4).unwrap();
        user.map(A, 0, K4).unwrap();
        assert_eq!((process.counts(A), user.live()), ((1, 2), 1));
    });
}

#[test]
fn scenario_74_mapping_another_page_replaces_what_was_there() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.register(B, 16).unwrap();
        user.map(A, 0, K4).unwrap();
        user.map(B, 0, K4).unwrap();
        assert_eq!((process.counts(A), process.counts(B)), ((1, 1), (1, 2)));
    });
}

#[test]
fn scenario_75_one_map_may_span_neighbouring_regions() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.register(B, 16).unwrap();
        user.map(A + 14 * K4, 0, 4 * K4).unwrap();
        assert_eq!((process.counts(A), process.counts(B)), ((1, 3), (1, 3)));
    });
}

#[test]
fn scenario_76_a_map_that_fails_half_way_clears_what_it_wrote() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 2).unwrap();
        user.register(B, 16).unwrap();
        user.map(B, 0, 4 * K4).unwrap();
        assert_eq!(user.map(A, 0, 4 * K4), Err(Errno::EINVAL));
        assert_eq!((process.counts(A), process.counts(B)), ((1, 1), (1, 3)));
        let table = user.container.windows().next().unwrap().1;
        let live: Vec<bool> = (0..4).map(|index| table.access(index).is_some()).collect();
        assert_eq!(live, [false, false, true, true]);
    });
}

#[test]
fn scenario_77_a_map_needs_a_permission() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        assert_eq!(user.map_as(None, A, 0, K4), Err(Errno::EINVAL));
        assert_eq!((process.counts(A), user.live()), ((1, 1), 0));
    });
}

#[test]
fn scenario_78_bad_maps_change_nothing() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        assert_eq!(user.map(A, 2 << 30, K4), Err(Errno::ENXIO));
        assert_eq!(user.map(A, 1, K4), Err(Errno::EINVAL));
        assert_eq!(user.map(A + 1, 0, K4), Err(Errno::EINVAL));
        assert_eq!(user.map(A, 0, K4 + 1), Err(Errno::EINVAL));
        assert_eq!((process.counts(A), user.live()), ((1, 1), 0));
    });
}

#[test]
fn scenario_79_a_map_past_the_end_of_the_window_changes_nothing() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        let last = (2 << 30) - K4;
        user.map(A, last, K4).unwrap();
        assert_eq!(user.map(A + K4, last, 2 * K4), Err(Errno::EINVAL));
        assert_eq!(user.map(A, K4, 0u64.wrapping_sub(K4)), Err(Errno::EINVAL));
        assert_eq!((process.counts(A), user.live()), ((1, 2), 1));
        let kept = user.container.windows().next().unwrap().1.view(last / K4).map(|view| view.ua.raw());
        assert_eq!(kept, Some(A));
    });
}

#[test]
fn scenario_80_nothing_is_mapped_in_no_time() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.map(A, 0, 0).unwrap();
        user.unmap(0, 0).unwrap();
        assert_eq!((process.counts(A), user.live()), ((1, 1), 0));
    });
}

#[test]
fn scenario_81_a_window_page_larger_than_the_regions_is_einval() {
    let host = SimHost::new(Granule::K4);
    let huge = A + (1 << 30);
    host.map(huge, 4 << 20, MapSpec::huge(PageShift::M2));
    let process = Process::with(host);
    let mut user = User::new(&process, 0);
    user.register(A, 16).unwrap();
    user.register(huge, 1024).unwrap();
    let start = user.create(16, 1 << 30, 1).unwrap();
    assert_eq!(user.map(A, start, 1 << 16), Err(Errno::EINVAL));
    user.map(huge, start, 1 << 16).unwrap();
    user.remove(start).unwrap();
    let start = user.create(21, 1 << 30, 1).unwrap();
    user.map(huge, start, 4 << 20).unwrap();
    assert_eq!(process.counts(huge), (1, 3));
    assert_eq!(user.map(huge + (1 << 16), start, 2 << 20), Err(Errno::EINVAL));
    drop(user);
    process.host.assert_clean();
}

#[test]
fn scenario_82_unmap_passes_over_holes() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.map(A, 0, K4).unwrap();
        user.map(A, 5 * K4, 2 * K4).unwrap();
        user.unmap(0, 6 * K4).unwrap();
        assert_eq!(process.counts(A), (1, 2));
    });
}

#[test]
fn scenario_83_unmapping_again_changes_nothing() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.map(A, 0, 4 * K4).unwrap();
        user.unmap(0, 2 * K4).unwrap();
        user.unmap(0, 2 * K4).unwrap();
        assert_eq!(process.counts(A), (1, 3));
    });
}

#[test]
fn scenario_84_an_unmap_past_the_end_of_the_window_changes_nothing() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        let last = (2 << 30) - K4;
        user.map(A, last, K4).unwrap();
        assert_eq!(user.unmap(last, 2 * K4), Err(Errno::EINVAL));
        assert_eq!(user.unmap(0, 4 << 30), Err(Errno::EINVAL));
        assert_eq!(user.unmap(K4, 0u64.wrapping_sub(K4)), Err(Errno::EINVAL));
        assert_eq!(user.unmap(1, K4), Err(Errno::EINVAL));
        assert_eq!(user.unmap(2 << 30, K4), Err(Errno::ENXIO));
        assert_eq!((process.counts(A), user.live()), ((1, 2), 1));
    });
}

#[test]
fn scenario_85_a_container_maps_what_another_registered() {
    fresh(|process| {
        let (mut one, mut two) = (User::new(process, 0), User::new(process, 1));
        one.register(A, 16).unwrap();
        two.register(B, 16).unwrap();
        two.map(A, 0, K4).unwrap();
        assert_eq!(process.counts(A), (1, 2));
        assert_eq!(one.unregister(A, 16), Err(Errno::EBUSY));
    });
}

#[test]
fn scenario_86_memory_that_another_container_maps_outlives_its_own() {
    fresh(|process| {
        let (mut one, mut two) = (User::new(process, 0), User::new(process, 1));
        one.register(A, 16).unwrap();
        two.register(B, 16).unwrap();
        two.map(A, 0, K4).unwrap();
        drop(one);
        assert_eq!((process.counts(A), process.locked()), ((0, 2), 32 + DEFAULT));
        assert_eq!(two.map(A, K4, K4), Err(Errno::ENXIO), "it is going");
        two.unmap(0, K4).unwrap();
        assert_eq!((process.region(A), process.locked()), (None, 16 + DEFAULT));
    });
}

#[test]
fn scenario_87_each_container_gives_back_its_own_units() {
    fresh(|process| {
        let (mut one, mut two) = (User::new(process, 0), User::new(process, 1));
        one.register(A, 16).unwrap();
        two.register(A, 16).unwrap();
        one.map(A, 0, K4).unwrap();
        two.map(A, 0, K4).unwrap();
        assert_eq!(process.counts(A), (2, 3));
        drop(one);
        assert_eq!(process.counts(A), (1, 2));
        drop(two);
        assert_eq!((process.region(A), process.locked()), (None, 0));
    });
}

#[test]
fn scenario_88_closing_releases_everything() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.register(B, 16).unwrap();
        for round in 0..50 {
            user.map(A + 6 * K4, round * 20 * K4, 20 * K4).unwrap();
        }
        assert_eq!(user.live(), 1000);
        drop(user);
        assert_eq!((process.locked(), process.host.pinned_pages()), (0, 0));
    });
}

#[test]
fn scenario_89_a_sparse_window_costs_what_is_in_it() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.remove(0).unwrap();
        let start = user.create(12, 1 << 40, 4).unwrap();
        for at in [0, 1 << 39, (1 << 40) - K4] {
            user.map(A, start + at, K4).unwrap();
        }
        assert_eq!(process.counts(A), (1, 4));
        let table = user.container.windows().next().unwrap().1.clone();
        assert!(table.memory_bytes() < 64 << 10, "{} bytes", table.memory_bytes());
        let before = Instant::now();
        user.unmap(start, 1 << 40).unwrap();
        println!("unmapping 2^40 bytes with 3 entries: {:?}", before.elapsed());
        assert_eq!(process.counts(A), (1, 1));
        user.map(A, start + (1 << 39), K4).unwrap();
        drop(user);
        assert_eq!(table.live(), 0, "a table somebody else holds is emptied all the same");
    });
}

#[test]
fn the_first_version_pins_at_every_map() {
    fresh(|process| {
        let mut user = User::of(process, 0, Version::V1);
        assert_eq!(user.map(A, 0, K4), Err(Errno::EPERM));
        number(user.container.enable(&process.owner)).unwrap();
        assert_eq!(number(user.container.enable(&process.owner)), Err(Errno::EBUSY));
        assert_eq!(process.locked(), 1 << 19);
        user.map(A, 0, 4 * K4).unwrap();
        user.map_as(Some(Access::Read), A, 8 * K4, K4).unwrap();
        assert_eq!((process.host.pinned_pages(), process.locked()), (4, (1 << 19) + DEFAULT));
        user.unmap(0, 2 * K4).unwrap();
        assert_eq!(process.host.pinned_pages(), 3, "the first page is mapped once more");
        assert_eq!(user.map(A + 62 * K4, 0, 4 * K4), Err(Errno::EFAULT));
        assert_eq!(process.host.pinned_pages(), 3, "the failing call cleared what it had written");
        user.container.disable(&process.owner).unwrap();
        assert_eq!((user.map(A, 0, K4), process.locked()), (Err(Errno::EPERM), DEFAULT));
    });
}
