//! A reference count that can be closed, in one word: rundown protection, as Windows calls it.
//!
//! Users `enter` and `leave`; the owner closes. It costs an atomic exchange on each side, where
//! [`PercpuRef`](crate::sync::percpu_ref) costs a store. Other crates count I/O in flight with it.
//!
//! ```text
//!            enter/leave                      leave
//!          +------------+                  +---------+
//!          v            |                  v         |
//!        open(n) -------+  close_and_drain closed(n>0)
//!          |  ^ ---------------------------->  |  |
//!   try_   |  |          reopen (n > 0)        |  | leave of the last
//!   close, |  +--------------------------------+  |
//!   n == 0 +-----------> closed(0) <--------------+
//! ```
//!
//! `closed(0)` is final: no enter, leave or reopen succeeds. Exactly one call makes the step to it and returns so; only
//! that caller may release what the ref protects. So a release happens once, and never while a unit is held.
//!
//! One word holds the count and the closed bit, so every step is one atomic read-modify-write and all steps have one order.

use crate::errno::Errno;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Set in the word once the ref is closed; the other bits are the count. 2^63 units cannot be counted one by one.
const CLOSED: u64 = 1 << 63;

/// A reference count that can be closed.
///
/// # Examples
/// ```
/// use prereg::{RundownRef, Busy, LeaveResult};
///
/// let rundown = RundownRef::new();
/// rundown.enter().unwrap();
/// assert_eq!(rundown.try_close(), Err(Busy(1)));   // refused, nothing changed
/// assert_eq!(rundown.leave(), Ok(LeaveResult::Others));
/// assert_eq!(rundown.try_close(), Ok(()));           // closed for good
/// assert!(rundown.enter().is_err());
/// ```
#[derive(Debug)]
pub struct RundownRef {
    word: AtomicU64,
}

/// The rundown is closed. ENXIO.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("closed: the object it protects is being released")]
pub struct Closed;

crate::debug_as_display!(Closed);

impl Closed {
    /// ENXIO.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENXIO
    }
}

/// The units held when a ref could not be closed. EBUSY.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} units are still held")]
pub struct Busy(pub u64);

crate::debug_as_display!(Busy);

impl Busy {
    /// EBUSY.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EBUSY
    }
}

/// A `leave` without an `enter`: an accounting error of the caller. Nothing changed. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no unit is held: one was released twice")]
pub struct RefUnderflow;

crate::debug_as_display!(RefUnderflow);

impl RefUnderflow {
    /// EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

/// The result of a `leave`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum LeaveResult {
    /// The ref is open, or other units are held.
    Others,
    /// The ref is closed and this was the last unit: the caller must release the object.
    Last,
}

/// The result of a `close_and_drain`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum DrainResult {
    /// No unit was held: the caller must release the object.
    Empty,
    /// Units held; the `leave` of the last one returns [`LeaveResult::Last`].
    Waiting(u64),
    /// It was closed before; another caller releases the object.
    Already,
}

impl Default for RundownRef {
    fn default() -> Self {
        Self::new()
    }
}

impl RundownRef {
    /// An open ref with no units.
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Adds a unit, unless the ref is closed.
    ///
    /// # Errors
    /// [`Closed`]; the count is unchanged.
    #[inline]
    pub fn enter(&self) -> Result<(), Closed> {
        // Relaxed: a first guess; the exchange below is what counts.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & CLOSED != 0 {
                return Err(Closed);
            }
            // Acquire pairs with the Release of `reopen`: a thread that enters a reopened ref sees what was done while
            // it was closed. The order on this word decides against `try_close`: if ours is first, the close finds a
            // count; if theirs is first, this exchange finds CLOSED.
            match self.word.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Releases a unit.
    ///
    /// # Errors
    /// [`RefUnderflow`] when no unit is held; the count never goes below zero, and a closed ref stays closed
    /// (docs/specification.md B11).
    #[inline]
    pub fn leave(&self) -> Result<LeaveResult, RefUnderflow> {
        // Relaxed: a first guess.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & !CLOSED == 0 {
                return Err(RefUnderflow);
            }
            // Release pairs with the Acquire of the step to closed(0), in `try_close` or another `leave`: all uses
            // under a unit happen before the release. Acquire is for the case that this is that step.
            match self.word.compare_exchange_weak(word, word - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if word == CLOSED + 1 => return Ok(LeaveResult::Last),
                Ok(_) => return Ok(LeaveResult::Others),
                Err(now) => word = now,
            }
        }
    }

    /// Closes for good if no unit is held.
    ///
    /// # Errors
    /// [`Busy`] with the count; the ref stays open. A ref that is closed already reports the units left, perhaps 0.
    pub fn try_close(&self) -> Result<(), Busy> {
        // Acquire pairs with the Release of every `leave`: the release that follows comes after all uses. Not Release:
        // the step leads to closed(0), which is final, and a reader that finds the ref closed learns nothing else.
        // Failure is Relaxed: nothing follows from it.
        match self.word.compare_exchange(0, CLOSED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(word) => Err(Busy(word & !CLOSED)),
        }
    }

    /// Lets no new unit enter. The `leave` of the last unit returns [`LeaveResult::Last`]; without units this returns
    /// [`DrainResult::Empty`].
    pub fn close_and_drain(&self) -> DrainResult {
        // Acquire as in `try_close`. Release pairs with the Acquire of the last `leave`, which releases the object: it
        // sees what was done before the ref was closed.
        let word = self.word.fetch_or(CLOSED, Ordering::AcqRel);
        if word & CLOSED != 0 {
            DrainResult::Already
        } else if word == 0 {
            DrainResult::Empty
        } else {
            DrainResult::Waiting(word)
        }
    }

    /// Opens a draining ref again while a unit is held. `false` when it is open or already empty: a ref that reached
    /// closed(0) belongs to the caller that made that step.
    pub fn reopen(&self) -> bool {
        // Relaxed: a first guess.
        let mut word = self.word.load(Ordering::Relaxed);
        while word & CLOSED != 0 && word != CLOSED {
            // Release pairs with the Acquire of `enter`.
            match self.word.compare_exchange_weak(word, word & !CLOSED, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }

    /// Units held at some moment during the call.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Relaxed: for reports only; nothing is decided by it.
        self.word.load(Ordering::Relaxed) & !CLOSED
    }

    /// Whether the ref is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Relaxed: a hint; `enter` decides.
        self.word.load(Ordering::Relaxed) & CLOSED != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn try_close_refuses_while_one_is_inside_and_changes_nothing() {
        let rundown = RundownRef::new();
        rundown.enter().unwrap();
        assert_eq!(rundown.try_close(), Err(Busy(1)));
        rundown.enter().unwrap();
        assert_eq!(rundown.count(), 2);
        assert_eq!(rundown.leave(), Ok(LeaveResult::Others));
        assert_eq!(rundown.leave(), Ok(LeaveResult::Others));
        assert_eq!(rundown.try_close(), Ok(()));
        assert_eq!(rundown.enter(), Err(Closed));
        assert_eq!(rundown.try_close(), Err(Busy(0)));
    }

    #[test]
    fn a_leave_too_many_is_reported_open_and_closed() {
        let rundown = RundownRef::new();
        assert_eq!(rundown.leave(), Err(RefUnderflow));
        assert_eq!(rundown.try_close(), Ok(()));
        assert_eq!(rundown.leave(), Err(RefUnderflow));
        assert_eq!(rundown.enter(), Err(Closed));
    }

    #[test]
    fn the_last_to_leave_a_draining_rundown_ref_is_told() {
        let rundown = RundownRef::new();
        rundown.enter().unwrap();
        rundown.enter().unwrap();
        assert_eq!(rundown.close_and_drain(), DrainResult::Waiting(2));
        assert_eq!(rundown.close_and_drain(), DrainResult::Already);
        assert_eq!(rundown.enter(), Err(Closed));
        assert_eq!(rundown.leave(), Ok(LeaveResult::Others));
        assert_eq!(rundown.leave(), Ok(LeaveResult::Last));
        assert!(!rundown.reopen());
        assert_eq!(RundownRef::new().close_and_drain(), DrainResult::Empty);
    }

    #[test]
    fn a_draining_rundown_ref_reopens_only_while_somebody_is_inside() {
        let rundown = RundownRef::new();
        assert!(!rundown.reopen());
        rundown.enter().unwrap();
        assert_eq!(rundown.close_and_drain(), DrainResult::Waiting(1));
        assert!(rundown.reopen());
        rundown.enter().unwrap();
        assert_eq!(rundown.count(), 2);
        assert_eq!(rundown.leave(), Ok(LeaveResult::Others));
        assert_eq!(rundown.leave(), Ok(LeaveResult::Others));
        assert_eq!(rundown.try_close(), Ok(()));
        assert!(!rundown.reopen());
    }
}
