//! Descriptors are counted for the whole process, so one test runs at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE: Mutex<()> = Mutex::new(());

/// Prevents other tests of this program from running.
pub(crate) struct Quiet {
    _guard: MutexGuard<'static, ()>,
}

impl Quiet {
    pub(crate) fn here() -> Self {
        Self { _guard: ONE.lock().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// Open descriptors of this process.
pub(crate) fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
