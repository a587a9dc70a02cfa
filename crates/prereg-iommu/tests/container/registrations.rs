//! Scenarios 59 to 71 of docs/specification.md: owners and registrations of containers. A is 16 pages.

use prereg::Errno;
use prereg_iommu::container::{Container, Version};

use crate::fixture::{A, B, DEFAULT, K4, Process, User, W1, fresh, number};

#[test]
fn scenario_61_requests_of_the_other_version_are_enotty() {
    fresh(|process| {
        let mut v1 = User::of(process, 0, Version::V1);
        assert_eq!(v1.register(A, 16), Err(Errno::ENOTTY));
        assert_eq!(v1.unregister(A, 16), Err(Errno::ENOTTY));
        assert_eq!(v1.create(12, 1 << 24, 1), Err(Errno::ENOTTY));
        assert_eq!(v1.remove(0), Err(Errno::ENOTTY));
        let mut v2 = User::new(process, 1);
        assert_eq!(number(v2.container.enable(&process.owner)), Err(Errno::ENOTTY));
        assert_eq!(number(v2.container.disable(&process.owner)), Err(Errno::ENOTTY));
    });
}

#[test]
fn scenario_63_another_process_gets_eperm_for_everything_but_extensions() {
    let other = Process::new();
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        let container = std::mem::replace(&mut user.container, Container::new(9));
        let mut theirs = User { process: &other, container };
        assert_eq!(theirs.register(A, 16), Err(Errno::EPERM));
        assert_eq!(theirs.unregister(A, 16), Err(Errno::EPERM));
        assert_eq!(theirs.map(A, 0, K4), Err(Errno::EPERM));
        assert_eq!(theirs.unmap(0, K4), Err(Errno::EPERM));
        assert_eq!(theirs.create(12, 1 << 24, 1), Err(Errno::EPERM));
        assert_eq!(theirs.remove(0), Err(Errno::EPERM));
        assert_eq!(number(theirs.container.info(&other.owner)).map(drop), Err(Errno::EPERM));
        assert_eq!(theirs.container.check_extension(7), 1);
        assert_eq!((process.counts(A), other.locked()), ((1, 1), 0));
    });
}

#[test]
fn scenario_64_registering_twice_in_one_container_is_ebusy() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        assert_eq!(user.register(A, 16), Err(Errno::EBUSY));
        assert_eq!((process.counts(A), process.locked()), ((1, 1), 16));
    });
}

#[test]
fn scenario_65_two_containers_share_a_region() {
    fresh(|process| {
        let (mut one, mut two) = (User::new(process, 0), User::new(process, 1));
        one.register(A, 16).unwrap();
        two.register(A, 16).unwrap();
        assert_eq!((process.counts(A), process.locked(), process.host.pin_calls()), ((2, 1), 16, 1));
    });
}

#[test]
fn scenario_66_a_container_gives_back_only_its_own() {
    fresh(|process| {
        let (mut one, mut two) = (User::new(process, 0), User::new(process, 1));
        one.register(A, 16).unwrap();
        two.register(B, 16).unwrap();
        assert_eq!(two.unregister(A, 16), Err(Errno::ENOENT));
        assert_eq!(process.counts(A), (1, 1));
    });
}

#[test]
fn scenario_67_unregister_is_eperm_before_anybody_used_the_container() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        assert_eq!(user.unregister(A, 16), Err(Errno::EPERM));
        assert_eq!(user.remove(W1), Err(Errno::EINVAL), "which binds all the same");
        assert_eq!(user.unregister(A, 16), Err(Errno::ENOENT));
    });
}

#[test]
fn scenario_68_unregister_names_the_range_as_it_was_registered() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        for (ua, pages) in [(A, 8), (A, 17), (A + K4, 15), (A, 0)] {
            assert_eq!(user.unregister(ua, pages), Err(Errno::ENOENT));
        }
        assert_eq!(user.unregister(A + 1, 16), Err(Errno::EINVAL));
        assert_eq!(process.counts(A), (1, 1));
    });
}

#[test]
fn scenario_69_unregister_of_mapped_memory_is_ebusy_until_the_unmap() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.map(A, 0, K4).unwrap();
        assert_eq!(user.unregister(A, 16), Err(Errno::EBUSY));
        assert_eq!(process.counts(A), (1, 2));
        user.map(A + K4, K4, K4).unwrap();
        user.unmap(0, 2 * K4).unwrap();
        user.unregister(A, 16).unwrap();
        assert_eq!((process.counts(A), process.locked()), ((0, 0), DEFAULT));
    });
}

#[test]
fn scenario_70_mapping_needs_an_enabled_container() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        assert_eq!(user.map(A, 0, K4), Err(Errno::EPERM));
        assert_eq!(user.unmap(0, K4), Err(Errno::EPERM));
    });
}

#[test]
fn scenario_71_a_container_stays_enabled_without_registrations() {
    fresh(|process| {
        let mut user = User::new(process, 0);
        user.register(A, 16).unwrap();
        user.unregister(A, 16).unwrap();
        assert_eq!(user.map(A, 0, K4), Err(Errno::EINVAL));
    });
}

#[test]
fn scenario_59_the_owner_gets_his_account_back_whoever_closes() {
    let process = Process::new();
    let mut user = User::new(&process, 0);
    user.register(A, 16).unwrap();
    user.map(A, 0, K4).unwrap();
    let container = user.container;
    std::thread::spawn(move || drop(container)).join().unwrap();
    process.host.assert_clean();
}
