//! The last unregister, of one region and of many, against threads that map.

use std::sync::Arc;

use loom::thread;
use prereg::{Mapping, PageShift, Refusal, Registration, Translator};
use prereg_models::world::{Fences, Host, PAGE, World, map, map_and_use, page};
use prereg_models::{explore, explore_to};

use crate::PREEMPTIONS;

/// A reader's way to a unit of page 0; the unit is kept.
type Take = fn(&mut Translator) -> Option<Kept>;

/// A unit of any kind.
#[expect(dead_code, reason = "held for its drop")]
enum Kept {
    Page(Mapping),
    Range(prereg::RangeMapping),
    List(Vec<Option<Mapping>>),
}

fn take_page(translator: &mut Translator) -> Option<Kept> {
    map(translator, 0).map(Kept::Page)
}

fn take_in_burst(translator: &mut Translator) -> Option<Kept> {
    let mut burst = translator.burst();
    let mapping = burst.map(page(0), PageShift::K4).ok()?;
    burst.keep(mapping, page(0), PageShift::K4).ok().map(Kept::Page)
}

fn take_range(translator: &mut Translator) -> Option<Kept> {
    translator.map_range(page(0), PAGE).ok().map(Kept::Range)
}

fn take_list(translator: &mut Translator) -> Option<Kept> {
    let mut mappings: Vec<_> = [const { None }; 1].into();
    translator.map_list(&[page(0)], PageShift::K4, &mut mappings).ok().map(|()| Kept::List(mappings))
}

/// A mapping that is kept and the last unregister: one of them succeeds.
fn one_of_the_two(fences: Fences, take: Take) {
    explore(move || {
        let world = World::new(fences);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let reader = thread::spawn(move || {
            let kept = take(&mut translator);
            (translator, kept)
        });
        let refused = registration.unregister().err();
        let (translator, kept) = reader.join().unwrap();
        assert_ne!(kept.is_some(), refused.is_none(), "a map and the last unregister: both, or neither");
        if let Some(refused) = refused {
            assert!(matches!(refused.refusal(), Refusal::Busy { mapped: 1, .. }), "{refused}");
            let again = refused.into_inner().unregister().unwrap_err();
            assert_eq!(again.mapped(), 1);
            drop(kept);
            again.into_inner().unregister().unwrap();
        }
        drop(translator);
        world.host.assert_all_released();
    });
}

#[test]
fn a_kept_page_or_the_last_unregister() {
    one_of_the_two(Fences::Asymmetric, take_page);
}

#[test]
fn a_kept_page_or_the_last_unregister_with_full_fences() {
    one_of_the_two(Fences::Full, take_page);
}

#[test]
fn a_kept_page_of_a_burst_or_the_last_unregister() {
    one_of_the_two(Fences::Asymmetric, take_in_burst);
}

#[test]
fn a_kept_range_or_the_last_unregister() {
    one_of_the_two(Fences::Asymmetric, take_range);
}

#[test]
fn a_kept_list_or_the_last_unregister() {
    one_of_the_two(Fences::Asymmetric, take_list);
}

/// Threads that map, use and unmap page 0 while the last unregister runs.
fn use_and_unregister(fences: Fences, readers: usize) {
    let model = move || {
        let world = World::new(fences);
        let registration = world.register(0, 1);
        let threads: Vec<_> = (0..readers)
            .map(|_| {
                let mut translator = world.space.translator();
                let host = world.host.clone();
                thread::spawn(move || {
                    let mapped = map_and_use(&mut translator, &host, 0);
                    (translator, mapped)
                })
            })
            .collect();
        let refused = registration.unregister().err();
        let ended: Vec<_> = threads.into_iter().map(|reader| reader.join().unwrap()).collect();
        if let Some(refused) = refused {
            assert!(ended.iter().any(|(_, mapped)| *mapped), "refused, and no thread mapped");
            refused.into_inner().unregister().unwrap();
        }
        drop(ended);
        world.host.assert_all_released();
    };
    if readers == 1 { explore(model) } else { explore_to(PREEMPTIONS, model) }
}

#[test]
fn a_page_in_use_against_the_last_unregister() {
    use_and_unregister(Fences::Asymmetric, 1);
}

#[test]
fn a_page_in_use_against_the_last_unregister_with_full_fences() {
    use_and_unregister(Fences::Full, 1);
}

#[test]
fn a_page_in_use_by_two_against_the_last_unregister() {
    use_and_unregister(Fences::Asymmetric, 2);
}

/// Maps, uses and unmaps pages 0 and 1, in this order.
fn use_both(mut translator: Translator, host: &Host) -> (Translator, [bool; 2]) {
    let first = map_and_use(&mut translator, host, 0);
    let second = map_and_use(&mut translator, host, 1);
    (translator, [first, second])
}

#[test]
fn pages_in_use_against_unregister_many() {
    explore_to(PREEMPTIONS, || {
        let world = World::new(Fences::Asymmetric);
        let registrations = Vec::from([world.register(0, 1), world.register(1, 1)]);
        let translator = world.space.translator();
        let host = world.host.clone();
        let reader = thread::spawn(move || use_both(translator, &host));
        let refused = Registration::unregister_many(registrations);
        let (translator, mapped) = reader.join().unwrap();
        for refused in refused {
            let number = usize::from(refused.mapped() == 0 || mapped != [true, false]);
            assert!(mapped.contains(&true) && number < 2, "refused, and no thread mapped");
            refused.into_inner().unregister().unwrap();
        }
        drop(translator);
        world.host.assert_all_released();
    });
}

#[test]
fn kept_pages_or_unregister_many() {
    explore_to(PREEMPTIONS, || {
        let world = World::new(Fences::Asymmetric);
        let registrations = Vec::from([world.register(0, 1), world.register(1, 1)]);
        let mut translator = world.space.translator();
        let reader = thread::spawn(move || {
            // The order against that of the registrations, so that a close is announced before its page is looked at.
            let second = map(&mut translator, 1);
            let first = map(&mut translator, 0);
            (translator, [first, second])
        });
        let refused = Registration::unregister_many(registrations);
        let (translator, kept) = reader.join().unwrap();
        for (number, kept) in kept.iter().enumerate() {
            let refused = refused.iter().any(|refused| {
                let refused = refused.to_string();
                refused.contains(&page(number as u64).to_string())
            });
            assert_eq!(kept.is_some(), refused, "page {number}: a map and the unregister: both, or neither");
        }
        drop(kept);
        for refused in refused {
            refused.into_inner().unregister().unwrap();
        }
        drop(translator);
        world.host.assert_all_released();
    });
}

#[test]
fn two_owners_unregister_at_once_and_one_of_them_releases() {
    explore(|| {
        let world = Arc::new(World::new(Fences::Asymmetric));
        let (mine, other) = (world.register(0, 1), world.register(0, 1));
        assert_eq!(world.host.pinned(), 1, "shared");
        let thread = thread::spawn(move || other.unregister().unwrap());
        mine.unregister().unwrap();
        thread.join().unwrap();
        world.host.assert_all_released();
    });
}
