//! Table entries: two threads that change one, and units that an entry owns.

use std::sync::Arc;

use loom::thread;
use prereg::{Access, EntryBlock, Holder, HolderKind, MapError, PageShift};
use prereg_models::explore;
use prereg_models::world::{Fences, World, map_and_use, page};

/// The holder of the blocks' units, where it is not the translators'.
const TABLE: Holder = Holder { container: 1, kind: HolderKind::TableEntry };

fn block(world: &World, holder: Holder) -> Arc<EntryBlock> {
    Arc::new(EntryBlock::new(&world.space, PageShift::K4, 1, holder).unwrap())
}

#[test]
fn of_two_threads_that_set_an_entry_one_finds_the_others() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 2);
        let block = block(&world, Holder::default());
        let mut mine = world.space.translator();
        let mut other = world.space.translator();
        let shared = block.clone();
        let thread = thread::spawn(move || {
            let before = shared.set(&mut other, 0, page(0), Access::Read);
            (other, before)
        });
        let before = block.set(&mut mine, 0, page(1), Access::Write);
        let (other, before_other) = thread.join().unwrap();
        match (before, before_other) {
            (Ok(None), Ok(Some(Access::Write))) | (Ok(Some(Access::Read)), Ok(None)) => {}
            (Ok(None), Err(MapError::Contended)) | (Err(MapError::Contended), Ok(None)) => {
                return abandon((block, registration, world, mine, other));
            }
            wrong => panic!("{wrong:?}"),
        }
        assert_eq!(registration.state().unwrap().mapped, 1, "one entry, one unit");
        drop(block);
        registration.unregister().unwrap();
        drop((mine, other));
        world.host.assert_all_released();
    });
}

#[test]
fn an_entry_is_cleared_and_set_at_once() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 2);
        let block = block(&world, Holder::default());
        let mut mine = world.space.translator();
        let mut other = world.space.translator();
        block.set(&mut mine, 0, page(0), Access::Read).unwrap();
        let shared = block.clone();
        let thread = thread::spawn(move || {
            let before = shared.set(&mut other, 0, page(1), Access::Write);
            (other, before)
        });
        let cleared = block.clear(&mut mine, 0);
        let (other, before) = thread.join().unwrap();
        match (cleared, before) {
            (Ok(Some(Access::Read)), Ok(None)) => assert_eq!(block.access(0), Some(Access::Write)),
            (Ok(Some(Access::Write)), Ok(Some(Access::Read))) => assert_eq!(block.access(0), None),
            (Err(MapError::Contended), _) | (_, Err(MapError::Contended)) => {
                return abandon((block, registration, world, mine, other));
            }
            wrong => panic!("{wrong:?}"),
        }
        drop(block);
        registration.unregister().unwrap();
        drop((mine, other));
        world.host.assert_all_released();
    });
}

/// Ends an execution in which the lock of an entry was found taken.
///
/// Its taker then exchanged BUSY for BUSY, and the holder stores the unit later. Loom does not order the two, as the language
/// does (nothing comes between an exchange and the value it read), so from here on it might read BUSY for ever.
fn abandon<T>(everything: T) {
    std::mem::forget(everything);
}

/// A page that is put into an entry, or the last unregister: one of them succeeds.
fn set_or_unregister(holder: Holder) {
    explore(move || {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let block = block(&world, holder);
        let mut translator = world.space.translator();
        let shared = block.clone();
        let thread = thread::spawn(move || {
            let set = shared.set(&mut translator, 0, page(0), Access::ReadWrite).is_ok();
            (translator, set)
        });
        let refused = registration.unregister().err();
        let (mut translator, set) = thread.join().unwrap();
        assert_ne!(set, refused.is_none(), "an entry and the last unregister: both, or neither");
        if let Some(refused) = refused {
            assert_eq!(block.clear(&mut translator, 0), Ok(Some(Access::ReadWrite)));
            refused.into_inner().unregister().unwrap();
        }
        drop((block, translator));
        world.host.assert_all_released();
    });
}

#[test]
fn a_set_entry_or_the_last_unregister() {
    set_or_unregister(Holder::default());
}

#[test]
fn an_entry_whose_unit_is_transferred_or_the_last_unregister() {
    set_or_unregister(TABLE);
}

#[test]
fn an_entry_is_cleared_while_a_device_takes_it() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let block = block(&world, TABLE);
        let mut mine = world.space.translator();
        let mut other = world.space.translator();
        block.set(&mut mine, 0, page(0), Access::ReadWrite).unwrap();
        let (shared, host) = (block.clone(), world.host.clone());
        let thread = thread::spawn(move || {
            let taken = shared.hold_mapping(&mut other, 0);
            let contended = matches!(taken, Err(MapError::Contended));
            if let Some((mapping, access)) = taken.ok().flatten() {
                assert_eq!(access, Access::ReadWrite);
                host.use_page(mapping.hpa());
                other.unmap(mapping);
            }
            (other, contended)
        });
        let cleared = block.clear(&mut mine, 0);
        let refused = registration.unregister().err();
        let (other, contended) = thread.join().unwrap();
        if contended || cleared == Err(MapError::Contended) {
            return abandon((block, refused, world, mine, other));
        }
        if let Some(refused) = refused {
            refused.into_inner().unregister().unwrap();
        }
        drop((block, mine, other));
        world.host.assert_all_released();
    });
}

#[test]
fn the_later_of_a_block_and_the_registration_releases() {
    explore(|| {
        let world = World::new(Fences::Asymmetric);
        let registration = world.register(0, 1);
        let block = block(&world, TABLE);
        let mut translator = world.space.translator();
        block.set(&mut translator, 0, page(0), Access::Read).unwrap();
        let thread = thread::spawn(move || drop(block));
        drop(registration);
        thread.join().unwrap();
        world.host.assert_all_released();
        assert!(!map_and_use(&mut translator, &world.host, 0));
    });
}
