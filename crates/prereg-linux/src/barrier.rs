//! The fence on every thread of the process: `membarrier(2)`.
//!
//! With it, mapping a page passes no fence of its own; the last unregister of a region interrupts every thread instead. It
//! costs 0.5 µs while the other threads sleep and some 10 µs while they run, and registering for it 2 µs while the process
//! has one thread and milliseconds later: make the back end early.

use std::sync::Arc;

use prereg::Barrier;

use crate::sys;

/// The fence, registered for.
#[derive(Clone, Copy, Debug)]
pub struct Membarrier {
    /// Made by `register` only.
    registered: (),
}

impl Membarrier {
    /// Registers this process for the fence. `None` where the kernel has it not (before 4.14, or filtered): mapping then
    /// passes a full fence each time, and everything else is the same.
    #[must_use]
    pub fn register() -> Option<Self> {
        sys::membarrier_register().ok().map(|()| Self { registered: () })
    }

    /// [`register`](Self::register), as a back end hands it out.
    #[must_use]
    pub fn shared() -> Option<Arc<dyn Barrier>> {
        Self::register().map(|fence| Arc::new(fence) as Arc<dyn Barrier>)
    }
}

// SAFETY: PRIVATE_EXPEDITED returns after every running thread of the process has passed a full fence between call and
// return, and the caller passes one itself; it cannot fail once the process is registered, which a `Membarrier` proves and
// `fork` keeps; and if it did, nothing would be released.
#[expect(unsafe_code, reason = "the promise of the trait is the kernel's")]
unsafe impl Barrier for Membarrier {
    fn all_threads(&self) {
        let () = self.registered;
        // `exec` alone undoes the registration, and this value with it.
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
