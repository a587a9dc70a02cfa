//! The 1st, 2nd, ... port call of every request fails: the state is as before the request.

use std::sync::Arc;

use prereg::{Access, BusAddr, Errno, GuestAddr, PageShift, UserAddr};
use prereg_iommu::container::Version;
use prereg_iommu::{
    Geometry, GuestRead, HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Rules, Tce,
};

use crate::allocator::with_memory_for;
use crate::fixture::{A, B, K4, Process, User, number};

/// The visible state of a container and its process.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Picture {
    /// Start, `used` and `mapped` of every region.
    regions: Vec<(u64, u64, u64)>,
    locked: u64,
    pinned: u64,
    windows: usize,
    live: u64,
}

fn picture(process: &Process, user: &User<'_>) -> Picture {
    let regions = process.owner.space().snapshot().regions;
    Picture {
        regions: regions
            .iter()
            .map(|region| (region.ua.raw(), region.used, region.kernel_mapped()))
            .collect(),
        locked: process.locked(),
        pinned: process.host.pinned_pages(),
        windows: user.container.windows().count(),
        live: user.live(),
    }
}

#[test]
fn a_request_that_fails_in_the_middle_changes_nothing() {
    type Request = fn(&mut User<'_>) -> Result<(), Errno>;
    let requests: [(&str, Request); 9] = [
        ("register", |user| user.register(B, 16)),
        ("register shared", |user| user.register(A, 8)),
        ("unregister", |user| user.unregister(A, 16)),
        ("map", |user| user.map(A, 0, 4 * K4)),
        ("map over a hole", |user| user.map(A + 14 * K4, 0, 4 * K4)),
        ("unmap", |user| user.unmap(0, K4)),
        ("create", |user| user.create(16, 1 << 30, 1).map(drop)),
        ("create third", |user| user.create(16, 1 << 30, 9).map(drop)),
        ("remove", |user| user.remove(0)),
    ];
    for (name, request) in requests {
        let mut failures = 0;
        for nth in 1.. {
            let process = Process::new();
            let mut user = User::new(&process, 0);
            user.register(A, 16).unwrap();
            let before = picture(&process, &user);
            process.host.fail_nth(nth);
            let answer = request(&mut user);
            if !process.host.has_failed() {
                drop(user);
                process.host.assert_clean();
                break;
            }
            failures += 1;
            assert!(answer.is_err(), "{name}, call {nth}");
            // A map that created the default window before it failed keeps it.
            let mut after = picture(&process, &user);
            if after.windows > before.windows {
                (after.locked, after.windows) = (before.locked, before.windows);
            }
            assert_eq!(after, before, "{name}, call {nth}");
            process.host.fail_nth(0);
            let again = request(&mut user);
            assert_ne!(again, Err(Errno::ENOMEM), "{name}: the same call once more");
            drop(user);
            process.host.assert_clean();
        }
        println!("{name}: {failures} outside calls failed");
    }
}

#[test]
fn scenario_104_a_table_without_memory_gives_every_unit_back() {
    let mut failures = 0;
    for allocations in 0.. {
        let process = Process::new();
        let mut user = User::new(&process, 0);
        user.register(A, 16).unwrap();
        // Two entries at the end of an existing block; the third of five is in one that does not exist.
        user.map(A, 255 * K4, K4).unwrap();
        user.unmap(255 * K4, K4).unwrap();
        let (owner, access) = (&process.owner, Some(Access::ReadWrite));
        let (ua, ioba) = (UserAddr::new(A), BusAddr::new(254 * K4));
        let answer = with_memory_for(allocations, || user.container.map_dma(owner, access, ua, ioba, 5 * K4));
        let answer = number(answer);
        if answer.is_ok() {
            break;
        }
        failures += 1;
        assert_eq!(answer, Err(Errno::ENOMEM));
        assert_eq!((process.counts(A), user.live()), ((1, 1), 0));
        user.map(A, 254 * K4, 5 * K4).unwrap();
        drop(user);
        process.host.assert_clean();
    }
    assert!(failures > 0, "the third entry needs memory");
}

#[test]
fn a_request_of_the_first_version_that_fails_changes_nothing() {
    type Request = fn(&mut User<'_>) -> Result<(), Errno>;
    let enable: Request = |user| number(user.container.enable(&user.process.owner));
    let requests: [(&str, bool, Request); 3] = [
        ("enable", false, enable),
        ("map", true, |user| user.map(A, 0, 4 * K4)),
        ("map over a mapping", true, |user| user.map(A + K4, 8 * K4, 2 * K4)),
    ];
    for (name, enabled, request) in requests {
        let mut failures = 0;
        for nth in 1.. {
            let process = Process::new();
            let mut user = User::of(&process, 0, Version::V1);
            if enabled {
                enable(&mut user).unwrap();
                // Creates the default window too, so that its charge is none of the request's.
                user.map(A, 16 * K4, K4).unwrap();
            }
            let before = picture(&process, &user);
            process.host.fail_nth(nth);
            let answer = request(&mut user);
            if !process.host.has_failed() {
                answer.unwrap();
                drop(user);
                process.host.assert_clean();
                break;
            }
            failures += 1;
            assert!(answer.is_err(), "{name}, call {nth}");
            assert_eq!(picture(&process, &user), before, "{name}, call {nth}");
            process.host.fail_nth(0);
            request(&mut user).unwrap();
            drop(user);
            process.host.assert_clean();
        }
        assert!(failures > 0, "{name} calls out");
        println!("{name}: {failures} outside calls failed");
    }
}

/// A list of one page each from the start of guest memory.
struct Pages;

impl GuestRead for Pages {
    fn read_list(&self, _at: GuestAddr, values: &mut [u64]) -> Result<(), NotRam> {
        for (value, page) in values.iter_mut().zip(0..) {
            *value = (page * K4) | 3;
        }
        Ok(())
    }
}

#[test]
fn a_hypercall_without_memory_loses_no_unit() {
    let (liobn, list, pages) = (1, GuestAddr::new(0), 4);
    // Across the end of a block, so that two blocks are missing.
    let ioba = BusAddr::new(510 * K4);
    let calls = [
        Hypercall::Put { liobn, ioba, tce: Tce::new(3) },
        Hypercall::PutIndirect { liobn, ioba, list, pages },
        Hypercall::Stuff { liobn, ioba, tce: Tce::new(0x7000), pages },
    ];
    for rules in [Rules::Kvm, Rules::Qemu] {
        for call in calls {
            let mut refused = 0;
            for allocations in 0.. {
                let process = Process::new();
                let space = process.owner.space().clone();
                let mut user = User::new(&process, 0);
                user.register(A, 16).unwrap();
                let mut slots = MemorySlots::new();
                slots.insert(GuestAddr::new(0), UserAddr::new(A), 16 * K4).unwrap();
                let mut guest = Hypercalls::new(rules, slots);
                let window = Geometry::for_guest(BusAddr::new(0), PageShift::K4, 1 << 20).unwrap();
                let table = guest.create(Liobn::new(1), window).unwrap();
                let hardware = Arc::new(HwTable::new(space.clone(), window, 9).unwrap());
                table.attach(hardware.clone()).unwrap();
                let mut translator = space.translator_for(hardware.holder());
                let code = with_memory_for(allocations, || guest.call(&mut translator, &Pages, call).code);
                assert_eq!(process.counts(A).1, 1 + hardware.live(), "{call:?}: a unit for every live entry");
                let done = code == HReturn::SUCCESS;
                if !done {
                    refused += 1;
                    // With memory the call succeeds.
                    assert_eq!(guest.call(&mut translator, &Pages, call).code, HReturn::SUCCESS);
                    assert_eq!(process.counts(A).1, 1 + hardware.live());
                }
                drop((guest, hardware, translator, user, space));
                process.host.assert_clean();
                if done {
                    break;
                }
            }
            assert!(refused > 0, "{rules:?} {call:?} needs memory");
        }
    }
}
