//! State that the admin queue and all poll groups use.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error_log::ErrorLog;
use super::namespace::Namespaces;
use super::queue_table::QueueTable;

/// The limits of a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Pairs of I/O queues.
    pub io_queues: u16,
    /// Entries of a queue: 2 to 65,536.
    pub entries: u32,
    /// Interrupt vectors.
    pub vectors: u16,
    /// The largest transfer, as a power of two of 4 KiB pages (MDTS).
    pub transfer_shift: u8,
}

impl Limits {
    /// The largest transfer in bytes.
    pub(crate) const fn max_transfer_bytes(&self) -> u64 {
        4096 << self.transfer_shift
    }
}

/// State that the admin queue and all poll groups use.
#[derive(Debug)]
pub struct Shared {
    /// The limits.
    pub limits: Limits,
    /// The namespaces.
    pub namespaces: Namespaces,
    /// Doorbells and queue states.
    pub queue_table: QueueTable,
    write_cache: AtomicBool,
    coalescing: AtomicU32,
    exempt: Box<[AtomicBool]>,
    errors: Mutex<ErrorLog>,
}

impl Shared {
    /// The state after a reset.
    #[must_use]
    pub fn new(limits: Limits, namespaces: Namespaces, queue_table: QueueTable) -> Self {
        Self {
            limits,
            namespaces,
            queue_table,
            write_cache: AtomicBool::new(true),
            coalescing: AtomicU32::new(0),
            exempt: (0..limits.vectors).map(|_| AtomicBool::new(false)).collect(),
            errors: Mutex::default(),
        }
    }

    // Relaxed throughout: a setting takes effect some time after the command that changes it, and no other data depend on it.

    /// Whether the write cache is enabled.
    pub(crate) fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub(crate) fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Relaxed);
    }

    /// Interrupt Coalescing as in Set Features: threshold in bits 7:0, time in units of 100 us in bits 15:8.
    pub(crate) fn coalescing(&self) -> u32 {
        self.coalescing.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub(crate) fn set_coalescing(&self, value: u32) {
        self.coalescing.store(value & 0xffff, Ordering::Relaxed);
    }

    /// Whether interrupts of `vector` are not coalesced.
    pub(crate) fn is_coalescing_exempt(&self, vector: u16) -> bool {
        self.exempt.get(usize::from(vector)).is_none_or(|exempt| exempt.load(Ordering::Relaxed))
    }

    /// Sets it.
    pub(crate) fn set_coalescing_exempt(&self, vector: u16, exempt: bool) {
        if let Some(place) = self.exempt.get(usize::from(vector)) {
            place.store(exempt, Ordering::Relaxed);
        }
    }

    /// The time and the number of entries to coalesce interrupts of `vector`; `None` for no coalescing.
    pub(crate) fn coalescing_limits(&self, vector: u16) -> Option<(u64, u32)> {
        let value = self.coalescing();
        let (threshold, time) = (value & 0xff, value >> 8 & 0xff);
        if time == 0 || self.is_coalescing_exempt(vector) {
            return None;
        }
        Some((u64::from(time) * 100_000, threshold + 1))
    }

    /// The error log.
    pub(crate) fn errors(&self) -> MutexGuard<'_, ErrorLog> {
        // The log is consistent after every statement that changes it.
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets the features; the error log stays.
    pub fn reset(&self) {
        self.set_write_cache(true);
        self.set_coalescing(0);
        for vector in 0..self.limits.vectors {
            self.set_coalescing_exempt(vector, false);
        }
    }
}
