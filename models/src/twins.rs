//! The broken twins: the gate and the publication with one flaw each.

use std::ptr;

use loom::sync::atomic::{AtomicI64, AtomicPtr, AtomicU64, Ordering, fence};

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

/// What is wrong with a [`DoorTwin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// The entering side counts and looks without a fence between.
    NoEnteringFence,
    /// The closing side announces and sums without a fence between.
    NoClosingFence,
    /// Giving a unit back orders nothing.
    RelaxedLeave,
    /// The entering side looks at the door before it counts.
    LookFirst,
    /// The closing side believes the plain sum.
    EarlyFree,
    /// A unit that meets a close being decided is taken back, not defended.
    UndoAtOnce,
}

/// A door with a flaw.
#[derive(Debug)]
pub struct DoorTwin {
    state: AtomicU64,
    flaw: Flaw,
}

const SHUT: u64 = 0;
const OPEN: u64 = 1;
const CLOSING: u64 = 2;

impl DoorTwin {
    /// An open door with `flaw`.
    #[must_use]
    pub fn new(flaw: Flaw) -> Self {
        Self { state: AtomicU64::new(OPEN), flaw }
    }

    /// Takes a unit, but for the flaw as the real door does.
    pub fn enter(&self, count: &AtomicI64) -> bool {
        if self.flaw == Flaw::LookFirst {
            let open = self.state.load(Ordering::Acquire) == OPEN;
            if open {
                count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            return open;
        }
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if self.flaw != Flaw::NoEnteringFence {
            fence(Ordering::SeqCst);
        }
        if self.state.load(Ordering::Acquire) == OPEN {
            return true;
        }
        if self.flaw != Flaw::UndoAtOnce
            && matches!(
                self.state.compare_exchange(CLOSING, OPEN, Ordering::AcqRel, Ordering::Acquire),
                Ok(_) | Err(OPEN)
            )
        {
            return true;
        }
        count.store(count.load(Ordering::Relaxed) - 1, Ordering::Release);
        false
    }

    /// Gives a unit back, but for the flaw as the real door does.
    pub fn leave(&self, count: &AtomicI64) {
        let order = if self.flaw == Flaw::RelaxedLeave { Ordering::Relaxed } else { Ordering::Release };
        count.store(count.load(Ordering::Relaxed) - 1, order);
    }

    /// Closes, but for the flaw as the real door does.
    pub fn try_close(&self, sum: impl Fn() -> i64) -> bool {
        if sum() != 0 {
            return false;
        }
        if self.flaw == Flaw::EarlyFree {
            self.state.store(SHUT, Ordering::Release);
            return true;
        }
        self.state.store(CLOSING, Ordering::Relaxed);
        if self.flaw != Flaw::NoClosingFence {
            fence(Ordering::SeqCst);
        }
        let verdict = if sum() == 0 { SHUT } else { OPEN };
        self.state.compare_exchange(CLOSING, verdict, Ordering::AcqRel, Ordering::Acquire).is_ok()
            && verdict == SHUT
    }
}
