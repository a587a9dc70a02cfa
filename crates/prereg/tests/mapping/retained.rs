//! Regions kept by a translator that is never refreshed: bounded, reported in the state, and released at a refresh.

use prereg::{
    AddressSpace, Errno, Granule, Holder, HolderKind, HolderTotal, MapError, PageShift, Translator, UserAddr,
};
use prereg_sim::SimHost;

const A: u64 = 0x7f00_0000_0000;
const K4: PageShift = PageShift::K4;
/// Too far away for the index that covers `A`, so each of these regions is listed in a snapshot of its own.
const FAR: u64 = 0x5500_0000_0000;

fn set_up() -> (SimHost, AddressSpace) {
    let host = SimHost::new(Granule::K4);
    (host.clone(), super::builder(host).build().unwrap())
}

fn idle(container: u64) -> Holder {
    Holder { container, kind: HolderKind::InFlight }
}

fn reaches(t: &mut Translator, host: &SimHost, ua: u64) {
    let mapping = t.map(UserAddr::new(ua), K4).unwrap();
    assert_eq!(Some(mapping.hpa()), host.backs(ua), "{ua:#x}");
    t.unmap(mapping);
}

/// Registers 16 pages at `ua`, maps the first, and unregisters them, `rounds` times.
fn churn(host: &SimHost, space: &AddressSpace, t: &mut Translator, ua: u64, rounds: u64) {
    for _ in 0..rounds {
        let registration = space.register(&host.memory(ua, 16 << 12)).unwrap();
        reaches(t, host, ua);
        registration.unregister().unwrap();
        host.unmap(ua, 16 << 12);
    }
}

#[test]
fn idle_translators_keep_a_bounded_number_of_regions() {
    let (host, space) = set_up();
    // The index covers both and the gap between them, in entries of 16 pages.
    let _below = space.register(&host.memory(A, 32 << 12)).unwrap();
    let _above = space.register(&host.memory(A + (48 << 12), 16 << 12)).unwrap();
    let gap = A + (32 << 12);
    let (idlers, rounds) = if cfg!(miri) { (1, 70) } else { (8, 2000) };
    let mut busy = space.translator();
    let mut idlers: Vec<Translator> = (0..idlers)
        .map(|container| {
            let t = space.translator_for(idle(container));
            churn(&host, &space, &mut busy, gap, rounds);
            churn(&host, &space, &mut busy, FAR, rounds / 10);
            t
        })
        .collect();
    let state = space.snapshot();
    // For each: the regions released while its index was current. The busy one counts as one more.
    let bound = (idlers.len() as u64 + 1) * 3 * 64;
    assert!(state.unreclaimed <= bound, "{} regions are kept", state.unreclaimed);
    for t in &mut idlers {
        reaches(t, &host, A + 0x5000);
    }
    drop(idlers);
    busy.refresh();
    drop(space.register(&host.memory(FAR, 1 << 12)).unwrap());
    busy.refresh();
    space.register(&host.memory(FAR, 1 << 12)).unwrap().unregister().unwrap();
    assert!(space.snapshot().unreclaimed <= 2, "{:?}", space.snapshot());
}

#[test]
fn the_state_names_who_keeps_regions() {
    let (host, space) = set_up();
    let _standing = space.register(&host.memory(A, 64 << 12)).unwrap();
    let mut late = space.translator_for(idle(2));
    let region = space.register(&host.memory(FAR, 1 << 12)).unwrap();
    let mut early = space.translator_for(idle(1));
    let mut second = space.translator_for(idle(1));
    region.unregister().unwrap();
    let state = space.snapshot();
    assert_eq!((state.unreclaimed, state.retained_by), (1, vec![HolderTotal { holder: idle(1), count: 1 }]));
    late.refresh();
    early.refresh();
    assert_eq!(space.snapshot().retained_by.len(), 1, "the second one still keeps it");
    second.refresh();
    assert_eq!(space.snapshot().retained_by, []);
}

/// The translator uses one of four snapshots: before the region, the first with it, the last with it, the next one.
#[test]
fn a_region_is_kept_for_every_snapshot_that_names_it_and_no_other() {
    for (at, kept) in [(0, 0), (1, 1), (2, 1), (3, 0)] {
        let (host, space) = set_up();
        let _standing = space.register(&host.memory(A, 64 << 12)).unwrap();
        let mut t = space.translator();
        let mut settle = |now: u32| {
            if now == at {
                t.refresh();
            }
        };
        settle(0);
        let region = space.register(&host.memory(FAR, 1 << 12)).unwrap();
        settle(1);
        let _other = space.register(&host.memory(FAR + (1 << 40), 1 << 12)).unwrap();
        settle(2);
        region.unregister().unwrap();
        assert_eq!(space.snapshot().unreclaimed, kept, "the translator uses snapshot {at}");
        settle(3);
        // The next publication frees what no hazard slot names.
        let _another = space.register(&host.memory(FAR + (2 << 40), 1 << 12)).unwrap();
        assert_eq!(space.snapshot().unreclaimed, kept, "snapshot {at}");
    }
}

#[test]
fn a_region_that_only_an_old_snapshot_names_is_not_registered() {
    let (host, space) = set_up();
    let _standing = space.register(&host.memory(A, 64 << 12)).unwrap();
    let far = UserAddr::new(FAR);
    let region = space.register(&host.memory(FAR, 2 << 12)).unwrap();
    let (mut one, mut two, mut three) = (space.translator(), space.translator(), space.translator());
    region.unregister().unwrap();
    let errors = [
        one.map(far, K4).map(drop).unwrap_err(),
        two.map_range(far, 0x2000).map(drop).unwrap_err(),
        three.check(far, K4).unwrap_err(),
    ];
    for error in errors {
        assert_eq!((error, error.errno()), (MapError::Unregistered { ua: far, shift: K4 }, Errno::EFAULT));
    }
}

#[test]
fn an_old_translator_counts_in_slots_that_came_after_it() {
    let (host, space) = set_up();
    let (pages, regions) = if cfg!(miri) { (64, 40) } else { (1024, 300) };
    let standing = space.register(&host.memory(A, pages << 12)).unwrap();
    let mut old = space.translator();
    let mut t = space.translator();
    let mut held = Vec::new();
    // More than the initial counters of a translator.
    for index in 0..regions {
        let ua = A + (pages << 12) + index * 0x1000;
        held.push(space.register(&host.memory(ua, 1 << 12)).unwrap());
        // Acquired by one translator, released by the other, which has fewer counters.
        let mapping = t.map(UserAddr::new(ua), K4).unwrap();
        assert_eq!((held[index as usize].state().unwrap().mapped, Some(mapping.hpa())), (1, host.backs(ua)));
        old.unmap(mapping);
        assert_eq!(held[index as usize].state().unwrap().mapped, 0);
        reaches(&mut old, &host, ua);
    }
    for registration in held {
        registration.unregister().unwrap();
    }
    standing.unregister().unwrap();
    drop((old, t, space));
    host.assert_clean();
}

#[test]
fn units_outlive_their_translator_while_other_holders_come() {
    let (host, space) = set_up();
    let registration = space.register(&host.memory(A, 16 << 12)).unwrap();
    let mut t = space.translator_for(idle(1));
    let mapping = t.map(UserAddr::new(A), K4).unwrap();
    drop(t);
    for container in 2..40 {
        drop(space.translator_for(idle(container)));
    }
    assert_eq!(registration.state().unwrap().mappings, [HolderTotal { holder: idle(1), count: 1 }]);
    let registration = registration.unregister().unwrap_err().into_inner();
    drop(mapping);
    registration.unregister().unwrap();
    host.assert_clean();
}

/// Snapshots are created and freed at the same addresses while a translator looks for the newest.
#[test]
fn translators_refresh_while_snapshots_are_freed() {
    let (host, space) = set_up();
    let _standing = space.register(&host.memory(A, 16 << 12)).unwrap();
    let rounds = if cfg!(miri) { 12 } else { 3000 };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (host, space) = (&host, &space);
            scope.spawn(move || {
                let mut t = space.translator_for(idle(thread));
                for _ in 0..rounds {
                    t.refresh();
                    reaches(&mut t, host, A + 0x3000);
                }
            });
        }
        for _ in 0..rounds {
            let region = space.register(&host.memory(FAR, 1 << 12)).unwrap();
            region.unregister().unwrap();
        }
    });
}

/// One thread releases units of holders without a translator, another creates and drops holders.
#[test]
fn units_of_other_holders_are_released_while_holders_go() {
    let (host, space) = set_up();
    let registration = space.register(&host.memory(A, 16 << 12)).unwrap();
    let rounds = if cfg!(miri) { 8 } else { 2000 };
    std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel();
        let space = &space;
        scope.spawn(move || {
            let mut t = space.translator_for(idle(1000));
            for mapping in receive {
                t.unmap(mapping);
            }
        });
        for round in 0..rounds {
            let mut t = space.translator_for(idle(round));
            send.send(t.map(UserAddr::new(A), K4).unwrap()).unwrap();
            drop(t);
        }
    });
    registration.unregister().unwrap();
}

#[test]
fn a_mark_goes_to_the_region_that_is_registered_now() {
    let (host, space) = set_up();
    let _standing = space.register(&host.memory(A, 64 << 12)).unwrap();
    let memory = host.memory(FAR, 3 << 12);
    let first = space.register(&memory).unwrap();
    let mut old = space.translator();
    first.unregister().unwrap();
    let second = space.register(&memory).unwrap();
    // Its snapshot names the first region, which is released.
    old.mark_dirty(UserAddr::new(FAR + 0x1008));
    old.mark_dirty(UserAddr::new(FAR + 0x3000));
    second.unregister().unwrap();
    assert_eq!(host.written_pages(), [UserAddr::new(FAR + 0x1000)]);
    // A draining region is still marked.
    let third = space.register(&memory).unwrap();
    let mut t = space.translator();
    let mapping = t.map(UserAddr::new(FAR), K4).unwrap();
    drop(third);
    t.mark_dirty(UserAddr::new(FAR + 0x2000));
    drop(mapping);
    assert_eq!(host.written_pages(), [UserAddr::new(FAR + 0x2000)]);
}
