//! Bursts: as single maps, whatever else is done while their mappings live.

use std::panic::{AssertUnwindSafe, catch_unwind};

use prereg::{
    AddressSpace, BurstMapping, Granule, Holder, HolderKind, MapError, PageShift, Registration, UserAddr,
};
use prereg_sim::{MapSpec, SimHost};

const A: u64 = 0x7f00_0000_0000;
/// Too far away for the index that covers `A`, so a region there is listed in a snapshot.
const FAR: u64 = 0x5500_0000_0000;
const K4: PageShift = PageShift::K4;

fn page(number: u64) -> UserAddr {
    UserAddr::new(A + (number << 12))
}

fn mapped(registration: &Registration) -> u64 {
    registration.state().unwrap().mapped
}

/// 64 scattered pages, and 512 contiguous ones behind a hole.
fn set_up() -> (SimHost, AddressSpace, [Registration; 2]) {
    let host = SimHost::new(Granule::K4);
    let space = super::builder(host.clone()).build().unwrap();
    let scattered = space.register(&host.memory(A, 64 << 12)).unwrap();
    host.map(A + (1 << 21), 512 << 12, MapSpec::huge(PageShift::M2));
    let huge = space.register(&host.range(A + (1 << 21), 512 << 12)).unwrap();
    (host, space, [scattered, huge])
}

#[test]
fn a_burst_maps_what_single_maps_would() {
    let (host, space, registrations) = set_up();
    let far = space.register(&host.memory(FAR, 1 << 12)).unwrap();
    let mut t = space.translator();
    let mut burst = t.burst();
    let mut held = Vec::new();
    for number in 0..100 {
        let ua = match number % 5 {
            0 => UserAddr::new(FAR + number),
            1 => page(512 + number * 31 % 512),
            _ => UserAddr::new(page(number * 17 % 64).raw() + number),
        };
        let mapping = burst.map(ua, K4).unwrap();
        assert_eq!(Some(mapping.hpa()), host.backs(ua.raw()));
        if number % 2 == 0 {
            held.push(mapping);
        }
    }
    let counted: u64 = registrations.iter().chain([&far]).map(mapped).sum();
    assert_eq!(counted, 50);
    let large = burst.map(page(512), PageShift::M2).unwrap();
    assert_eq!(Some(large.hpa()), host.backs(page(512).raw()));
    drop(held);
    assert_eq!(registrations.each_ref().map(mapped), [0, 1]);
    drop(large);
    assert_eq!((registrations.each_ref().map(mapped), mapped(&far)), ([0, 0], 0));
}

#[test]
fn what_cannot_be_mapped_is_refused_with_the_reason_of_a_map() {
    let (_host, space, [scattered, huge]) = set_up();
    let mut t = space.translator();
    let held = t.map(page(512), K4).unwrap();
    let draining = huge.drain();
    let mut burst = t.burst();
    let mut refused = |ua, shift| burst.map(ua, shift).unwrap_err();
    assert_eq!(refused(page(64), K4), MapError::Unregistered { ua: page(64), shift: K4 });
    assert!(matches!(refused(page(0), PageShift::K64), MapError::TooLarge { .. }));
    assert_eq!(refused(page(513), K4), MapError::Closing { ua: page(513) });
    assert_eq!(mapped(&scattered), 0);
    t.unmap(held);
    assert!(draining.is_done());
}

#[test]
fn a_region_that_comes_and_goes_during_a_burst_is_followed() {
    let (host, space, [scattered, _huge]) = set_up();
    let mut t = space.translator();
    let mut burst = t.burst();
    let first = burst.map(page(3), K4).unwrap();
    let refused =
        std::thread::scope(|scope| scope.spawn(|| scattered.unregister().unwrap_err()).join()).unwrap();
    assert_eq!(refused.mapped(), 1);
    drop(first);
    refused.into_inner().unregister().unwrap();
    assert_eq!(burst.map(page(3), K4).unwrap_err(), MapError::Unregistered { ua: page(3), shift: K4 });
    // The slot is used again, by a region of other pages, and a larger region needs another index.
    host.unmap(A, 64 << 12);
    let again = space.register(&host.memory(A, 32 << 12)).unwrap();
    let large = A + (1 << 30);
    let _large = space.register(&host.memory(large, 512 << 12)).unwrap();
    for ua in [A + 0x3123, large + 0x7123, A + (1 << 21) + 5] {
        assert_eq!(Some(burst.map(UserAddr::new(ua), K4).unwrap().hpa()), host.backs(ua), "{ua:#x}");
    }
    again.unregister().unwrap();
}

#[test]
fn mappings_are_counted_where_they_were_made_whatever_counters_came_since() {
    let (host, space, registrations) = set_up();
    let mut t = space.translator();
    let mut burst = t.burst();
    let (early, kept) = (burst.map(page(0), K4).unwrap(), burst.map(page(1), K4).unwrap());
    // More regions than the first counters; fewer under miri, where they take a quarter of an hour.
    let last = if cfg!(miri) { 24 } else { 699 };
    let at = |n: u64| A + (1 << 32) + (n << 13);
    let many: Vec<_> = (0..=last).map(|n| space.register(&host.memory(at(n), 1 << 12)).unwrap()).collect();
    let late_ua = UserAddr::new(at(last));
    let late = burst.map(late_ua, K4).unwrap();
    let more = burst.map(page(2), K4).unwrap();
    assert_eq!((mapped(&registrations[0]), mapped(&many[last as usize])), (3, 1));
    // Made before the counters grew, kept after that.
    let kept = burst.keep(kept, page(1), K4).unwrap();
    let kept_late = burst.keep(late, late_ua, K4).unwrap();
    drop(early);
    assert_eq!((mapped(&registrations[0]), mapped(&many[last as usize])), (2, 1));
    drop(more);
    t.unmap(kept);
    t.unmap(kept_late);
    assert_eq!((mapped(&registrations[0]), mapped(&many[last as usize])), (0, 0));
    drop((t, many, registrations));
    host.assert_clean();
}

#[test]
fn swapped_between_translators_and_spaces_each_is_released_where_it_was_counted() {
    let (host, space, [mine, _]) = set_up();
    let (other_host, other_space, [other, _]) = set_up();
    let holder = Holder { container: 1, kind: HolderKind::InFlight };
    let (mut t, mut u, mut v) = (space.translator(), space.translator_for(holder), other_space.translator());
    let (mut first, mut second, mut third) = (t.burst(), u.burst(), v.burst());
    let mut of_first = first.map(page(0), K4).unwrap();
    let mut of_second = second.map(page(0), K4).unwrap();
    let mut of_third = third.map(page(0), K4).unwrap();
    std::mem::swap(&mut of_first, &mut of_third);
    std::mem::swap(&mut of_second, &mut of_third);
    let is = |mapping: &BurstMapping<'_>, host: &SimHost| Some(mapping.hpa()) == host.backs(page(0).raw());
    assert!(is(&of_first, &other_host) && is(&of_second, &host) && is(&of_third, &host));
    assert_eq!((mapped(&mine), mapped(&other)), (2, 1));
    // The bursts, too.
    std::mem::swap(&mut first, &mut third);
    // The one that now is the first is the other space's: it keeps its own and no other.
    let (of_third, of_second) =
        (first.keep(of_third, page(0), K4).unwrap_err(), first.keep(of_second, page(0), K4).unwrap_err());
    let kept = first.keep(of_first, page(0), K4).unwrap();
    drop(of_second);
    assert_eq!((mapped(&mine), mapped(&other)), (1, 1));
    drop(of_third);
    assert_eq!((mapped(&mine), mapped(&other)), (0, 1));
    drop(kept);
    assert_eq!(mapped(&other), 0);
}

#[test]
fn a_kept_mapping_outlives_its_translator_on_any_thread() {
    let (host, space, [scattered, huge]) = set_up();
    let mut t = space.translator();
    let mut burst = t.burst();
    let ua = UserAddr::new(A + 0x5123);
    let mapping = burst.map(ua, K4).unwrap();
    let kept = burst.keep(mapping, ua, K4).unwrap();
    assert_eq!((kept.ua(), kept.shift(), Some(kept.hpa())), (ua, K4, host.backs(ua.raw())));
    let large = burst.map(page(512), PageShift::M2).unwrap();
    let large = burst.keep(large, page(512), PageShift::M2).unwrap();
    assert_eq!((mapped(&scattered), mapped(&huge)), (1, 1));
    drop(t);
    std::thread::spawn(move || drop((kept, large))).join().unwrap();
    assert_eq!((mapped(&scattered), mapped(&huge)), (0, 0));
}

#[test]
fn a_mapping_is_kept_only_as_the_page_it_is_of() {
    let (_host, space, [scattered, _huge]) = set_up();
    let mut t = space.translator();
    let mut burst = t.burst();
    let mut mapping = burst.map(page(5), K4).unwrap();
    let wrong = [(page(6), K4), (page(600), K4), (page(64), K4), (page(5), PageShift::K64)];
    for (ua, shift) in wrong {
        mapping = burst.keep(mapping, ua, shift).unwrap_err();
        assert_eq!(mapped(&scattered), 1, "{ua} {shift}");
    }
    let kept = burst.keep(mapping, page(5), K4).unwrap();
    t.unmap(kept);
    assert_eq!(mapped(&scattered), 0);
}

#[test]
fn what_is_forgotten_stays_mapped_and_nothing_else_changes() {
    if cfg!(miri) {
        return eprintln!(
            "skipped: what is forgotten keeps its address space, and the interpreter reports that leak"
        );
    }
    let (_host, space, [scattered, huge]) = set_up();
    let mut t = space.translator();
    let mut burst = t.burst();
    std::mem::forget(burst.map(page(0), K4).unwrap());
    drop(burst.map(page(512), K4).unwrap());
    t.refresh();
    drop(t.burst().map(page(1), K4).unwrap());
    assert_eq!((mapped(&scattered), mapped(&huge)), (1, 0));
    drop(t);
    let refused = scattered.unregister().unwrap_err();
    assert_eq!(refused.mapped(), 1);
    huge.unregister().unwrap();
    std::mem::forget(refused);
}

#[test]
fn a_panic_between_a_map_and_its_release_leaves_no_unit() {
    let (_host, space, [scattered, _huge]) = set_up();
    let mut t = space.translator();
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _mapping = t.burst().map(page(0), K4).unwrap();
        assert_eq!(mapped(&scattered), 1);
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(unwound.is_err());
    assert_eq!(mapped(&scattered), 0);
    scattered.unregister().unwrap();
}

#[test]
fn bursts_and_their_mappings_are_printed() {
    let (host, space, _registrations) = set_up();
    let mut t = space.translator();
    let mut burst = t.burst();
    let mapping = burst.map(page(0), K4).unwrap();
    let at = host.backs(page(0).raw()).unwrap();
    assert_eq!(format!("{mapping:?}"), format!("BurstMapping {{ host: {at:?}, .. }}"));
    assert_eq!(format!("{burst:?}"), "Burst { holder: Holder { container: 0, kind: Other }, .. }");
}
