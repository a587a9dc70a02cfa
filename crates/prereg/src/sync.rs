//! The atomics and the writers' lock of the core, from one place, so that loom can stand in for them.
//!
//! With the feature `std` a writer that has to wait sleeps; without it, it spins (a host without threads that sleep has
//! nothing better). Readers never come here for anything but atomics.

#[cfg(not(loom))]
pub(crate) mod atomic {
    pub(crate) use core::sync::atomic::{
        AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, compiler_fence, fence,
    };
}

#[cfg(loom)]
pub(crate) mod atomic {
    pub(crate) use core::sync::atomic::compiler_fence;
    pub(crate) use loom::sync::atomic::{AtomicI64, AtomicPtr, AtomicU8, AtomicU64, Ordering, fence};
}

pub(crate) use monitor::{Monitor, MonitorGuard};

#[cfg(all(feature = "std", not(loom)))]
mod monitor {
    use core::time::Duration;
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

    /// A lock whose holder can wait for another holder to change something.
    #[derive(Default)]
    pub(crate) struct Monitor<T> {
        value: Mutex<T>,
        changed: Condvar,
    }

    pub(crate) type MonitorGuard<'a, T> = MutexGuard<'a, T>;

    /// A waiter looks again this often by itself: a unit given back in a signal handler may not make the system call
    /// that would wake it.
    const LOOK_AGAIN: Duration = Duration::from_millis(1);

    impl<T> Monitor<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { value: Mutex::new(value), changed: Condvar::new() }
        }

        // A panic of another holder does not make the books wrong: every change to them is made after the calls that
        // could panic. So a poisoned lock is taken as it is.
        pub(crate) fn lock(&self) -> MonitorGuard<'_, T> {
            self.value.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn wait<'a>(&'a self, guard: MonitorGuard<'a, T>) -> MonitorGuard<'a, T> {
            self.changed.wait_timeout(guard, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner).0
        }

        pub(crate) fn notify_all(&self) {
            self.changed.notify_all();
        }
    }
}

#[cfg(not(all(feature = "std", not(loom))))]
mod monitor {
    /// A lock whose holder can wait for another holder to change something.
    pub(crate) struct Monitor<T> {
        value: spin::Mutex<T>,
    }

    pub(crate) type MonitorGuard<'a, T> = spin::MutexGuard<'a, T>;

    impl<T> Monitor<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { value: spin::Mutex::new(value) }
        }

        pub(crate) fn lock(&self) -> MonitorGuard<'_, T> {
            self.value.lock()
        }

        pub(crate) fn wait<'a>(&'a self, guard: MonitorGuard<'a, T>) -> MonitorGuard<'a, T> {
            drop(guard);
            core::hint::spin_loop();
            self.value.lock()
        }

        #[expect(clippy::unused_self, reason = "same face as the monitor that sleeps")]
        pub(crate) fn notify_all(&self) {}
    }
}
