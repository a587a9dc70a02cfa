//! The timed passes.
//!
//! A pass replays the whole trace over new tables, without device accesses. The clock is read once for many calls, and not during
//! output. The only check is one comparison of each result.

use std::time::{Duration, Instant};

use super::machine::Machine;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::progress::Bar;
use crate::trace::record::{Record, Trace};

/// The time of one pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pass {
    /// Up to the first call that maps.
    pub boot: Duration,
    /// From there on.
    pub rest: Duration,
    /// Calls whose result differs from the recorded one.
    pub mismatches: u64,
}

/// Records between two reads of the clock and the interrupt flag.
const CHUNK: usize = 16_384;

/// Replays all of `trace` on `machine`, which has no tables.
///
/// # Errors
/// [`CommandError::Interrupted`], or [`CommandError::Replay`] if a table cannot be created.
pub(crate) fn pass(
    machine: &mut Machine<'_>,
    trace: &Trace,
    interrupt: &Interrupt,
    bar: &Bar,
) -> Result<Pass, CommandError> {
    let mut result = Pass::default();
    let boot = trace.first_mapping();
    let (clearing, rest) = trace.records.split_at(boot);
    for (records, first, took) in [(clearing, 0, &mut result.boot), (rest, boot, &mut result.rest)] {
        for (chunk, number) in records.chunks(CHUNK).zip((first..).step_by(CHUNK)) {
            interrupt.check()?;
            bar.position(number as u64);
            let start = Instant::now();
            let mismatches = run(machine, chunk, number)?;
            *took += start.elapsed();
            result.mismatches += mismatches;
        }
    }
    Ok(result)
}

fn run(machine: &mut Machine<'_>, records: &[Record], first: usize) -> Result<u64, CommandError> {
    let mut mismatches = 0;
    for (at, record) in records.iter().enumerate() {
        if let Some(reply) = machine.step(first + at, record)? {
            let (Record::Put { ret, .. }
            | Record::Stuff { ret, .. }
            | Record::Indirect { ret, .. }
            | Record::Get { ret, .. }) = *record
            else {
                continue;
            };
            mismatches += u64::from(reply.code.raw() != i64::from(ret));
        }
    }
    Ok(mismatches)
}

/// The pass with the median time.
#[must_use]
pub(crate) fn median(passes: &[Pass]) -> Pass {
    let mut sorted = passes.to_vec();
    sorted.sort_by_key(|pass| pass.rest);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Nanoseconds for each of `count` operations; `None` without any.
#[must_use]
pub(crate) fn ns_each(took: Duration, count: u64) -> Option<f64> {
    (count > 0).then(|| took.as_nanos() as f64 / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_pass_in_the_middle() {
        let pass = |ns| Pass { rest: Duration::from_nanos(ns), ..Pass::default() };
        assert_eq!(median(&[pass(9), pass(1), pass(5)]).rest, Duration::from_nanos(5));
        assert_eq!(median(&[]), Pass::default());
    }

    #[test]
    fn no_operations_have_no_time() {
        assert_eq!(ns_each(Duration::from_nanos(10), 0), None);
        assert_eq!(ns_each(Duration::from_nanos(10), 4), Some(2.5));
    }
}
