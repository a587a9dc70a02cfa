//! The address space is dropped while its memory is mapped.

use loom::thread;
use prereg_models::explore;
use prereg_models::world::{Fences, World, map, map_and_use};

#[test]
fn a_page_in_use_while_the_address_space_is_dropped() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let host = world.host.clone();
        let reader = thread::spawn(move || {
            map_and_use(&mut translator, &host, 0);
            translator
        });
        let World { host, space, tables: _tables } = world;
        drop(space);
        // The last operation of the address space that is left: it releases what was unmapped after the space was dropped.
        drop(reader.join().unwrap());
        host.assert_all_released();
        drop(registration);
    });
}

/// The last mapping and the address space are dropped at once. `alone`: no handle is left that keeps the engine.
fn mapping_and_space(alone: bool) {
    explore(move || {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let mut translator = world.space.translator();
        let mapping = map(&mut translator, 0).unwrap();
        let handles = (!alone).then_some((translator, registration));
        let host = world.host.clone();
        let thread = thread::spawn(move || {
            host.use_page(mapping.hpa());
            drop(mapping);
        });
        let World { host, space, tables: _tables } = world;
        drop(space);
        thread.join().unwrap();
        host.assert_all_released();
        drop(handles);
    });
}

#[test]
fn the_later_of_the_last_mapping_and_the_address_space_releases() {
    mapping_and_space(false);
}

#[test]
fn the_later_of_the_last_mapping_and_the_address_space_releases_without_other_handles() {
    mapping_and_space(true);
}
