//! The broken twins: the gate and the publication with one flaw each.

use std::ptr;

use loom::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

/// Bit 63 closes, the rest counts, as in the real gate.
pub const CLOSED: u64 = 1 << 63;

/// A gate whose `leave` is Relaxed: nothing orders what was done inside before the release.
#[derive(Debug)]
pub struct RelaxedLeave {
    word: AtomicU64,
}

impl Default for RelaxedLeave {
    fn default() -> Self {
        Self { word: AtomicU64::new(0) }
    }
}

impl RelaxedLeave {
    /// As in the real gate.
    pub fn enter(&self) -> bool {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & CLOSED == 0 {
            match self.word.compare_exchange(word, word + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// The flaw.
    pub fn leave(&self) {
        self.word.fetch_sub(1, Ordering::Relaxed);
    }

    /// As in the real gate.
    pub fn try_close(&self) -> bool {
        self.word.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// A gate that looks at the flag and counts in two steps.
#[derive(Debug)]
pub struct TwoSteps {
    closed: AtomicU64,
    count: AtomicU64,
}

impl Default for TwoSteps {
    fn default() -> Self {
        Self { closed: AtomicU64::new(0), count: AtomicU64::new(0) }
    }
}

impl TwoSteps {
    /// The flaw: the close may come between the look and the count.
    pub fn enter(&self) -> bool {
        if self.closed.load(Ordering::SeqCst) != 0 {
            return false;
        }
        self.count.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// Gives one back.
    pub fn leave(&self) {
        self.count.fetch_sub(1, Ordering::SeqCst);
    }

    /// Closes when nobody is counted.
    pub fn try_close(&self) -> bool {
        if self.count.load(Ordering::SeqCst) != 0 {
            return false;
        }
        self.closed.store(1, Ordering::SeqCst);
        true
    }
}

/// Publication whose reader does not put a fence between naming a value and looking again.
#[derive(Debug)]
pub struct NoFence<T> {
    /// The current value.
    pub current: AtomicPtr<T>,
    /// The one reader's seat.
    pub seat: AtomicPtr<T>,
}

impl<T> NoFence<T> {
    /// Publishes the first value.
    pub fn new(value: *mut T) -> Self {
        Self { current: AtomicPtr::new(value), seat: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The flaw: no fence.
    pub fn refresh(&self) -> *mut T {
        let mut value = self.current.load(Ordering::Relaxed);
        for _ in 0..2 {
            self.seat.store(value, Ordering::Release);
            let now = self.current.load(Ordering::Acquire);
            if ptr::eq(now, value) {
                break;
            }
            value = now;
        }
        value
    }

    /// As in the real one: swaps, fences, looks at the seat; the old value if it may be freed.
    pub fn replace(&self, value: *mut T) -> Option<*mut T> {
        let old = self.current.swap(value, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        (!ptr::eq(self.seat.load(Ordering::Acquire), old)).then_some(old)
    }
}
