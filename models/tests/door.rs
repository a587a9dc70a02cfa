//! The door alone: what each of its orderings is for, where an address space orders the same by other means too.
#![cfg(loom)]
#![expect(unsafe_code, reason = "the protected memory is a loom cell")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicI64, Ordering, fence};
use loom::thread;
use prereg::primitives::{Door, Entered, FenceMode};
use prereg_models::explore_to;

/// A slot: its door, a count for each thread, and the memory behind it.
struct Slot {
    door: Door,
    counts: [AtomicI64; 3],
    memory: UnsafeCell<u64>,
}

// SAFETY: access to the cell is what the door, and loom, watch over.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

impl Slot {
    /// With a closed door.
    fn new() -> Arc<Self> {
        let counts = [AtomicI64::new(0), AtomicI64::new(0), AtomicI64::new(0)];
        Arc::new(Self { door: Door::new(), counts, memory: UnsafeCell::new(1) })
    }

    /// With an open door.
    fn open() -> Arc<Self> {
        let slot = Self::new();
        slot.door.open();
        slot
    }

    fn enter(&self, thread: usize) -> bool {
        self.door.enter(&self.counts[thread], FenceMode::Full) == Entered::In
    }

    fn sum(&self) -> i64 {
        self.counts.iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    /// Before the door is opened for the first time.
    fn make_memory(&self) {
        // SAFETY: no thread has entered yet.
        self.memory.with_mut(|memory| unsafe { *memory = 1 });
    }

    fn use_memory(&self) {
        // SAFETY: inside.
        let seen = self.memory.with(|memory| unsafe { *memory });
        assert_eq!(seen, 1, "used after the release");
    }

    fn release(&self) {
        // SAFETY: closed, and no thread is inside.
        self.memory.with_mut(|memory| unsafe { *memory = 0 });
    }
}

#[test]
fn entering_sees_what_was_made_before_the_door_was_opened() {
    explore_to(3, || {
        let slot = Slot::new();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                if slot.enter(0) {
                    slot.use_memory();
                    Door::leave(&slot.counts[0]);
                }
            })
        };
        slot.make_memory();
        slot.door.open();
        reader.join().unwrap();
    });
}

#[test]
fn a_refused_close_opens_the_door_as_it_was_opened_before() {
    explore_to(3, || {
        let slot = Slot::new();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                // Not as usual: it looks without a unit, so that it finds the door OPEN or not at all.
                if slot.door.enter_open(&slot.counts[0], FenceMode::Full) {
                    slot.use_memory();
                }
            })
        };
        slot.make_memory();
        slot.door.open();
        slot.door.announce();
        assert_eq!(slot.door.decide(1), Err(1));
        reader.join().unwrap();
    });
}

#[test]
fn a_shared_leave_orders_the_use_before_the_release() {
    explore_to(3, || {
        let slot = Slot::open();
        assert!(slot.enter(0));
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
fn finding_a_draining_door_shows_what_was_noted_before() {
    explore_to(3, || {
        let slot = Slot::open();
        assert!(slot.enter(0));
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
fn entering_a_door_that_is_closing_sees_what_was_made_before_it_was_opened() {
    explore_to(3, || {
        let slot = Slot::new();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                // May look while the door is CLOSED still, and find it CLOSING at the second look.
                if slot.enter(0) {
                    slot.use_memory();
                    Door::leave(&slot.counts[0]);
                }
            })
        };
        slot.make_memory();
        slot.door.open();
        if slot.door.try_close(|| fence(Ordering::SeqCst), || slot.sum()).is_ok() {
            slot.release();
        }
        reader.join().unwrap();
    });
}

#[test]
fn taking_a_unit_back_orders_the_uses_before_it() {
    explore_to(3, || {
        let slot = Slot::open();
        assert!(slot.enter(0));
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                slot.use_memory();
                Door::leave(&slot.counts[0]);
                // Without a fence, as in asymmetric mode, where the processor may reorder: a fence would order the use too.
                slot.counts[0].store(1, Ordering::Relaxed);
                if slot.door.enter_closing(&slot.counts[0]) == Entered::In {
                    Door::leave(&slot.counts[0]);
                }
            })
        };
        slot.door.drain();
        fence(Ordering::SeqCst);
        if slot.sum() == 0 {
            slot.release();
        }
        reader.join().unwrap();
    });
}
