//! The stack of free slots of the C ABI: the file that ships, over slots whose memory is a loom cell.
#![cfg(loom)]
#![expect(unsafe_code, reason = "the memory of a slot is a loom cell")]

#[path = "../../crates/prereg-capi/src/free_stack.rs"]
mod free_stack;

use free_stack::FreeStack;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use prereg_models::explore_to;

struct Slot {
    below: AtomicU32,
    memory: UnsafeCell<u32>,
}

/// Slots 1, 2 and so on, all free; the last one is on top.
struct Slots {
    free: FreeStack,
    slots: Vec<Slot>,
}

// SAFETY: a slot's cell is accessed by the thread that took it, and loom checks that.
unsafe impl Sync for Slots {}
// SAFETY: as above.
unsafe impl Send for Slots {}

impl Slots {
    fn new(count: u32) -> Arc<Self> {
        let slot = || Slot { below: AtomicU32::new(0), memory: UnsafeCell::new(0) };
        let slots = Self { free: FreeStack::new(), slots: (0..count).map(|_| slot()).collect() };
        (1..=count).for_each(|number| slots.push(number));
        Arc::new(slots)
    }

    fn slot(&self, number: u32) -> &Slot {
        &self.slots[number as usize - 1]
    }

    fn pop(&self) -> Option<u32> {
        // Relaxed: as the arena reads it.
        self.free.pop(|number| self.slot(number).below.load(Ordering::Relaxed))
    }

    fn push(&self, number: u32) {
        // Relaxed: as the arena writes it.
        self.free.push(number, |below| self.slot(number).below.store(below, Ordering::Relaxed));
    }

    /// Writes the slot's memory, which loom reports if another thread has the slot too.
    fn write(&self, number: u32) {
        // SAFETY: the calling thread has taken the slot.
        self.slot(number).memory.with_mut(|memory| unsafe { *memory += 1 });
    }
}

#[test]
fn a_slot_belongs_to_one_thread_from_pop_to_push() {
    explore_to(3, || {
        let slots = Slots::new(1);
        let other = slots.clone();
        let one = thread::spawn(move || {
            if let Some(number) = other.pop() {
                other.write(number);
                other.push(number);
            }
        });
        if let Some(number) = slots.pop() {
            slots.write(number);
            slots.push(number);
        }
        one.join().unwrap();
        assert_eq!((slots.pop(), slots.pop()), (Some(1), None), "nothing lost, nothing twice");
    });
}

/// One thread reads the top and its link; the other takes both slots and returns the first one only.
#[test]
fn a_top_that_was_taken_and_returned_is_not_exchanged_with_its_old_link() {
    explore_to(3, || {
        let slots = Slots::new(2);
        let other = slots.clone();
        let one = thread::spawn(move || {
            let (Some(first), Some(second)) = (other.pop(), other.pop()) else { return None };
            other.write(second);
            other.push(first);
            Some(second)
        });
        let mine = slots.pop();
        if let Some(number) = mine {
            slots.write(number);
        }
        let held = one.join().unwrap();
        let mut all: Vec<u32> = [mine, held].into_iter().flatten().collect();
        while let Some(number) = slots.pop() {
            assert!(all.len() < 2, "a slot is in two places: {all:?} and {number}");
            all.push(number);
        }
        all.sort_unstable();
        // If the other thread found one slot only, it kept that one.
        assert!(all == [1, 2] || held.is_none() && all.len() == 1, "{all:?}");
    });
}
