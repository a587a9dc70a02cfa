//! The gate: a count that can be closed. All safety of the crate rests on it.
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
//! so; it alone may go on to release what the gate protects. That is what keeps a release from happening twice, or while
//! somebody is still inside.
//!
//! One word holds both facts, so every step is one atomic read-modify-write on it and the order of those steps is total.

use crate::errno::Errno;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Set in the word once the gate is closed; the other bits are the count. 2^63 units cannot be counted one by one.
const CLOSED: u64 = 1 << 63;

/// A count that can be closed.
///
/// # Examples
/// ```
/// use prereg::{Gate, Inside, Left};
///
/// let gate = Gate::new();
/// gate.enter().unwrap();
/// assert_eq!(gate.try_close(), Err(Inside(1)));   // refused, nothing changed
/// assert_eq!(gate.leave(), Ok(Left::Others));
/// assert_eq!(gate.try_close(), Ok(()));           // closed for good
/// assert!(gate.enter().is_err());
/// ```
#[derive(Debug)]
pub struct Gate {
    word: AtomicU64,
}

/// The gate is closed: nobody enters. ENXIO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("closed: what the gate protects is going away")]
pub struct Closed;

impl Closed {
    /// ENXIO.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENXIO
    }
}

/// How many are inside a gate that could not be closed. EBUSY.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} still inside")]
pub struct Inside(pub u64);

impl Inside {
    /// EBUSY.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EBUSY
    }
}

/// A `leave` without an `enter`: an accounting error of the caller. Nothing changed. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("nobody is inside: a unit was given back twice")]
pub struct Unbalanced;

impl Unbalanced {
    /// EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

/// What a `leave` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Left {
    /// The gate is open, or others are still inside.
    Others,
    /// The gate was closed and this was the last one inside: the caller must see to the release.
    Last,
}

/// What `close_and_drain` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Drain {
    /// Nobody was inside: the caller must see to the release.
    Empty,
    /// So many are inside; the last to leave is told.
    Waiting(u64),
    /// It was closed before; somebody else sees to the release.
    Already,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// An open gate with nobody inside.
    #[must_use]
    pub fn new() -> Self {
        Self { word: AtomicU64::new(0) }
    }

    /// Adds one, unless the gate is closed.
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
            // Acquire pairs with the Release of `reopen`: whoever enters a reopened gate sees what was done while it was
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
    /// [`Unbalanced`] when nobody is inside; the count never goes below zero, and a closed gate stays closed
    /// (docs/specification.md B11).
    #[inline]
    pub fn leave(&self) -> Result<Left, Unbalanced> {
        // Relaxed: a first guess.
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & !CLOSED == 0 {
                return Err(Unbalanced);
            }
            // Release pairs with the Acquire of the step to closed(0), `try_close` or another `leave`: all that was done
            // inside happens before the release. Acquire is for the case that this is that step.
            match self.word.compare_exchange_weak(word, word - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) if word == CLOSED + 1 => return Ok(Left::Last),
                Ok(_) => return Ok(Left::Others),
                Err(now) => word = now,
            }
        }
    }

    /// Closes for good if nobody is inside.
    ///
    /// # Errors
    /// [`Inside`] with the count; the gate stays open. A gate that is closed already reports who is left, perhaps 0.
    pub fn try_close(&self) -> Result<(), Inside> {
        // Acquire pairs with the Release of every `leave`: the release that follows comes after all uses. Not Release: the
        // step leads to closed(0), which is final, and a reader that finds the gate closed is told no more than that.
        // Failure is Relaxed: nothing follows from it.
        match self.word.compare_exchange(0, CLOSED, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => Ok(()),
            Err(word) => Err(Inside(word & !CLOSED)),
        }
    }

    /// Closes for new ones. The last to leave is told so by its `leave`; if nobody is inside the caller is.
    pub fn close_and_drain(&self) -> Drain {
        // Acquire as in `try_close`. Release pairs with the Acquire of the last `leave`, which goes on to release: it sees
        // what was done before the gate was closed.
        let word = self.word.fetch_or(CLOSED, Ordering::AcqRel);
        if word & CLOSED != 0 {
            Drain::Already
        } else if word == 0 {
            Drain::Empty
        } else {
            Drain::Waiting(word)
        }
    }

    /// Opens a closing gate again while somebody is still inside. `false` when it is open or already empty: a gate that
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
    pub fn inside(&self) -> u64 {
        // Relaxed: a number to show; nothing is decided by it.
        self.word.load(Ordering::Relaxed) & !CLOSED
    }

    /// Whether the gate is closed.
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
        let gate = Gate::new();
        gate.enter().unwrap();
        assert_eq!(gate.try_close(), Err(Inside(1)));
        gate.enter().unwrap();
        assert_eq!(gate.inside(), 2);
        assert_eq!(gate.leave(), Ok(Left::Others));
        assert_eq!(gate.leave(), Ok(Left::Others));
        assert_eq!(gate.try_close(), Ok(()));
        assert_eq!(gate.enter(), Err(Closed));
        assert_eq!(gate.try_close(), Err(Inside(0)));
    }

    #[test]
    fn a_leave_too_many_is_reported_open_and_closed() {
        let gate = Gate::new();
        assert_eq!(gate.leave(), Err(Unbalanced));
        assert_eq!(gate.try_close(), Ok(()));
        assert_eq!(gate.leave(), Err(Unbalanced));
        assert_eq!(gate.enter(), Err(Closed));
    }

    #[test]
    fn the_last_to_leave_a_draining_gate_is_told() {
        let gate = Gate::new();
        gate.enter().unwrap();
        gate.enter().unwrap();
        assert_eq!(gate.close_and_drain(), Drain::Waiting(2));
        assert_eq!(gate.close_and_drain(), Drain::Already);
        assert_eq!(gate.enter(), Err(Closed));
        assert_eq!(gate.leave(), Ok(Left::Others));
        assert_eq!(gate.leave(), Ok(Left::Last));
        assert!(!gate.reopen());
        assert_eq!(Gate::new().close_and_drain(), Drain::Empty);
    }

    #[test]
    fn a_draining_gate_reopens_only_while_somebody_is_inside() {
        let gate = Gate::new();
        assert!(!gate.reopen());
        gate.enter().unwrap();
        assert_eq!(gate.close_and_drain(), Drain::Waiting(1));
        assert!(gate.reopen());
        gate.enter().unwrap();
        assert_eq!(gate.inside(), 2);
        assert_eq!(gate.leave(), Ok(Left::Others));
        assert_eq!(gate.leave(), Ok(Left::Others));
        assert_eq!(gate.try_close(), Ok(()));
        assert!(!gate.reopen());
    }
}
