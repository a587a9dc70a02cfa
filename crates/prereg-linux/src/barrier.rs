//! The process-wide fence of [`prereg::Barrier`], by `membarrier(2)`.
//!
//! With it, mapping a page needs no fence of its own; the last unregister of a region interrupts every thread instead.
//! That costs 0.5 µs while the other threads sleep and about 10 µs while they run. Registering for it costs 2 µs while
//! the process has one thread and milliseconds later, so make the back end early.

use std::sync::Arc;

use prereg::Barrier;

use crate::sys;

/// Proof that the process is registered for the fence.
#[derive(Clone, Copy, Debug)]
pub struct Membarrier {
    /// Constructed by `register` only.
    registered: (),
}

impl Membarrier {
    /// Registers this process for the fence. `None` where the kernel lacks it (before 4.14) or a filter forbids it:
    /// mapping then executes a full fence each time.
    #[must_use]
    pub fn register() -> Option<Self> {
        sys::membarrier_register().ok().map(|()| Self { registered: () })
    }

    /// [`register`](Self::register) as [`Pin::barrier`](prereg::Pin::barrier) returns it.
    #[must_use]
    pub fn shared() -> Option<Arc<dyn Barrier>> {
        Self::register().map(|fence| Arc::new(fence) as Arc<dyn Barrier>)
    }
}

// SAFETY: PRIVATE_EXPEDITED returns after every running thread of the process has executed a full fence between call
// and return, and the caller executes one itself. It cannot fail once the process is registered, which a `Membarrier`
// proves and `fork` keeps; if it failed, the assertion would stop the release.
#[expect(unsafe_code, reason = "the promise of the trait is the kernel's")]
unsafe impl Barrier for Membarrier {
    fn all_threads(&self) {
        let () = self.registered;
        // Only `exec` undoes the registration, and it ends this value too.
        assert!(
            sys::membarrier().is_ok(),
            "the kernel refused a membarrier that this process is registered for"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fence_passes_while_other_threads_run() {
        let Some(fence) = Membarrier::register() else {
            return eprintln!("skipped: this kernel has no membarrier, or a filter hides it");
        };
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            for _ in 0..100 {
                fence.all_threads();
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
