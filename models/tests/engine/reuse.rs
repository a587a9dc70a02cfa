//! Reuse of slots and freeing of snapshots, against translators that may still use the old ones.

use std::sync::Arc;

use loom::thread;
use prereg::PageShift;
use prereg_models::world::{Fences, World, map_and_use, page};
use prereg_models::{explore, explore_to};

use crate::PREEMPTIONS;

/// A page so far away that no index covers it together with the others.
const FAR: u64 = 1 << 30;

#[test]
fn a_slot_is_not_used_again_while_a_translator_may_know_what_it_was() {
    explore_to(PREEMPTIONS, || {
        let world = World::new(Fences::Asymmetric);
        let (first, second) = (world.register(0, 1), world.register(1, 1));
        let mut translator = world.space.translator();
        let host = world.host.clone();
        let reader = thread::spawn(move || {
            map_and_use(&mut translator, &host, 0);
            translator
        });
        // Two retired regions make a new snapshot; the reader uses the old one.
        second.unregister().unwrap();
        let refused = first.unregister().err();
        // The slot that was freed last is taken first: the reader's, if it were free.
        let third = world.register(2, 1);
        let translator = reader.join().unwrap();
        if let Some(refused) = refused {
            refused.into_inner().unregister().unwrap();
        }
        third.unregister().unwrap();
        drop(translator);
        world.host.assert_all_released();
    });
}

#[test]
fn a_list_that_moves_to_a_newer_snapshot_uses_nothing_that_it_loaded_from_the_old_one() {
    explore_to(PREEMPTIONS, || {
        let world = Arc::new(World::new(Fences::Asymmetric));
        let (first, second) = (world.register(0, 1), world.register(1, 1));
        let mut translator = world.space.translator();
        let shared = world.clone();
        let writer = thread::spawn(move || {
            // Not in the index: a list that contains it looks for a newer snapshot.
            let far = shared.register(FAR, 1);
            second.unregister().unwrap();
            let refused = first.unregister().err();
            // A new snapshot, so that what the translator left becomes free, and a region that takes a free slot.
            let others = [shared.register(2 * FAR, 1), shared.register(2, 1)];
            (far, others, refused)
        });
        let mut mappings = [const { None }; 2];
        if translator.map_list(&[page(FAR), page(0)], PageShift::K4, &mut mappings).is_ok() {
            for mapping in mappings.iter().flatten() {
                world.host.use_page(mapping.hpa());
            }
            translator.unmap_list(&mut mappings);
        }
        let (far, others, refused) = writer.join().unwrap();
        if let Some(refused) = refused {
            refused.into_inner().unregister().unwrap();
        }
        drop((far, others, translator));
        world.host.assert_all_released();
    });
}

#[test]
fn a_snapshot_is_not_freed_while_a_translator_uses_it() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let first = world.register(0, 1);
        let mut translator = world.space.translator();
        let host = world.host.clone();
        let reader = thread::spawn(move || {
            translator.refresh();
            assert!(map_and_use(&mut translator, &host, 0));
            translator
        });
        // Far away: not in the index, so that registering it makes a new snapshot.
        let second = world.register(FAR, 1);
        let translator = reader.join().unwrap();
        second.unregister().unwrap();
        first.unregister().unwrap();
        drop(translator);
        world.host.assert_all_released();
    });
}
