//! Lists of pages: all pages are mapped, or none, for any list.

use prereg::{
    AddressSpace, Errno, Granule, Holder, HolderKind, ListError, MapError, Mapping, PageShift, Registration,
    UserAddr,
};
use prereg_sim::{MapSpec, SimHost};

const A: u64 = 0x7f00_0000_0000;
const FAR: u64 = 0x5500_0000_0000;
const K4: PageShift = PageShift::K4;

fn page(number: u64) -> UserAddr {
    UserAddr::new(A + (number << 12))
}

fn places(count: usize) -> Vec<Option<Mapping>> {
    (0..count).map(|_| None).collect()
}

fn mapped(registration: &Registration) -> u64 {
    registration.state().unwrap().mapped
}

/// 256 scattered pages, a hole of 16, 512 contiguous ones, and one page far away.
fn set_up() -> (SimHost, AddressSpace, [Registration; 3]) {
    let host = SimHost::new(Granule::K4);
    let space = super::builder(host.clone()).build().unwrap();
    let scattered = space.register(&host.memory(A, 256 << 12)).unwrap();
    host.map(A + (2 << 21), 512 << 12, MapSpec::huge(PageShift::M2));
    let huge = space.register(&host.range(A + (2 << 21), 512 << 12)).unwrap();
    let far = space.register(&host.memory(FAR, 1 << 12)).unwrap();
    (host, space, [scattered, huge, far])
}

#[test]
fn a_list_maps_what_single_maps_would() {
    let (host, space, registrations) = set_up();
    let mut t = space.translator();
    for length in [0usize, 1, 2, 63, 64, 65, 200, 513] {
        // Every region, unordered, some pages repeated, offsets inside pages.
        let pages: Vec<UserAddr> = (0..length as u64)
            .map(|n| match n % 7 {
                0 => UserAddr::new(FAR + n % 4096),
                1 | 4 => page(1024 + n * 31 % 512),
                _ => UserAddr::new(page(n * 17 % 256).raw() + n),
            })
            .collect();
        let mut mappings = places(length + 3);
        t.map_list(&pages, K4, &mut mappings).unwrap();
        for (mapping, &ua) in mappings.iter().zip(&pages) {
            let mapping = mapping.as_ref().unwrap();
            assert_eq!((mapping.ua(), mapping.shift()), (ua, K4));
            assert_eq!(Some(mapping.hpa()), host.backs(ua.raw()));
        }
        assert!(mappings[length..].iter().all(Option::is_none), "places beyond the list stay empty");
        let counted: u64 = registrations.iter().map(mapped).sum();
        assert_eq!(counted, length as u64);
        // Released by a call, by a drop and as a list.
        if let Some(mapping) = mappings.first_mut().and_then(Option::take) {
            t.unmap(mapping);
        }
        drop(mappings.pop());
        t.unmap_list(&mut mappings);
        assert!(registrations.iter().all(|registration| mapped(registration) == 0));
    }
}

#[test]
fn one_bad_page_anywhere_and_nothing_is_mapped() {
    let (_host, space, registrations) = set_up();
    let mut t = space.translator();
    for bad in [0usize, 1, 63, 64, 99] {
        let mut pages: Vec<UserAddr> = (0..100).map(page).collect();
        pages[bad] = page(256);
        let mut mappings = places(100);
        let error = t.map_list(&pages, K4, &mut mappings).unwrap_err();
        let why = MapError::Unregistered { ua: page(256), shift: K4 };
        assert_eq!(error, ListError::Page { index: bad, error: why });
        assert_eq!(error.errno(), Errno::EFAULT);
        assert!(mappings.iter().all(Option::is_none));
        assert!(registrations.iter().all(|registration| mapped(registration) == 0));
    }
}

#[test]
fn large_pages_are_mapped_where_they_are_contiguous() {
    let (_host, space, registrations) = set_up();
    let mut t = space.translator();
    let mut mappings = places(2);
    t.map_list(&[page(1024), page(1027)], PageShift::M2, &mut mappings).unwrap();
    assert_eq!(mapped(&registrations[1]), 2);
    let error = t.map_list(&[page(1024), page(0)], PageShift::K64, &mut mappings).unwrap_err();
    assert!(matches!(error, ListError::Page { index: 1, error: MapError::TooLarge { .. } }), "{error}");
    // The mapping in the element before the failing page was released, the one in its own element is live.
    assert_eq!((mapped(&registrations[1]), mappings.iter().flatten().count()), (1, 1));
}

#[test]
fn a_list_needs_a_place_for_each_page() {
    let (_host, space, registrations) = set_up();
    let mut t = space.translator();
    let error = t.map_list(&[page(0), page(1)], K4, &mut places(1)).unwrap_err();
    assert_eq!(error, ListError::OutputTooSmall { pages: 2, capacity: 1 });
    assert_eq!(error.errno(), Errno::EINVAL);
    assert_eq!(mapped(&registrations[0]), 0);
}

#[test]
fn a_list_over_a_closing_region_is_refused_whole() {
    let (_host, space, [scattered, huge, far]) = set_up();
    let mut t = space.translator();
    let held = t.map(page(1024), K4).unwrap();
    let draining = huge.drain();
    let mut mappings = places(3);
    let error = t.map_list(&[page(1), page(1025), page(2)], K4, &mut mappings).unwrap_err();
    assert!(matches!(error, ListError::Page { index: 1, error: MapError::Closing { .. } }), "{error}");
    assert_eq!(mapped(&scattered), 0);
    t.unmap(held);
    assert!(draining.is_done());
    drop((scattered, far));
}

#[test]
fn mappings_of_another_holder_go_back_to_where_they_were_counted() {
    let (_host, space, registrations) = set_up();
    let (mut mine, mut other) = (
        space.translator_for(Holder { container: 1, kind: HolderKind::InFlight }),
        space.translator_for(Holder { container: 2, kind: HolderKind::InFlight }),
    );
    let mut mappings = places(4);
    mine.map_list(&[page(0), page(1)], K4, &mut mappings[..2]).unwrap();
    other.map_list(&[page(2), page(3)], K4, &mut mappings[2..]).unwrap();
    let holders: Vec<_> = registrations[0].state().unwrap().mappings.iter().map(|held| held.count).collect();
    assert_eq!(holders, [2, 2]);
    mine.unmap_list(&mut mappings);
    let state = registrations[0].state().unwrap();
    assert_eq!((state.mapped, state.mappings.len()), (0, 0));
}

#[test]
fn what_a_translator_with_more_counts_took_another_one_gives_back() {
    let (host, space, registrations) = set_up();
    let (mut old, mut new) = (space.translator(), space.translator());
    let before = old.map(page(0), K4).unwrap();
    // More regions than the first counters; fewer under miri, where they take a quarter of an hour.
    let last = if cfg!(miri) { 24 } else { 699 };
    let at = |n: u64| A + (1 << 32) + (n << 13);
    let many: Vec<_> = (0..=last).map(|n| space.register(&host.memory(at(n), 1 << 12)).unwrap()).collect();
    let late = UserAddr::new(at(last));
    let mut mappings = places(4);
    new.map_list(&[late, page(1), late, page(2)], K4, &mut mappings).unwrap();
    let many_last = many.last().unwrap();
    assert_eq!((mapped(many_last), mapped(&registrations[0])), (2, 3));
    // The old one has not looked since; the new one has the units that the old one acquired before.
    new.unmap(before);
    old.unmap_list(&mut mappings);
    assert_eq!((mapped(many_last), mapped(&registrations[0])), (0, 0));
    drop((old, new, many, registrations));
    host.assert_clean();
}

#[test]
fn a_hint_is_only_a_hint() {
    let (_host, space, registrations) = set_up();
    let t = space.translator();
    for ua in [0, A, A + 4095, A + (256 << 12), FAR, u64::MAX] {
        t.prefetch(UserAddr::new(ua));
    }
    assert!(registrations.iter().all(|registration| mapped(registration) == 0));
}

#[test]
fn a_list_whose_miss_refreshes_the_translator_maps_the_true_pages() {
    let host = SimHost::new(Granule::K4);
    let space = super::builder(host.clone()).build().unwrap();
    let _old = space.register(&host.memory(A, 64 << 12)).unwrap();
    let mut t = space.translator();
    // Too large for the index that the translator uses, so the next snapshot has another one.
    let new = A + (1 << 30);
    let _new = space.register(&host.memory(new, 512 << 12)).unwrap();
    let later = A + (2 << 30);
    for (round, list) in [
        vec![UserAddr::new(new), page(3)],
        vec![page(3), UserAddr::new(later), page(5), UserAddr::new(new + 0x7123), page(63)],
    ]
    .into_iter()
    .enumerate()
    {
        let _later = (round == 1).then(|| space.register(&host.memory(later, 2048 << 12)).unwrap());
        let mut mappings = places(list.len());
        t.map_list(&list, K4, &mut mappings).unwrap();
        for (mapping, ua) in mappings.iter().flatten().zip(&list) {
            assert_eq!((mapping.ua(), Some(mapping.hpa())), (*ua, host.backs(ua.raw())), "round {round}");
        }
        t.unmap_list(&mut mappings);
    }
}

#[test]
fn a_list_that_misses_after_a_slot_was_reused_maps_no_other_region() {
    let host = SimHost::new(Granule::K4);
    let space = super::builder(host.clone()).build().unwrap();
    let _standing = space.register(&host.memory(A, 64 << 12)).unwrap();
    let mut t = space.translator();
    let first = space.register(&host.memory(A + (64 << 12), 64 << 12)).unwrap();
    drop(t.map(page(64), K4).unwrap());
    first.unregister().unwrap();
    // The slot and the index entries are used again, by a region of other pages.
    let _second = space.register(&host.memory(A + (96 << 12), 32 << 12)).unwrap();
    let mut mappings = places(3);
    let list = [page(1), page(64), page(96)];
    let error = t.map_list(&list, K4, &mut mappings).unwrap_err();
    assert_eq!(
        error,
        ListError::Page { index: 1, error: MapError::Unregistered { ua: page(64), shift: K4 } }
    );
    assert!(mappings.iter().all(Option::is_none));
    let list = [page(1), page(96), page(127)];
    t.map_list(&list, K4, &mut mappings).unwrap();
    for (mapping, ua) in mappings.iter().flatten().zip(&list) {
        assert_eq!(Some(mapping.hpa()), host.backs(ua.raw()));
    }
}
