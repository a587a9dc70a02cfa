//! The door: readers with counts of their own against the one that closes, drains or reopens.
#![cfg(loom)]
#![expect(unsafe_code, reason = "the protected memory is a loom cell")]
#![expect(clippy::unwrap_used, reason = "a test says by panicking")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicI64, Ordering, fence};
use loom::thread;
use prereg::door::{Door, Entered, Light};
use prereg_models::explore;
use prereg_models::twins::{DoorTwin, Flaw};

/// What the model needs of a door, so that the twins run the same models.
trait Closable: Send + Sync + 'static {
    fn enter(&self, count: &AtomicI64) -> bool;
    fn leave(&self, count: &AtomicI64);
    fn try_close(&self, sum: impl Fn() -> i64) -> bool;
}

impl Closable for Door {
    fn enter(&self, count: &AtomicI64) -> bool {
        Door::enter(self, count, Light::Full) == Entered::In
    }
    fn leave(&self, count: &AtomicI64) {
        Door::leave(count);
    }
    fn try_close(&self, sum: impl Fn() -> i64) -> bool {
        Door::try_close(self, || fence(Ordering::SeqCst), sum).is_ok()
    }
}

impl Closable for DoorTwin {
    fn enter(&self, count: &AtomicI64) -> bool {
        DoorTwin::enter(self, count)
    }
    fn leave(&self, count: &AtomicI64) {
        DoorTwin::leave(self, count);
    }
    fn try_close(&self, sum: impl Fn() -> i64) -> bool {
        DoorTwin::try_close(self, sum)
    }
}

/// A slot: its door, a count for each thread, and the memory behind it.
struct Slot<D> {
    door: D,
    counts: [AtomicI64; 3],
    memory: UnsafeCell<u64>,
}

// SAFETY: access to the cell is what the door, and loom, watch over.
unsafe impl<D: Sync> Sync for Slot<D> {}
// SAFETY: as above.
unsafe impl<D: Send> Send for Slot<D> {}

impl<D> Slot<D> {
    fn new(door: D) -> Arc<Self> {
        let counts = [AtomicI64::new(0), AtomicI64::new(0), AtomicI64::new(0)];
        Arc::new(Self { door, counts, memory: UnsafeCell::new(1) })
    }

    fn sum(&self) -> i64 {
        self.counts.iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    fn use_memory(&self) {
        // SAFETY: inside.
        let seen = self.memory.with(|memory| unsafe { *memory });
        assert_eq!(seen, 1, "used after the release");
    }

    fn release(&self) {
        // SAFETY: closed, and nobody is inside.
        self.memory.with_mut(|memory| unsafe { *memory = 0 });
    }
}

fn open() -> Door {
    let door = Door::new();
    door.open();
    door
}

/// `readers` map and unmap once each while the last unregister runs.
fn race<D: Closable>(door: D, readers: usize) {
    let slot = Slot::new(door);
    let threads: Vec<_> = (0..readers)
        .map(|reader| {
            let slot = slot.clone();
            thread::spawn(move || {
                let count = &slot.counts[reader];
                let entered = slot.door.enter(count);
                if entered {
                    slot.use_memory();
                    slot.door.leave(count);
                }
                entered
            })
        })
        .collect();
    let closed = slot.door.try_close(|| slot.sum());
    if closed {
        slot.release();
    }
    let entered = threads.into_iter().map(|thread| thread.join().unwrap()).filter(|&entered| entered).count();
    assert!(closed || entered > 0, "the close was refused, and nobody was inside");
    if !closed {
        assert!(slot.door.try_close(|| slot.sum()), "everybody left, and the close is still refused");
    }
    assert_eq!(slot.sum(), 0);
}

#[test]
fn two_readers_against_the_last_unregister() {
    explore(|| race(open(), 2));
}

#[test]
fn a_unit_that_crosses_threads() {
    explore(|| {
        let slot = Slot::new(open());
        // Taken here, given back by another thread: two counts, +1 and -1.
        assert!(Closable::enter(&slot.door, &slot.counts[0]));
        slot.use_memory();
        let other = {
            let slot = slot.clone();
            thread::spawn(move || {
                slot.use_memory();
                Closable::leave(&slot.door, &slot.counts[1]);
            })
        };
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                if Closable::enter(&slot.door, &slot.counts[2]) {
                    slot.use_memory();
                    Closable::leave(&slot.door, &slot.counts[2]);
                }
            })
        };
        if Closable::try_close(&slot.door, || slot.sum()) {
            slot.release();
        }
        other.join().unwrap();
        reader.join().unwrap();
        assert_eq!(slot.sum(), 0);
    });
}

#[test]
fn a_translator_that_goes_folds_its_units_under_the_lock() {
    explore(|| {
        let slot = Slot::new(open());
        let books = Arc::new(loom::sync::Mutex::new(()));
        assert!(Closable::enter(&slot.door, &slot.counts[0]));
        let translator = {
            let (slot, books) = (slot.clone(), books.clone());
            thread::spawn(move || {
                let _locked = books.lock().unwrap();
                // Into the house, which is count 2; the unit is outstanding all the while.
                let units = slot.counts[0].swap(0, Ordering::Relaxed);
                slot.counts[2].fetch_add(units, Ordering::Release);
            })
        };
        {
            let _locked = books.lock().unwrap();
            assert!(!Closable::try_close(&slot.door, || slot.sum()), "a unit is out");
        }
        translator.join().unwrap();
        slot.use_memory();
        slot.door.leave_shared(&slot.counts[2]);
        assert!(Closable::try_close(&slot.door, || slot.sum()));
    });
}

#[test]
fn whoever_leaves_a_draining_door_last_and_shared_looks_and_finds_nobody_inside() {
    explore(|| {
        let slot = Slot::new(open());
        assert!(Closable::enter(&slot.door, &slot.counts[0]));
        let holder = {
            let slot = slot.clone();
            thread::spawn(move || {
                slot.use_memory();
                // Dropped without a translator: the unit goes back into a count that anybody may write.
                slot.door.leave_shared(&slot.counts[2]) && slot.sum() == 0
            })
        };
        slot.door.drain();
        fence(Ordering::SeqCst);
        let released = slot.sum() == 0;
        let seen = holder.join().unwrap();
        assert!(released || seen, "nobody will ever release it");
        slot.release();
    });
}

#[test]
fn a_drain_that_looks_again_releases_after_the_last_use() {
    explore(|| {
        let slot = Slot::new(open());
        assert!(Closable::enter(&slot.door, &slot.counts[0]));
        let holder = {
            let slot = slot.clone();
            thread::spawn(move || {
                slot.use_memory();
                Closable::leave(&slot.door, &slot.counts[0]);
            })
        };
        let latecomer = {
            let slot = slot.clone();
            thread::spawn(move || {
                if Closable::enter(&slot.door, &slot.counts[1]) {
                    slot.use_memory();
                    Closable::leave(&slot.door, &slot.counts[1]);
                }
            })
        };
        slot.door.drain();
        fence(Ordering::SeqCst);
        // Two looks, without a fence between them: each may find nobody, and is right if it does.
        let released = slot.sum() == 0 || slot.sum() == 0;
        if released {
            slot.door.close();
            slot.release();
        }
        holder.join().unwrap();
        latecomer.join().unwrap();
        assert_eq!(slot.sum(), 0, "a look after everybody left finds nobody");
    });
}

/// Memory made before the door of its slot is opened: written by the thread that opens, read by those that enter.
fn closed_slot() -> Arc<Slot<Door>> {
    Slot::new(Door::new())
}

#[test]
fn whoever_enters_sees_what_was_made_before_the_door_was_opened() {
    explore(|| {
        let slot = closed_slot();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                if Closable::enter(&slot.door, &slot.counts[0]) {
                    slot.use_memory();
                    Closable::leave(&slot.door, &slot.counts[0]);
                }
            })
        };
        // SAFETY: nobody enters yet.
        slot.memory.with_mut(|memory| unsafe { *memory = 1 });
        slot.door.open();
        reader.join().unwrap();
    });
}

#[test]
fn a_refused_close_opens_the_door_as_it_was_opened_before() {
    explore(|| {
        let slot = closed_slot();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                // Not as usual: it looks without a unit, so that it finds the door OPEN or not at all.
                if slot.door.enter_open(&slot.counts[0], Light::Full) {
                    slot.use_memory();
                }
            })
        };
        // SAFETY: nobody enters yet.
        slot.memory.with_mut(|memory| unsafe { *memory = 1 });
        slot.door.open();
        slot.door.announce();
        assert_eq!(slot.door.decide(1), Err(1));
        reader.join().unwrap();
    });
}

#[test]
fn a_shared_leave_orders_the_use_before_the_release() {
    explore(|| {
        let slot = Slot::new(open());
        assert!(Closable::enter(&slot.door, &slot.counts[0]));
        let holder = {
            let slot = slot.clone();
            thread::spawn(move || {
                slot.use_memory();
                let _ = slot.door.leave_shared(&slot.counts[2]);
            })
        };
        slot.door.drain();
        fence(Ordering::SeqCst);
        if slot.sum() == 0 {
            slot.release();
        }
        holder.join().unwrap();
    });
}

#[test]
fn whoever_finds_a_draining_door_sees_what_was_noted_before() {
    explore(|| {
        let slot = Slot::new(open());
        assert!(Closable::enter(&slot.door, &slot.counts[0]));
        // As the engine's number of draining regions: what is Relaxed there is ordered by the door.
        let draining = Arc::new(AtomicI64::new(0));
        let holder = {
            let (slot, draining) = (slot.clone(), draining.clone());
            thread::spawn(move || {
                if slot.door.leave_shared(&slot.counts[2]) {
                    assert_eq!(draining.load(Ordering::Relaxed), 1, "the caller would not look");
                }
            })
        };
        draining.store(1, Ordering::Relaxed);
        slot.door.drain();
        holder.join().unwrap();
    });
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_twin_without_the_entering_fence_is_caught() {
    explore(|| race(DoorTwin::new(Flaw::NoEnteringFence), 1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_twin_without_the_closing_fence_is_caught() {
    explore(|| race(DoorTwin::new(Flaw::NoClosingFence), 1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_twin_with_a_relaxed_leave_is_caught() {
    explore(|| race(DoorTwin::new(Flaw::RelaxedLeave), 1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_twin_that_looks_before_it_counts_is_caught() {
    explore(|| race(DoorTwin::new(Flaw::LookFirst), 1));
}

#[test]
#[should_panic(expected = "Causality violation")]
fn broken_twin_that_frees_after_the_plain_sum_is_caught() {
    explore(|| race(DoorTwin::new(Flaw::EarlyFree), 1));
}

#[test]
#[should_panic(expected = "nobody was inside")]
fn broken_twin_that_takes_its_unit_back_at_once_is_caught() {
    explore(|| race(DoorTwin::new(Flaw::UndoAtOnce), 1));
}
