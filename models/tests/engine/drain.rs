//! Draining: the last registration is dropped while pages are mapped, and the last mapping releases the region.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use loom::thread;
use prereg::{Holder, HolderKind};
use prereg_models::explore;
use prereg_models::world::{Fences, World, map, map_and_use};

/// A thread that maps, uses and unmaps while the registration is dropped.
fn use_and_drop(fences: Fences) {
    explore(move || {
        let world = World::new(fences);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let host = world.host.clone();
        let reader = thread::spawn(move || {
            map_and_use(&mut translator, &host, 0);
            translator
        });
        drop(registration);
        let translator = reader.join().unwrap();
        // An unmap only lowers the count; the next operation of the address space releases.
        world.space.reap();
        world.host.assert_all_released();
        drop(translator);
    });
}

#[test]
fn a_page_in_use_while_its_registration_is_dropped() {
    use_and_drop(Fences::Asymmetric);
}

#[test]
fn a_page_in_use_while_its_registration_is_dropped_with_full_fences() {
    use_and_drop(Fences::Full);
}

/// A mapping that is dropped by another thread, and the registration, at once: the later of the two releases.
fn mapping_and_registration(with_translator: bool) {
    explore(move || {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let mapping = map(&mut translator, 0).unwrap();
        let translator = with_translator.then_some(translator);
        let host = world.host.clone();
        let thread = thread::spawn(move || {
            host.use_page(mapping.hpa());
            drop(mapping);
        });
        drop(registration);
        thread.join().unwrap();
        world.host.assert_all_released();
        drop(translator);
    });
}

#[test]
fn the_later_of_the_last_mapping_and_the_registration_releases() {
    mapping_and_registration(true);
}

#[test]
fn the_later_of_the_last_mapping_and_the_registration_releases_without_translators() {
    mapping_and_registration(false);
}

#[test]
fn the_later_of_two_mappings_of_a_draining_region_releases() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let mappings = [map(&mut translator, 0).unwrap(), map(&mut translator, 0).unwrap()];
        drop(registration);
        assert_eq!(world.host.pinned(), 1);
        let threads = mappings.map(|mapping| {
            let host = world.host.clone();
            thread::spawn(move || {
                host.use_page(mapping.hpa());
                drop(mapping);
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        world.host.assert_all_released();
        drop(translator);
    });
}

#[test]
fn a_thread_that_waits_for_the_last_mapping_is_woken() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let mapping = map(&mut translator, 0).unwrap();
        let thread = thread::spawn(move || drop(mapping));
        registration.unregister_when_idle();
        world.host.assert_all_released();
        thread.join().unwrap();
        drop(translator);
    });
}

#[test]
fn a_callback_is_called_by_whichever_is_later() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let mapping = map(&mut translator, 0).unwrap();
        let draining = registration.drain();
        let thread = thread::spawn(move || drop(mapping));
        let calls = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&calls);
        draining.on_done(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        thread.join().unwrap();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        world.host.assert_all_released();
        drop(translator);
    });
}

#[test]
fn a_draining_region_is_registered_again_or_released_first() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let mapping = map(&mut translator, 0).unwrap();
        drop(registration);
        let host = world.host.clone();
        let thread = thread::spawn(move || {
            host.use_page(mapping.hpa());
            drop(mapping);
        });
        let registration = world.register(0, 1);
        assert!(map_and_use(&mut translator, &world.host, 0), "registered");
        thread.join().unwrap();
        assert_eq!(world.host.pinned(), 1);
        registration.unregister().unwrap();
        world.host.assert_all_released();
        drop(translator);
    });
}

#[test]
fn a_mapping_of_another_holder_is_unmapped_while_the_registration_is_dropped() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let other = Holder { container: 1, kind: HolderKind::InFlight };
        let mapping = map(&mut world.space.translator_for(other), 0).unwrap();
        let mut translator = world.space.translator();
        let host = world.host.clone();
        let thread = thread::spawn(move || {
            host.use_page(mapping.hpa());
            translator.unmap(mapping);
            translator
        });
        drop(registration);
        let translator = thread.join().unwrap();
        world.space.reap();
        world.host.assert_all_released();
        drop(translator);
    });
}

#[test]
fn a_translator_is_dropped_while_its_unit_is_out() {
    explore(|| {
        let world = Arc::new(World::new(Fences::Asymmetric));
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let mapping = map(&mut translator, 0).unwrap();
        let (shared, host) = (world.clone(), world.host.clone());
        let thread = thread::spawn(move || {
            drop(translator);
            host.use_page(mapping.hpa());
            drop(mapping);
            drop(shared);
        });
        // A new holder: the counts of those that hold nothing are dropped.
        let other = world.space.translator_for(Holder { container: 1, kind: HolderKind::InFlight });
        let refused = registration.unregister().err();
        thread.join().unwrap();
        if let Some(refused) = refused {
            refused.into_inner().unregister().unwrap();
        }
        world.host.assert_all_released();
        drop(other);
    });
}

#[test]
fn two_threads_register_the_same_range_and_pin_it_once() {
    explore(|| {
        let world = Arc::new(World::new(Fences::Asymmetric));
        let shared = world.clone();
        let thread = thread::spawn(move || shared.register(0, 1));
        let mine = world.register(0, 1);
        let other = thread.join().unwrap();
        assert_eq!(world.host.pinned(), 1, "one waits for the other and shares");
        mine.unregister().unwrap();
        other.unregister().unwrap();
        world.host.assert_all_released();
    });
}

#[test]
fn a_range_is_registered_while_it_is_being_unpinned() {
    explore(|| {
        let world = Arc::new(World::new(Fences::Asymmetric));
        let registration = world.register(0, 1);
        let shared = world.clone();
        let thread = thread::spawn(move || shared.register(0, 1));
        registration.unregister().unwrap();
        let again = thread.join().unwrap();
        assert_eq!(world.host.pinned(), 1);
        again.unregister().unwrap();
        world.host.assert_all_released();
    });
}
