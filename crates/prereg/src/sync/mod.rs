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

/// The two halves of an asymmetric fence. Partners: of what precedes one half in its thread, and what follows the other
/// half in another thread, the two are never both missed, as with two SeqCst fences.
#[cfg(not(any(miri, loom)))]
mod asymmetric {
    use core::sync::atomic::{Ordering, compiler_fence};

    /// The light half: holds the compiler only.
    #[inline(always)]
    pub(crate) fn light_fence() {
        compiler_fence(Ordering::SeqCst);
    }

    /// The heavy half: `all_threads` is the host's fence on every thread.
    pub(crate) fn heavy_fence(all_threads: impl FnOnce()) {
        all_threads();
    }
}

/// miri and loom have no fence that acts on other threads, so each thread passes its own.
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

/// Yields to other threads under miri; does nothing otherwise. Placed between two steps where the second must not
/// depend on what the first one read.
#[inline(always)]
pub(crate) fn preemption_point() {
    #[cfg(miri)]
    for _ in 0..8 {
        core::hint::spin_loop();
    }
}
