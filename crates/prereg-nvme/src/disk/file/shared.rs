//! Shared state of the queues of one file: the file, its size, counters, and whether data were lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use prereg::Errno;
use prereg_linux::{IoPath, IoUring};

use super::storage::Storage;
use crate::disk::{DiskCounters, DiskFault, Operation, system};

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) storage: Storage,
    pub(super) pins: Option<Arc<IoUring>>,
    bytes: AtomicU64,
    /// The error number of the first failure to make data durable; 0: none.
    lost: AtomicI32,
    /// The file system does not support `FALLOC_FL_ZERO_RANGE`, or holes.
    no_zero_range: AtomicBool,
    no_holes: AtomicBool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    flushes: AtomicU64,
    zeroes: AtomicU64,
    discards: AtomicU64,
    compares: AtomicU64,
    faults: AtomicU64,
    fixed: AtomicU64,
    plain: AtomicU64,
    bounced: AtomicU64,
    continued: AtomicU64,
    retried: AtomicU64,
    syncs: AtomicU64,
}

/// Something that is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Event {
    Read(u64),
    Write(u64),
    Flush,
    Zeroes,
    Discards(u64),
    Compare,
    Fault,
    Transfer(IoPath),
    Continued,
    Retried,
    Sync,
}

impl Shared {
    pub(super) fn new(storage: Storage, pins: Option<Arc<IoUring>>, bytes: u64) -> Self {
        Self {
            storage,
            pins,
            bytes: AtomicU64::new(bytes),
            lost: AtomicI32::new(0),
            no_zero_range: AtomicBool::new(false),
            no_holes: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        // Relaxed: an independent number; the file rejects accesses beyond its end.
        self.bytes.load(Ordering::Relaxed)
    }

    /// Sets the size; returns the old one.
    pub(super) fn set_bytes(&self, bytes: u64) -> u64 {
        // Relaxed: as above.
        self.bytes.swap(bytes, Ordering::Relaxed)
    }

    /// Some data could not be made durable.
    pub(super) fn set_lost(&self, errno: Errno) {
        // Release, with the load in `lost`. A failed exchange means there was an earlier failure, which is the one to report.
        let _ = self.lost.compare_exchange(0, errno.raw(), Ordering::Release, Ordering::Relaxed);
    }

    /// The fault of all durable operations after [`set_lost`](Self::set_lost).
    pub(super) fn lost(&self) -> Option<DiskFault> {
        // Acquire, with the exchange in `set_lost`: a flush that starts after a failure was reported sees it.
        match self.lost.load(Ordering::Acquire) {
            0 => None,
            raw => Some(DiskFault::Lost(Errno::from_raw(raw))),
        }
    }

    /// The `fallocate` mode that zeroes a range; `None`: zeros have to be written.
    pub(super) fn zero_mode(&self, deallocate: bool) -> Option<i32> {
        // Relaxed: a stale value costs one call that fails.
        if deallocate && !self.no_holes.load(Ordering::Relaxed) {
            Some(system::PUNCH)
        } else {
            (!self.no_zero_range.load(Ordering::Relaxed)).then_some(system::ZERO)
        }
    }

    /// The file system does not support this mode.
    pub(super) fn without_mode(&self, mode: i32) {
        let flag = if mode == system::PUNCH { &self.no_holes } else { &self.no_zero_range };
        // Relaxed: as in `zero_mode`.
        flag.store(true, Ordering::Relaxed);
    }

    /// Counts a completed request.
    pub(super) fn count_request(&self, operation: &Operation, bytes: u64, fault: Option<&DiskFault>) {
        let event = match (fault, operation) {
            (None | Some(DiskFault::Mismatch), Operation::Compare { .. }) => Event::Compare,
            (Some(_), _) => Event::Fault,
            (None, Operation::Read { .. }) => Event::Read(bytes),
            (None, Operation::Write { .. }) => Event::Write(bytes),
            (None, Operation::Flush) => Event::Flush,
            (None, Operation::WriteZeroes { .. }) => Event::Zeroes,
            (None, Operation::Discard { ranges }) => Event::Discards(ranges.len() as u64),
        };
        self.count(event);
    }

    pub(super) fn count(&self, event: Event) {
        let counts = &self.counts;
        // Relaxed: numbers for reports.
        let add = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        match event {
            Event::Read(bytes) => {
                add(&counts.reads, 1);
                add(&counts.bytes_read, bytes)
            }
            Event::Write(bytes) => {
                add(&counts.writes, 1);
                add(&counts.bytes_written, bytes)
            }
            Event::Flush => add(&counts.flushes, 1),
            Event::Zeroes => add(&counts.zeroes, 1),
            Event::Discards(ranges) => add(&counts.discards, ranges),
            Event::Compare => add(&counts.compares, 1),
            Event::Fault => add(&counts.faults, 1),
            Event::Transfer(IoPath::Fixed) => add(&counts.fixed, 1),
            Event::Transfer(IoPath::Plain) => add(&counts.plain, 1),
            Event::Transfer(IoPath::Buffer) => add(&counts.bounced, 1),
            Event::Continued => add(&counts.continued, 1),
            Event::Retried => add(&counts.retried, 1),
            Event::Sync => add(&counts.syncs, 1),
        };
    }

    pub(super) fn counters(&self) -> DiskCounters {
        let counts = &self.counts;
        // Relaxed: numbers for reports.
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskCounters {
            reads: value(&counts.reads),
            bytes_read: value(&counts.bytes_read),
            writes: value(&counts.writes),
            bytes_written: value(&counts.bytes_written),
            flushes: value(&counts.flushes),
            zeroes: value(&counts.zeroes),
            discards: value(&counts.discards),
            compares: value(&counts.compares),
            faults: value(&counts.faults),
            fixed: value(&counts.fixed),
            plain: value(&counts.plain),
            bounced: value(&counts.bounced),
            continued: value(&counts.continued),
            retried: value(&counts.retried),
            syncs: value(&counts.syncs),
        }
    }
}
