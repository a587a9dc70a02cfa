//! The percpu_ref: a gate whose count is spread over memory that only one thread each writes.
//!
//! A region's live mappings are counted behind one. Entering is a plain store to the thread's own count, a light fence and a
//! load of the percpu_ref; nothing shared is written. The price is on the closing side: a close is announced on the percpu_ref, followed
//! by a heavy fence, and then all counts are summed.
//!
//! ```text
//!                    enter that finds CLOSING
//!                 +---------------------------+
//!                 v     sum != 0              |
//!   CLOSED --> OPEN <---------------------- CLOSING
//!      ^  open  | ^ -----------------------> |
//!      |        | |      try_close           | sum == 0
//!      |  drain | | reopen                   |
//!      |        v |                          |
//!      +-- DRAINING                          |
//!      |     sum == 0                        |
//!      +-------------------------------------+
//! ```
//!
//! Why nobody is inside a closed percpu_ref. An entering thread does *store count; light fence; load percpu_ref*, a closing one does
//! *store percpu_ref; heavy fence; load counts*. The two fences make it impossible that both loads miss the other's store:
//! - the closer's fence came first: the entering load finds the percpu_ref no longer OPEN. If it is CLOSING, the unit is already
//!   counted, so the only right verdict is "busy", and the entering thread gives it itself, by the exchange CLOSING to OPEN;
//!   the closer's exchange CLOSING to CLOSED then fails. If that exchange was first, the entering one fails, takes its unit
//!   back and reports closed. One exchange wins: a map and the last unregister never both succeed, and never both fail.
//! - the entering fence came first: the closer's sum contains the unit, and the close is refused.
//!
//! A sum of zero after the heavy fence means that nobody is inside, although counts change while they are summed: every unit
//! taken before the fence is seen as taken; giving units back, by whatever thread, only lowers the sum; and a unit taken
//! later decides by the exchange above.
//!
//! A plain sum that is not zero, without any fence, is enough to refuse: some unit was outstanding during the scan. So the
//! heavy fence is paid by closes that are likely to succeed.
//!
//! Leaving is one store: nobody is told. A drain that waits for the last one looks at the sum again whenever something
//! changes, and somebody who waits for it looks from time to time.
//!
//! With [`FenceMode::Asymmetric`] the light fence only holds the compiler and the heavy one interrupts every thread of the
//! process (`membarrier(2)`); with [`FenceMode::Full`] both are SeqCst fences. miri and loom know no fence that acts on other
//! threads: there the asymmetric pair is a pair of SeqCst fences too, and the code around the two is the code that ships.

#![cfg_attr(
    not(loom),
    expect(unreachable_pub, reason = "the loom models, in a crate of their own, test this very file")
)]

use crate::sync::atomic::{AtomicI64, AtomicU8, Ordering, fence, light_fence};
use crate::sync::preemption_point;

/// Nobody enters; what is behind is gone or not there yet. Zero, so that fresh memory is closed.
const CLOSED: u8 = 0;
/// Anybody enters.
const OPEN: u8 = 1;
/// A close is being decided.
const CLOSING: u8 = 2;
/// Nobody enters; those inside may stay until they leave.
const DRAINING: u8 = 3;

/// Which pair of fences orders entering threads against the closing one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceMode {
    /// A SeqCst fence on both sides.
    Full,
    /// A compiler fence on the entering side; the closing side's fence acts on every thread of the process.
    Asymmetric,
}

impl FenceMode {
    /// The fence of the entering side.
    #[inline]
    fn light(self) {
        match self {
            Self::Full => fence(Ordering::SeqCst),
            Self::Asymmetric => light_fence(),
        }
    }
}

/// What an `enter` found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnterResult {
    /// The unit is counted.
    Entered,
    /// Closed or draining: nothing is counted, but the unit was for a moment.
    Closed,
}

/// The percpu_ref of one slot. The counts are elsewhere.
#[derive(Debug)]
#[repr(transparent)]
pub struct PercpuRef {
    state: AtomicU8,
}

impl PercpuRef {
    /// A closed percpu_ref. Elsewhere zeroed memory is one.
    #[cfg(any(loom, test))]
    #[must_use]
    pub fn new() -> Self {
        Self { state: AtomicU8::new(CLOSED) }
    }

    /// Takes one unit in `count`, which only this thread writes.
    #[inline]
    pub fn enter(&self, count: &AtomicI64, mode: FenceMode) -> EnterResult {
        if self.enter_open(count, mode) { EnterResult::Entered } else { self.enter_closing(count) }
    }

    /// Takes one unit in `count`, which only this thread writes, and says whether the percpu_ref was open: then it is inside. If it
    /// was not, the unit is counted all the same, and the caller calls [`enter_closing`](Self::enter_closing).
    #[inline]
    #[must_use]
    pub fn enter_open(&self, count: &AtomicI64, mode: FenceMode) -> bool {
        // Relaxed: nobody else writes it; what it must be ordered with is the percpu_ref, by the fence.
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        mode.light();
        // Acquire pairs with the Release of `open` and `reopen`: what is behind the percpu_ref was made before.
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// The percpu_ref was not open. The unit is counted already, so it refuses a close that is being decided; otherwise it is taken
    /// back.
    #[cold]
    #[inline(never)]
    pub fn enter_closing(&self, count: &AtomicI64) -> EnterResult {
        // The partner is the closer's exchange in `finish_close`; see the head of this file. Finding OPEN is as good: a close that
        // begins after this load has its heavy fence after our count. Acquire, both, as in `enter_open`. Not Release: a thread
        // that finds this OPEN acquires from the store of `begin_close`, whose release sequence the exchange continues.
        match self.state.compare_exchange(CLOSING, OPEN, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) | Err(OPEN) => EnterResult::Entered,
            Err(_) => {
                // Release as in `leave`.
                count.store(count.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release);
                EnterResult::Closed
            }
        }
    }

    /// Gives one unit back in `count`, which only this thread writes; it may have been taken in another. Says nothing to a
    /// drain that waits for it: whoever drains looks again by himself.
    #[inline]
    pub fn leave(count: &AtomicI64) {
        // Release pairs with the Acquire loads of the sum: all that was done inside happens before the release.
        count.store(count.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release);
    }

    /// The same in a count that anybody may write. `true` when the percpu_ref is draining: this may have been the last one, so the
    /// caller looks.
    pub fn leave_shared(&self, count: &AtomicI64) -> bool {
        // Release as in `leave`.
        count.fetch_sub(1, Ordering::Release);
        // From here `count` may be freed: it is not used again.
        preemption_point();
        fence(Ordering::SeqCst);
        // A drain that this load misses has its sum after our store, by the fences. Acquire: what led to the drain is seen.
        self.state.load(Ordering::Acquire) == DRAINING
    }

    /// Opens the percpu_ref of something new. Nobody may have it in use from before.
    pub fn open(&self) {
        // Release pairs with the Acquire in `enter`.
        self.state.store(OPEN, Ordering::Release);
    }

    /// Closes for good if nobody is inside. `heavy` is the heavy fence, `sum` loads all counts with Acquire. One closer at a
    /// time.
    ///
    /// # Errors
    /// How many are inside, at least 1; the percpu_ref is open as before.
    pub fn try_close(&self, heavy: impl FnOnce(), sum: impl Fn() -> i64) -> Result<(), u64> {
        let inside = sum();
        if inside != 0 {
            return Err(inside.unsigned_abs());
        }
        self.begin_close();
        heavy();
        self.finish_close(sum())
    }

    /// The first half of a close, for a closer of many doors: says that one is being decided. The caller then passes the
    /// heavy fence, once for all of them, and calls [`finish_close`](Self::finish_close).
    pub fn begin_close(&self) {
        // Release pairs with the Acquire in `enter_open` and of the exchange in `enter_closing`: a thread that enters a percpu_ref
        // that is closing, or was and is open again, sees what was made before it was opened. Against the counts it is ordered
        // by the heavy fence.
        self.state.store(CLOSING, Ordering::Release);
    }

    /// The second half: closes for good if `inside`, summed after the fence, is zero.
    ///
    /// # Errors
    /// How many are inside, at least 1; the percpu_ref is open as before.
    pub fn finish_close(&self, inside: i64) -> Result<(), u64> {
        let verdict = if inside == 0 { CLOSED } else { OPEN };
        // Relaxed: a thread that finds the percpu_ref open again acquires from the store of `begin_close`, whose release sequence this
        // exchange continues. What was done inside was acquired with the counts.
        match self.state.compare_exchange(CLOSING, verdict, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) if verdict == CLOSED => Ok(()),
            _ => Err(inside.unsigned_abs().max(1)),
        }
    }

    /// Closes for new ones whoever is inside. The caller then passes the heavy fence and sums.
    pub fn drain(&self) {
        // Release pairs with the Acquire in `leave_shared`. Against `enter` it is ordered by the heavy fence that follows.
        self.state.store(DRAINING, Ordering::Release);
    }

    /// Opens a draining percpu_ref again. The caller is the only one who closes and opens.
    pub fn reopen(&self) {
        self.open();
    }

    /// Ends a drain that found nobody inside.
    pub fn close(&self) {
        // Relaxed: a thread that finds it closed looks at nothing behind it.
        self.state.store(CLOSED, Ordering::Relaxed);
    }

    /// Whether what is behind is gone or not there yet: neither open nor draining. A hint.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Relaxed: a caller that relies on it holds a unit, which keeps the percpu_ref from being closed.
        self.state.load(Ordering::Relaxed) == CLOSED
    }

    /// Whether anybody may enter. A hint.
    #[inline]
    #[must_use]
    pub fn is_open(&self) -> bool {
        // Relaxed: `enter` decides.
        matches!(self.state.load(Ordering::Relaxed), OPEN | CLOSING)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_close_of_two_halves_closes_only_an_empty_percpu_ref() {
        let percpu_ref = PercpuRef::new();
        percpu_ref.open();
        percpu_ref.begin_close();
        assert_eq!(percpu_ref.finish_close(2), Err(2));
        assert!(percpu_ref.is_open());
        percpu_ref.begin_close();
        assert_eq!(percpu_ref.finish_close(0), Ok(()));
        assert!(percpu_ref.is_closed());
    }

    #[test]
    fn a_close_that_was_entered_is_refused_even_if_the_sum_missed_it() {
        let (percpu_ref, count) = (PercpuRef::new(), AtomicI64::new(0));
        percpu_ref.open();
        percpu_ref.begin_close();
        assert_eq!(percpu_ref.enter(&count, FenceMode::Full), EnterResult::Entered);
        assert_eq!(percpu_ref.finish_close(0), Err(1));
        assert!(percpu_ref.is_open());
    }

    #[test]
    fn a_drain_ends_with_the_percpu_ref_closed() {
        let percpu_ref = PercpuRef::new();
        percpu_ref.open();
        percpu_ref.drain();
        assert!(!percpu_ref.is_open() && !percpu_ref.is_closed());
        percpu_ref.close();
        assert!(percpu_ref.is_closed());
    }
}
