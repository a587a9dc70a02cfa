//! The tasks that await the end of an unmap of one map.
//!
//! Whatever drops the last access of an unmapped mapping wakes all of them. A future owns its entry; the list drops entries whose
//! future is gone.

use alloc::vec::Vec;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

/// The task of one future.
pub(super) type Task = Mutex<Option<Waker>>;

// Every change of a task or of the list is one assignment, so a poisoned lock is consistent.
pub(super) fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The futures of one map.
#[derive(Default)]
pub(super) struct UnmapTasks(Mutex<Vec<Weak<Task>>>);

impl UnmapTasks {
    pub(super) fn add(&self, task: &Arc<Task>) {
        let mut tasks = lock(&self.0);
        tasks.retain(|task| task.strong_count() > 0);
        tasks.push(Arc::downgrade(task));
    }

    /// Wakes all, without a lock.
    pub(super) fn wake(&self) {
        let tasks: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        for task in tasks {
            let waker = lock(&task).take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
