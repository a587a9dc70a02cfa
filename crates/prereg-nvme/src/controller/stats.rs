//! Statistics of a controller.

use std::sync::atomic::Ordering;

use super::shared::ControllerShared;
use crate::engine::counters::{Kind, Totals};
use crate::engine::log_page::Health;

/// Statistics of a controller.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct NvmeState {
    /// Commands, bytes, latencies, failures.
    pub totals: Totals,
    /// Pairs of I/O queues that exist.
    pub io_queues: u64,
    /// Doorbell writes that were trapped.
    pub doorbells: u64,
    /// CSTS.
    pub status: u32,
    /// Errors in the error log since the controller was made.
    pub errors: u64,
}

impl NvmeState {
    pub(super) fn of(shared: &ControllerShared) -> Self {
        let queue_table = &shared.engine.queue_table;
        Self {
            totals: shared.totals(),
            io_queues: (1..queue_table.queues()).filter(|id| queue_table.has_submission(*id)).count() as u64,
            // Relaxed: an independent number.
            doorbells: shared.doorbells_rung.load(Ordering::Relaxed),
            status: shared.registers().status(),
            errors: shared.engine.errors().count(),
        }
    }

    /// The numbers by name: `read_commands`, `read_bytes`, `read_nanoseconds`, `read_latency_lt_2_17_ns` (the number of
    /// latencies below 2^17 ns and not below half of that; empty buckets are left out), the same for every kind of command;
    /// `status_0_80` (commands that ended with that status type and code, in hexadecimal digits); `in_flight`, `interrupts`,
    /// `io_queues`, `doorbells`, `errors`, `csts`.
    #[must_use]
    pub fn metrics(&self) -> Vec<(String, u64)> {
        let mut metrics = Vec::new();
        for kind in Kind::ALL {
            let (name, totals) = (kind.name(), self.totals.of(kind));
            if kind == Kind::Other {
                continue;
            }
            metrics.push((format!("{name}_commands"), totals.commands));
            metrics.push((format!("{name}_bytes"), totals.bytes));
            metrics.push((format!("{name}_nanoseconds"), totals.nanoseconds));
            for (power, count) in totals.latency.iter().enumerate().filter(|(_, count)| **count > 0) {
                metrics.push((format!("{name}_latency_lt_2_{power}_ns"), *count));
            }
        }
        for (status, count) in &self.totals.failures {
            metrics.push((format!("status_{:x}_{:02x}", status.kind(), status.code()), *count));
        }
        let rest = [
            ("in_flight", self.totals.in_flight),
            ("interrupts", self.totals.interrupts),
            ("io_queues", self.io_queues),
            ("doorbells", self.doorbells),
            ("errors", self.errors),
            ("csts", u64::from(self.status)),
        ];
        metrics.extend(rest.map(|(name, value)| (name.to_owned(), value)));
        metrics
    }

    /// Adds these numbers to the health log.
    pub(super) fn add_to(&self, health: &mut Health) {
        let (reads, compares) = (self.totals.of(Kind::Read), self.totals.of(Kind::Compare));
        let writes = self.totals.of(Kind::Write);
        health.bytes_read += reads.bytes + compares.bytes;
        health.bytes_written += writes.bytes;
        health.reads += reads.commands + compares.commands;
        health.writes += writes.commands;
        let busy: u64 = Kind::ALL.iter().map(|kind| self.totals.of(*kind).nanoseconds).sum();
        health.busy_minutes += busy / 60_000_000_000;
        let is_media = |kind: u8, code: u8| kind == 2 && matches!(code, 0x80 | 0x81);
        let failures = self.totals.failures.iter();
        health.media_errors += failures
            .filter(|(status, _)| is_media(status.kind(), status.code()))
            .map(|(_, count)| count)
            .sum::<u64>();
    }
}
