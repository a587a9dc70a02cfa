//! Regions that come while translators map: in place, and past the slots that a translator has counts for.

use std::sync::Arc;

use loom::thread;
use prereg_models::explore;
use prereg_models::world::{Fences, World, map, map_and_use};

#[test]
fn a_region_is_mapped_while_it_is_registered_in_place() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        // Three pages: the index has room for a fourth. Three slots: there are counters for a fourth.
        let (first, second) = (world.register(0, 3), world.register(3, 1));
        let mut translator = world.space.translator();
        second.unregister().unwrap();
        let host = world.host.clone();
        let reader = thread::spawn(move || {
            let mapping = map(&mut translator, 3);
            if let Some(mapping) = &mapping {
                host.use_page(mapping.hpa());
            }
            (translator, mapping)
        });
        let third = world.register(3, 1);
        let (translator, mapping) = reader.join().unwrap();
        let third = match third.unregister() {
            Ok(()) => None,
            Err(refused) => Some(refused.into_inner()),
        };
        assert_eq!(third.is_some(), mapping.is_some());
        drop(mapping);
        if let Some(third) = third {
            third.unregister().unwrap();
        }
        first.unregister().unwrap();
        drop(translator);
        world.host.assert_all_released();
    });
}

#[test]
fn a_region_past_the_known_counts_is_mapped_while_it_is_registered() {
    explore(|| {
        let world = Arc::new(World::new(Fences::Asymmetric));
        // Three pages: the index has room for a fourth, which the second region takes in place.
        let first = world.register(0, 3);
        let mut translator = world.space.translator();
        let host = world.host.clone();
        let reader = thread::spawn(move || {
            // Found nowhere, it makes the translator look for a newer snapshot, and longer counts.
            let new = map(&mut translator, 3);
            if let Some(mapping) = &new {
                host.use_page(mapping.hpa());
            }
            // Counted in what it knows now.
            assert!(map_and_use(&mut translator, &host, 0));
            (translator, new)
        });
        let second = world.register(3, 1);
        let (mut translator, new) = reader.join().unwrap();
        let refused = second.unregister().err();
        assert_eq!(refused.is_some(), new.is_some());
        if let (Some(refused), Some(mapping)) = (refused, new) {
            translator.unmap(mapping);
            refused.into_inner().unregister().unwrap();
        }
        first.unregister().unwrap();
        drop(translator);
        world.host.assert_all_released();
    });
}

#[test]
fn a_unit_taken_in_short_counts_is_given_back_in_long_ones() {
    explore(|| {
        let world = Arc::new(World::new(Fences::Asymmetric));
        let first = world.register(0, 1);
        let mut translator = world.space.translator();
        let host = world.host.clone();
        let mapping = map(&mut translator, 0).unwrap();
        let reader = thread::spawn(move || {
            let new = map(&mut translator, 1);
            host.use_page(mapping.hpa());
            translator.unmap(mapping);
            (translator, new)
        });
        let second = world.register(1, 1);
        let refused = first.unregister().err();
        let (translator, new) = reader.join().unwrap();
        if let Some(refused) = refused {
            refused.into_inner().unregister().unwrap();
        }
        drop(new);
        second.unregister().unwrap();
        drop(translator);
        world.host.assert_all_released();
    });
}
