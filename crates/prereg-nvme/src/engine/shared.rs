//! What the admin queue sets and all poll_groups go by.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error_log::ErrorLog;
use super::namespace::Namespaces;
use super::queue_table::QueueTable;

/// What a controller can do at most.
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
    #[must_use]
    pub const fn max_transfer_bytes(&self) -> u64 {
        4096 << self.transfer_shift
    }
}

/// What poll_groups share.
#[derive(Debug)]
pub struct Shared {
    /// What there is at most.
    pub limits: Limits,
    /// The namespaces.
    pub namespaces: Namespaces,
    /// The doorbells.
    pub queue_table: QueueTable,
    write_cache: AtomicBool,
    coalescing: AtomicU32,
    exempt: Box<[AtomicBool]>,
    errors: Mutex<ErrorLog>,
}

impl Shared {
    /// As after a reset.
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

    // Relaxed throughout: settings take effect some time after the command that changes them; nothing else is read through
    // them.

    /// Whether writes may be done before they are durable.
    #[must_use]
    pub fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Relaxed)
    }

    /// Says so.
    pub fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Relaxed);
    }

    /// Interrupt Coalescing as Set Features has it: threshold in bits 7:0, time in units of 100 us in bits 15:8.
    #[must_use]
    pub fn coalescing(&self) -> u32 {
        self.coalescing.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set_coalescing(&self, value: u32) {
        self.coalescing.store(value & 0xffff, Ordering::Relaxed);
    }

    /// Whether `vector` is left out of it.
    #[must_use]
    pub fn is_coalescing_exempt(&self, vector: u16) -> bool {
        self.exempt.get(usize::from(vector)).is_none_or(|exempt| exempt.load(Ordering::Relaxed))
    }

    /// Says so.
    pub fn set_coalescing_exempt(&self, vector: u16, exempt: bool) {
        if let Some(place) = self.exempt.get(usize::from(vector)) {
            place.store(exempt, Ordering::Relaxed);
        }
    }

    /// How long and for how many entries interrupts of `vector` are held back; `None` when they are not.
    #[must_use]
    pub fn coalescing_limits(&self, vector: u16) -> Option<(u64, u32)> {
        let value = self.coalescing();
        let (threshold, time) = (value & 0xff, value >> 8 & 0xff);
        if time == 0 || self.is_coalescing_exempt(vector) {
            return None;
        }
        Some((u64::from(time) * 100_000, threshold + 1))
    }

    /// What went wrong lately.
    pub fn errors(&self) -> MutexGuard<'_, ErrorLog> {
        // The log is whole between any two statements that change it.
        self.errors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Features back to what they are after a reset; the error log stays.
    pub fn reset(&self) {
        self.set_write_cache(true);
        self.set_coalescing(0);
        for vector in 0..self.limits.vectors {
            self.set_coalescing_exempt(vector, false);
        }
    }
}
