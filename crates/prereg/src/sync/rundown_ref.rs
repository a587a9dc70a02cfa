//! The rundown: a count that can be closed. All safety of the crate rests on it.
//!
//! Users `enter` and `leave`; the owner closes. What Windows calls rundown protection and Linux `percpu_ref`. A region's
//! live mappings are counted by one (closing it is the last unregister); a DMA mapping's I/O in flight is another.
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
//! `closed(0)` is the end: nobody enters, nobody leaves, nothing reopens. Exactly one call makes that step, and it is told
//! so; it alone may go on to release what the rundown protects. That is what keeps a release from happening twice, or while
//! somebody is still inside.
//!
//! One word holds both facts, so every step is one atomic read-modify-write on it and the order of those steps is total.

use crate::errno::Errno;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Set in the word once the rundown is closed; the other bits are the count. 2^63 units cannot be counted one by one.
const CLOSED: u64 = 1 << 63;

/// A count that can be closed.
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

/// The rundown is closed: nobody enters. ENXIO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("closed: what the rundown protects is going away")]
pub struct Closed;

impl Closed {
    /// ENXIO.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENXIO
    }
}

/// How many are inside a rundown that could not be closed. EBUSY.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} still inside")]
pub struct Busy(pub u64);

impl Busy {
    /// EBUSY.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EBUSY
    }
}

/// A `leave` without an `enter`: an accounting error of the caller. Nothing changed. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("nobody is inside: a unit was given back twice")]
pub struct RefUnderflow;

impl RefUnderflow {
    /// EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

/// What a `leave` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum LeaveResult {
    /// The rundown is open, or others are still inside.
    Others,
    /// The rundown was closed and this was the last one inside: the caller must see to the release.
    Last,
}

/// What `close_and_drain` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum DrainResult {
    /// Nobody was inside: the caller must see to the release.
    Empty,
    /// So many are inside; the last to leave is told.
    Waiting(u64),
    /// It was closed before; somebody else sees to the release.
    Already,
}

impl Default for RundownRef {
    fn default() -> Self {
        Self::new()
    }
}

impl RundownRef {
    /// An open rundown with nobody inside.
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Adds one, unless the rundown is closed.
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
            // Acquire pairs with the Release of `reopen`: whoever enters a reopened rundown sees what was done while it was
            // closed. Against `try_close` the order on this word decides: ours first, and the close finds a count; theirs
            // first, and this exchange finds CLOSED.
            match self.word.compare_exchange_weak(word, word + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Gives one back.
    ///
    /// # Errors
    /// [`RefUnderflow`] when nobody is inside; the count never goes below zero, and a closed rundown stays closed
    /// (docs/specification.md B11).
    #[inline]
    pub fn leave(&self) -> Result<LeaveResult, RefUnderflow> {
        // Relaxed: a first guess.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & !CLOSED == 0 {
                return Err(RefUnderflow);
            }
            // Release pairs with the Acquire of the step to closed(0), `try_close` or another `leave`: all that was done
            // inside happens before the release. Acquire is for the case that this is that step.
            match self.word.compare_exchange_weak(word, word - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if word == CLOSED + 1 => return Ok(LeaveResult::Last),
                Ok(_) => return Ok(LeaveResult::Others),
                Err(now) => word = now,
            }
        }
    }

    /// Closes for good if nobody is inside.
    ///
    /// # Errors
    /// [`Busy`] with the count; the rundown stays open. A rundown that is closed already reports who is left, perhaps 0.
    pub fn try_close(&self) -> Result<(), Busy> {
        // Acquire pairs with the Release of every `leave`: the release that follows comes after all uses. Not Release: the
        // step leads to closed(0), which is final, and a reader that finds the rundown closed is told no more than that.
        // Failure is Relaxed: nothing follows from it.
        match self.word.compare_exchange(0, CLOSED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(word) => Err(Busy(word & !CLOSED)),
        }
    }

    /// Closes for new ones. The last to leave is told so by its `leave`; if nobody is inside the caller is.
    pub fn close_and_drain(&self) -> DrainResult {
        // Acquire as in `try_close`. Release pairs with the Acquire of the last `leave`, which goes on to release: it sees
        // what was done before the rundown was closed.
        let word = self.word.fetch_or(CLOSED, Ordering::AcqRel);
        if word & CLOSED != 0 {
            DrainResult::Already
        } else if word == 0 {
            DrainResult::Empty
        } else {
            DrainResult::Waiting(word)
        }
    }

    /// Opens a closing rundown again while somebody is still inside. `false` when it is open or already empty: a rundown that
    /// reached closed(0) belongs to whoever was told so.
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

    /// How many are inside, as of some moment during the call.
    #[must_use]
    pub fn count(&self) -> u64 {
        // Relaxed: a number to show; nothing is decided by it.
        self.word.load(Ordering::Relaxed) & !CLOSED
    }

    /// Whether the rundown is closed.
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
