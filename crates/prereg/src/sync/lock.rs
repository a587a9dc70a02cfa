//! The writers' lock, and a token that identifies a thread.
//!
//! With the feature `std` a writer that waits sleeps; without it, it spins. Readers take no lock.

pub(crate) use lock_condvar::{LockCondvar, LockCondvarGuard};
pub(crate) use thread::ThreadToken;

#[cfg(all(feature = "std", not(loom)))]
mod lock_condvar {
    use core::time::Duration;
    use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

    /// A mutex and its condition variable.
    #[derive(Default)]
    pub(crate) struct LockCondvar<T> {
        value: Mutex<T>,
        changed: Condvar,
    }

    pub(crate) type LockCondvarGuard<'a, T> = MutexGuard<'a, T>;

    /// Waiters poll at this interval: a unit released in a signal handler cannot make the system call that would wake
    /// them.
    const POLL_INTERVAL: Duration = Duration::from_millis(1);

    impl<T> LockCondvar<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { value: Mutex::new(value), changed: Condvar::new() }
        }

        // A poisoned lock is taken as it is: every change to the registry is made after the calls that could panic, so
        // a panic leaves it consistent.
        pub(crate) fn lock(&self) -> LockCondvarGuard<'_, T> {
            self.value.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn wait<'a>(&'a self, guard: LockCondvarGuard<'a, T>) -> LockCondvarGuard<'a, T> {
            self.changed.wait_timeout(guard, POLL_INTERVAL).unwrap_or_else(PoisonError::into_inner).0
        }

        pub(crate) fn notify_all(&self) {
            self.changed.notify_all();
        }
    }
}

#[cfg(loom)]
mod lock_condvar {
    use loom::sync::{Condvar, Mutex};

    /// A mutex and its condition variable. Waiting ends by a notification only, so that a model that forgets one
    /// deadlocks, which loom reports.
    pub(crate) struct LockCondvar<T> {
        value: Mutex<T>,
        changed: Condvar,
    }

    pub(crate) type LockCondvarGuard<'a, T> = loom::sync::MutexGuard<'a, T>;

    impl<T> LockCondvar<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { value: Mutex::new(value), changed: Condvar::new() }
        }

        pub(crate) fn lock(&self) -> LockCondvarGuard<'_, T> {
            self.value.lock().expect("a model whose threads do not panic")
        }

        pub(crate) fn wait<'a>(&'a self, guard: LockCondvarGuard<'a, T>) -> LockCondvarGuard<'a, T> {
            self.changed.wait(guard).expect("a model whose threads do not panic")
        }

        pub(crate) fn notify_all(&self) {
            self.changed.notify_all();
        }
    }
}

#[cfg(not(any(feature = "std", loom)))]
mod lock_condvar {
    /// A mutex and its condition variable.
    pub(crate) struct LockCondvar<T> {
        value: spin::Mutex<T>,
    }

    pub(crate) type LockCondvarGuard<'a, T> = spin::MutexGuard<'a, T>;

    impl<T> LockCondvar<T> {
        pub(crate) fn new(value: T) -> Self {
            Self { value: spin::Mutex::new(value) }
        }

        pub(crate) fn lock(&self) -> LockCondvarGuard<'_, T> {
            self.value.lock()
        }

        pub(crate) fn wait<'a>(&'a self, guard: LockCondvarGuard<'a, T>) -> LockCondvarGuard<'a, T> {
            drop(guard);
            core::hint::spin_loop();
            self.value.lock()
        }

        #[expect(clippy::unused_self, reason = "the signature of the lock that sleeps")]
        pub(crate) fn notify_all(&self) {}
    }
}

#[cfg(all(feature = "std", not(loom)))]
mod thread {
    use core::ptr;

    std::thread_local! {
        /// Its address differs between live threads. It has no destructor, so it can be read at any time.
        static MARK: u8 = const { 0 };
    }

    /// A thread that is in a call.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct ThreadToken(usize);

    impl ThreadToken {
        pub(crate) fn this() -> Self {
            Self(MARK.with(|mark| ptr::from_ref(mark).addr()))
        }

        pub(crate) fn is_this(self) -> bool {
            self == Self::this()
        }
    }
}

#[cfg(loom)]
mod thread {
    /// A thread of the model that is in a call.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct ThreadToken(loom::thread::ThreadId);

    impl ThreadToken {
        pub(crate) fn this() -> Self {
            Self(loom::thread::current().id())
        }

        pub(crate) fn is_this(self) -> bool {
            self == Self::this()
        }
    }
}

#[cfg(not(any(feature = "std", loom)))]
mod thread {
    /// Threads cannot be distinguished here.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) struct ThreadToken;

    impl ThreadToken {
        pub(crate) fn this() -> Self {
            Self
        }

        #[expect(clippy::unused_self, reason = "the signature of the token that distinguishes threads")]
        pub(crate) fn is_this(self) -> bool {
            false
        }
    }
}
