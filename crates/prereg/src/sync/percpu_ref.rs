//! A reference count that can be closed and is spread over per-thread counters, as Linux's `percpu_ref`.
//!
//! A [`PercpuRef`] counts the live mappings of one region. The counters are outside of it, one for each thread. Entering
//! is a plain store to the thread's own counter, a light fence and a load of the state; it writes nothing shared. Closing
//! pays for that: it stores CLOSING, passes a heavy fence and sums all counters.
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
//! # Proof that a closed ref has no users
//!
//! An entering thread does *store counter; light fence; load state*, a closing thread *store state; heavy fence; load
//! counters*. With these fences at least one of the two loads sees the other thread's store:
//! - The closer's fence is first: the entering load finds the state no longer OPEN. If it is CLOSING, the unit is already
//!   counted, so the close must be refused. The entering thread refuses it by exchanging CLOSING for OPEN, and the
//!   closer's exchange of CLOSING for CLOSED then fails. If the closer's exchange is first, the entering thread's fails: it
//!   takes its unit off again and reports closed. One of the two exchanges wins, so a map and the last unregister never
//!   both succeed and never both fail.
//! - The entering fence is first: the closer's sum contains the unit, and the close is refused.
//!
//! A sum of zero after the heavy fence means no users, although counters change while they are summed: every unit
//! entered before the fence is in the sum, a leave on any thread only lowers the sum, and a unit entered later is decided
//! by the exchange above.
//!
//! A sum that is not zero is enough to refuse even without a fence: some unit was held during the scan. So only a close
//! that is likely to succeed pays for the heavy fence.
//!
//! Leaving is one store and notifies no thread. A drain sums again whenever something changes, and a thread that waits
//! for it polls.
//!
//! # Fences
//!
//! With [`FenceMode::Asymmetric`] the light fence is a compiler fence and the heavy fence interrupts every thread of the
//! process (`membarrier(2)`). With [`FenceMode::Full`] both are SeqCst fences. miri and loom have no fence that acts on
//! other threads: there the asymmetric pair is two SeqCst fences, and the code around it is the code that ships.

#![cfg_attr(
    not(loom),
    expect(unreachable_pub, reason = "the loom models, in a crate of their own, test this very file")
)]

use crate::sync::atomic::{AtomicI64, AtomicU8, Ordering, fence, light_fence};
use crate::sync::preemption_point;

/// Absent or already released. Zero, so that zeroed memory is a closed ref.
const CLOSED: u8 = 0;
/// Entering succeeds.
const OPEN: u8 = 1;
/// A close is under way; entering refuses it.
const CLOSING: u8 = 2;
/// Entering fails; units that are held stay until they leave.
const DRAINING: u8 = 3;

/// The pair of fences that orders entering threads against the closing one.
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

/// The result of an `enter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EnterResult {
    /// The unit is counted.
    Entered,
    /// Closed or draining. No unit is held; the counter held one for a moment.
    Closed,
}

/// The state of one slot's reference count. The counters are elsewhere.
#[derive(Debug)]
#[repr(transparent)]
pub struct PercpuRef {
    state: AtomicU8,
}

impl PercpuRef {
    /// A closed ref. In other builds it is made from zeroed memory.
    #[cfg(any(loom, test))]
    #[must_use]
    pub fn new() -> Self {
        Self { state: AtomicU8::new(CLOSED) }
    }

    /// Enters: adds one unit to `count`, which only this thread writes.
    #[inline]
    pub fn enter(&self, count: &AtomicI64, mode: FenceMode) -> EnterResult {
        if self.enter_open(count, mode) { EnterResult::Entered } else { self.enter_closing(count) }
    }

    /// Adds one unit to `count`, which only this thread writes, and returns whether the ref is open: then the unit is
    /// held. If not, the unit stays counted and the caller must call [`enter_closing`](Self::enter_closing).
    #[inline]
    #[must_use]
    pub fn enter_open(&self, count: &AtomicI64, mode: FenceMode) -> bool {
        // Relaxed: only this thread writes it; the fence orders it against the state.
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        mode.light();
        // Acquire pairs with the Release of `open` and `reopen`: the region was made before.
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// The slow half of `enter`, after `enter_open` returned `false`. The unit is counted already, so it refuses a
    /// close that is under way; otherwise it is taken off again.
    #[cold]
    #[inline(never)]
    pub fn enter_closing(&self, count: &AtomicI64) -> EnterResult {
        // The partner is the exchange in `finish_close`; see the proof in the header. Finding OPEN is as good: a close
        // that begins after this load has its heavy fence after our count. Acquire, both, as in `enter_open`. Not
        // Release: a thread that finds this OPEN acquires from the store of `begin_close`, whose release sequence the
        // exchange continues.
        match self.state.compare_exchange(CLOSING, OPEN, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) | Err(OPEN) => EnterResult::Entered,
            Err(_) => {
                // Release as in `leave`.
                count.store(count.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release);
                EnterResult::Closed
            }
        }
    }

    /// Takes one unit off `count`, which only this thread writes; the unit may have been counted elsewhere. Does not
    /// notify a drain: the draining side sums again.
    #[inline]
    pub fn leave(count: &AtomicI64) {
        // Release pairs with the Acquire loads of the sum: all uses under the unit happen before the release.
        count.store(count.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Release);
    }

    /// Takes one unit off `count`, which any thread may write. `true` when the ref is draining: this may have been the
    /// last unit, so the caller must look.
    pub fn leave_shared(&self, count: &AtomicI64) -> bool {
        // Release as in `leave`.
        count.fetch_sub(1, Ordering::Release);
        // `count` may be freed from here on: it is not used again.
        preemption_point();
        fence(Ordering::SeqCst);
        // A drain that this load misses has its sum after our store, by the fences. Acquire: what led to the drain is
        // visible.
        self.state.load(Ordering::Acquire) == DRAINING
    }

    /// Opens the ref of a new region. No unit of an earlier region may be held.
    pub fn open(&self) {
        // Release pairs with the Acquire in `enter`.
        self.state.store(OPEN, Ordering::Release);
    }

    /// Closes for good if no unit is held. `heavy` is the heavy fence, `sum` loads all counters with Acquire. One
    /// closer at a time.
    ///
    /// # Errors
    /// The number of units held, at least 1; the ref is open as before.
    pub fn try_close(&self, heavy: impl FnOnce(), sum: impl Fn() -> i64) -> Result<(), u64> {
        let inside = sum();
        if inside != 0 {
            return Err(inside.unsigned_abs());
        }
        self.begin_close();
        heavy();
        self.finish_close(sum())
    }

    /// The first half of a close, for a caller that closes many: marks this ref as closing. The caller then passes the
    /// heavy fence, once for all of them, and calls [`finish_close`](Self::finish_close).
    pub fn begin_close(&self) {
        // Release pairs with the Acquire in `enter_open` and of the exchange in `enter_closing`: a thread that enters a
        // ref that is closing, or was and is open again, sees what was made before it was opened. The heavy fence
        // orders it against the counters.
        self.state.store(CLOSING, Ordering::Release);
    }

    /// The second half: closes for good if `inside`, the sum after the fence, is zero.
    ///
    /// # Errors
    /// The number of units held, at least 1; the ref is open as before.
    pub fn finish_close(&self, inside: i64) -> Result<(), u64> {
        let verdict = if inside == 0 { CLOSED } else { OPEN };
        // Relaxed: a thread that finds the ref open again acquires from the store of `begin_close`, whose release
        // sequence this exchange continues. Uses under units were acquired with the counters.
        match self.state.compare_exchange(CLOSING, verdict, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) if verdict == CLOSED => Ok(()),
            _ => Err(inside.unsigned_abs().max(1)),
        }
    }

    /// Lets no new unit enter; units that are held stay. The caller then passes the heavy fence and sums.
    pub fn drain(&self) {
        // Release pairs with the Acquire in `leave_shared`. The heavy fence that follows orders it against `enter`.
        self.state.store(DRAINING, Ordering::Release);
    }

    /// Opens a draining ref again. The caller is the only one who closes and opens.
    pub fn reopen(&self) {
        self.open();
    }

    /// Ends a drain whose sum was zero.
    pub fn close(&self) {
        // Relaxed: a thread that finds it closed uses nothing of the region.
        self.state.store(CLOSED, Ordering::Relaxed);
    }

    /// Whether the region is absent or already released: neither open nor draining. A hint.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // Relaxed: a caller that relies on it holds a unit, which keeps the ref from being closed.
        self.state.load(Ordering::Relaxed) == CLOSED
    }

    /// Whether entering may succeed. A hint.
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
