//! Slots that are used again and snapshots that are freed, against translators that may still know the old ones.

use loom::thread;
use prereg_models::{explore, explore_to};
use prereg_models::world::{Fences, World, map_and_use};

use crate::PREEMPTIONS;

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
        // Two regions that go make a new snapshot; the reader sits on the old one.
        second.unregister().unwrap();
        let refused = first.unregister().err();
        // The slot that came free last is taken first: the reader's, if it were free.
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
        // Far away: in no cell, so its coming makes a new snapshot.
        let second = world.register(1 << 30, 1);
        let translator = reader.join().unwrap();
        second.unregister().unwrap();
        first.unregister().unwrap();
        drop(translator);
        world.host.assert_all_released();
    });
}
