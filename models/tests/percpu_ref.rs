//! `PercpuRef` alone: a model for each of its orderings that an address space would hide behind others.
#![cfg(loom)]
#![expect(unsafe_code, reason = "the protected memory is a loom cell")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicI64, Ordering, fence};
use loom::thread;
use prereg::primitives::{EnterResult, FenceMode, PercpuRef};
use prereg_models::explore_to;

/// A slot: its ref, a counter for each thread, and the memory it protects.
struct Slot {
    percpu_ref: PercpuRef,
    counts: [AtomicI64; 3],
    memory: UnsafeCell<u64>,
}

// SAFETY: the ref orders accesses to the cell, and loom checks it.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

impl Slot {
    /// With a closed ref.
    fn new() -> Arc<Self> {
        let counts = [AtomicI64::new(0), AtomicI64::new(0), AtomicI64::new(0)];
        Arc::new(Self { percpu_ref: PercpuRef::new(), counts, memory: UnsafeCell::new(1) })
    }

    /// With an open ref.
    fn open() -> Arc<Self> {
        let slot = Self::new();
        slot.percpu_ref.open();
        slot
    }

    fn enter(&self, thread: usize) -> bool {
        self.percpu_ref.enter(&self.counts[thread], FenceMode::Full) == EnterResult::Entered
    }

    fn sum(&self) -> i64 {
        self.counts.iter().map(|count| count.load(Ordering::Acquire)).sum()
    }

    /// Before the ref is opened for the first time.
    fn make_memory(&self) {
        // SAFETY: no thread has entered yet.
        self.memory.with_mut(|memory| unsafe { *memory = 1 });
    }

    fn use_memory(&self) {
        // SAFETY: a unit is held.
        let seen = self.memory.with(|memory| unsafe { *memory });
        assert_eq!(seen, 1, "used after the release");
    }

    fn release(&self) {
        // SAFETY: closed, and no unit is held.
        self.memory.with_mut(|memory| unsafe { *memory = 0 });
    }
}

#[test]
fn entering_sees_what_was_made_before_the_percpu_ref_was_opened() {
    explore_to(3, || {
        let slot = Slot::new();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                if slot.enter(0) {
                    slot.use_memory();
                    PercpuRef::leave(&slot.counts[0]);
                }
            })
        };
        slot.make_memory();
        slot.percpu_ref.open();
        reader.join().unwrap();
    });
}

#[test]
fn a_refused_close_opens_the_percpu_ref_as_it_was_opened_before() {
    explore_to(3, || {
        let slot = Slot::new();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                // Unlike a reader: no second attempt, so that it enters only a ref that it finds OPEN.
                if slot.percpu_ref.enter_open(&slot.counts[0], FenceMode::Full) {
                    slot.use_memory();
                }
            })
        };
        slot.make_memory();
        slot.percpu_ref.open();
        slot.percpu_ref.begin_close();
        assert_eq!(slot.percpu_ref.finish_close(1), Err(1));
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
                let _ = slot.percpu_ref.leave_shared(&slot.counts[2]);
            })
        };
        slot.percpu_ref.drain();
        fence(Ordering::SeqCst);
        if slot.sum() == 0 {
            slot.release();
        }
        holder.join().unwrap();
    });
}

#[test]
fn finding_a_draining_percpu_ref_shows_what_was_noted_before() {
    explore_to(3, || {
        let slot = Slot::open();
        assert!(slot.enter(0));
        // As the engine's number of draining regions: its Relaxed store is ordered by the ref.
        let draining = Arc::new(AtomicI64::new(0));
        let holder = {
            let (slot, draining) = (slot.clone(), draining.clone());
            thread::spawn(move || {
                if slot.percpu_ref.leave_shared(&slot.counts[2]) {
                    assert_eq!(draining.load(Ordering::Relaxed), 1, "the caller would not look");
                }
            })
        };
        draining.store(1, Ordering::Relaxed);
        slot.percpu_ref.drain();
        holder.join().unwrap();
    });
}

#[test]
fn entering_a_percpu_ref_that_is_closing_sees_what_was_made_before_it_was_opened() {
    explore_to(3, || {
        let slot = Slot::new();
        let reader = {
            let slot = slot.clone();
            thread::spawn(move || {
                // The first load may find CLOSED and the exchange CLOSING.
                if slot.enter(0) {
                    slot.use_memory();
                    PercpuRef::leave(&slot.counts[0]);
                }
            })
        };
        slot.make_memory();
        slot.percpu_ref.open();
        if slot.percpu_ref.try_close(|| fence(Ordering::SeqCst), || slot.sum()).is_ok() {
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
                PercpuRef::leave(&slot.counts[0]);
                // Without a fence, as in asymmetric mode, where the processor may reorder: a fence would order the use too.
                slot.counts[0].store(1, Ordering::Relaxed);
                if slot.percpu_ref.enter_closing(&slot.counts[0]) == EnterResult::Entered {
                    PercpuRef::leave(&slot.counts[0]);
                }
            })
        };
        slot.percpu_ref.drain();
        fence(Ordering::SeqCst);
        if slot.sum() == 0 {
            slot.release();
        }
        reader.join().unwrap();
    });
}
