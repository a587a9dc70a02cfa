//! Counters for reports.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that several threads change. Relaxed throughout: it guards no other memory.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn get(&self) -> u64 {
        // Relaxed: see the type.
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, by: u64) {
        // Relaxed: see the type.
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, by: u64) {
        // Relaxed: see the type.
        self.0.fetch_sub(by, Ordering::Relaxed);
    }
}
