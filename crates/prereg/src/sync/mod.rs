//! The atomics, fences and synchronisation primitives of the core, from one place, so that loom can stand in for them.

pub(crate) mod hazard;
mod lock;
pub(crate) mod percpu_ref;
pub(crate) mod rundown_ref;

#[cfg(not(loom))]
pub(crate) mod atomic {
    pub(crate) use super::asymmetric::light_fence;
    pub(crate) use core::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};
}

#[cfg(loom)]
pub(crate) mod atomic {
    pub(crate) use super::asymmetric::light_fence;
    pub(crate) use loom::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};
}

pub(crate) use asymmetric::heavy_fence;
pub(crate) use lock::{LockCondvar, LockCondvarGuard, ThreadToken};

/// The two halves of an asymmetric fence. Partners: whatever is before one half in its thread and whatever is after the
/// other half in its own are never both missed, as with two SeqCst fences.
#[cfg(not(any(miri, loom)))]
mod asymmetric {
    use core::sync::atomic::{Ordering, compiler_fence};

    /// The half that costs nothing.
    #[inline(always)]
    pub(crate) fn light_fence() {
        compiler_fence(Ordering::SeqCst);
    }

    /// The half that pays: `all_threads` is the host's fence on every thread.
    pub(crate) fn heavy_fence(all_threads: impl FnOnce()) {
        all_threads();
    }
}

/// An interpreter has no fence that acts on other threads, so each thread passes its own.
#[cfg(any(miri, loom))]
mod asymmetric {
    use super::atomic::{Ordering, fence};

    #[inline(always)]
    pub(crate) fn light_fence() {
        fence(Ordering::SeqCst);
    }

    pub(crate) fn heavy_fence(all_threads: impl FnOnce()) {
        all_threads();
        fence(Ordering::SeqCst);
    }
}

/// Yields to other threads under miri; does nothing otherwise. Stands between two steps of which the second must not depend on
/// what the first one saw.
#[inline(always)]
pub(crate) fn preemption_point() {
    #[cfg(miri)]
    for _ in 0..8 {
        core::hint::spin_loop();
    }
}
