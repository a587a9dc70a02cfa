//! Counters of commands. Each poll group has its own; readers add them up.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets of a latency histogram: bucket `n` counts latencies below `2^n` ns and not below half of that; the last one has the
/// rest.
pub(crate) const BUCKETS: usize = 36;

/// Kinds of commands that are counted separately.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// Read.
    Read = 0,
    /// Write.
    Write = 1,
    /// Flush.
    Flush = 2,
    /// Write Zeroes.
    Zeroes = 3,
    /// Dataset Management.
    Dataset = 4,
    /// Compare.
    Compare = 5,
    /// Any other opcode; it is rejected.
    Other = 6,
}

impl Kind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Read, Self::Write, Self::Flush, Self::Zeroes, Self::Dataset, Self::Compare, Self::Other];

    /// The kind of an I/O opcode.
    #[must_use]
    pub const fn of(opcode: u8) -> Self {
        use crate::spec::number::io;
        match opcode {
            io::READ => Self::Read,
            io::WRITE => Self::Write,
            io::FLUSH => Self::Flush,
            io::WRITE_ZEROES => Self::Zeroes,
            io::DATASET => Self::Dataset,
            io::COMPARE => Self::Compare,
            _ => Self::Other,
        }
    }

    /// The name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Zeroes => "write_zeroes",
            Self::Dataset => "dataset",
            Self::Compare => "compare",
            Self::Other => "other",
        }
    }
}

/// Counters that one thread writes and any thread reads.
#[derive(Debug)]
pub struct Counters {
    commands: [AtomicU64; Kind::ALL.len()],
    bytes: [AtomicU64; Kind::ALL.len()],
    nanoseconds: [AtomicU64; Kind::ALL.len()],
    latency: [[AtomicU64; BUCKETS]; Kind::ALL.len()],
    /// By status type (0 to 7) and code.
    failures: Box<[AtomicU64]>,
    in_flight: AtomicU64,
    interrupts: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            commands: Default::default(),
            bytes: Default::default(),
            nanoseconds: Default::default(),
            latency: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))),
            failures: (0..8 << 8).map(|_| AtomicU64::new(0)).collect(),
            in_flight: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
        }
    }
}

// Relaxed throughout: each counter is independent, and readers do not need a consistent set.
fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Counters {
    /// Counts a command that succeeded.
    pub(crate) fn succeeded(&self, kind: Kind, bytes: u64, nanoseconds: u64) {
        let kind = kind as usize;
        add(&self.commands[kind], 1);
        add(&self.bytes[kind], bytes);
        add(&self.nanoseconds[kind], nanoseconds);
        let bucket = (u64::BITS - nanoseconds.leading_zeros()) as usize;
        add(&self.latency[kind][bucket.min(BUCKETS - 1)], 1);
    }

    /// Counts a command that ended with `status`.
    pub fn failed(&self, status: crate::spec::Status) {
        if let Some(counter) = self.failures.get(usize::from(status.bits() & 0x7ff)) {
            add(counter, 1);
        }
    }

    /// Sets the number of commands in flight.
    pub(crate) fn set_in_flight(&self, commands: u64) {
        self.in_flight.store(commands, Ordering::Relaxed);
    }

    /// Counts interrupts.
    pub(crate) fn interrupted(&self, times: u64) {
        add(&self.interrupts, times);
    }

    /// The current values.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            in_flight: read(&self.in_flight),
            interrupts: read(&self.interrupts),
            ..Totals::default()
        };
        for kind in Kind::ALL {
            let at = kind as usize;
            totals.kinds[at] = KindTotals {
                commands: read(&self.commands[at]),
                bytes: read(&self.bytes[at]),
                nanoseconds: read(&self.nanoseconds[at]),
                latency: std::array::from_fn(|bucket| read(&self.latency[at][bucket])),
            };
        }
        for (bits, counter) in (0u16..).zip(&self.failures) {
            let count = read(counter);
            if count > 0 {
                totals.failures.push((crate::spec::Status::from_bits(bits), count));
            }
        }
        totals
    }
}

/// Totals of one kind of command, without those that failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KindTotals {
    /// Commands.
    pub commands: u64,
    /// Bytes transferred, or zeroed, or deallocated.
    pub bytes: u64,
    /// Sum of the latencies.
    pub nanoseconds: u64,
    /// Latency histogram, by powers of two of nanoseconds.
    pub latency: [u64; BUCKETS],
}

impl Default for KindTotals {
    fn default() -> Self {
        Self { commands: 0, bytes: 0, nanoseconds: 0, latency: [0; BUCKETS] }
    }
}

/// Counters as plain numbers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// By [`Kind`].
    pub kinds: [KindTotals; Kind::ALL.len()],
    /// Commands that failed, by status.
    pub failures: Vec<(crate::spec::Status, u64)>,
    /// Commands in flight.
    pub in_flight: u64,
    /// Interrupts.
    pub interrupts: u64,
}

impl Totals {
    /// The totals of one kind.
    #[must_use]
    pub fn of(&self, kind: Kind) -> &KindTotals {
        &self.kinds[kind as usize]
    }

    /// Adds the totals of another poll group.
    pub fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.kinds.iter_mut().zip(&other.kinds) {
            ours.commands += theirs.commands;
            ours.bytes += theirs.bytes;
            ours.nanoseconds += theirs.nanoseconds;
            for (bucket, more) in ours.latency.iter_mut().zip(theirs.latency) {
                *bucket += more;
            }
        }
        for (status, count) in &other.failures {
            match self.failures.iter_mut().find(|(known, _)| known == status) {
                Some((_, so_far)) => *so_far += count,
                None => self.failures.push((*status, *count)),
            }
        }
        self.in_flight += other.in_flight;
        self.interrupts += other.interrupts;
    }
}

#[cfg(test)]
mod tests {
    use super::{Counters, Kind, Totals};
    use crate::spec::Status;

    #[test]
    fn a_latency_is_counted_in_the_bucket_of_its_power_of_two() {
        let counters = Counters::default();
        for nanoseconds in [0, 1, 1023, 1024, u64::MAX] {
            counters.succeeded(Kind::Read, 512, nanoseconds);
        }
        let totals = counters.totals();
        let read = totals.of(Kind::Read);
        assert_eq!((read.commands, read.bytes), (5, 5 * 512));
        assert_eq!((read.latency[0], read.latency[1], read.latency[10], read.latency[11]), (1, 1, 1, 1));
        assert_eq!(read.latency[super::BUCKETS - 1], 1);
    }

    #[test]
    fn failures_are_counted_by_status_over_all_poll_groups() {
        let (one, other) = (Counters::default(), Counters::default());
        one.failed(Status::LBA_RANGE);
        other.failed(Status::LBA_RANGE);
        other.failed(Status::COMPARE_FAILURE);
        let mut totals = Totals::default();
        totals.add(&one.totals());
        totals.add(&other.totals());
        let count = |status: Status| {
            totals.failures.iter().find(|(found, _)| found.code() == status.code()).map(|(_, count)| *count)
        };
        assert_eq!((count(Status::LBA_RANGE), count(Status::COMPARE_FAILURE)), (Some(2), Some(1)));
    }
}
