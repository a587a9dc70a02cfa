//! Interleaved measurements: every repetition measures each candidate once, so that temporary load slows all of them down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::candidate::Case;
use super::clock::thread_time;
use super::fixture::{BoxedCandidate, Fixture};
use super::layout::{Layout, PAGE, Pattern, Shape};
use crate::error::{Interrupted, check};
use crate::stats::{Summary, median_ratio};

/// Repetitions and duration.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Repetitions.
    pub reps: u32,
    /// Operations of one pass, for candidates that are not slow.
    pub operations: u64,
    /// Time limit of a pass of a slow candidate, which gets fewer operations.
    pub time_limit: Duration,
}

/// The work of a second thread during the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackgroundLoad {
    /// No second thread.
    #[serde(rename = "nobody")]
    None,
    /// A thread that runs the measured operation.
    Reader,
    /// A thread that registers and unregisters another region in a loop.
    Writer,
}

impl BackgroundLoad {
    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "nobody",
            Self::Reader => "reader",
            Self::Writer => "writer",
        }
    }
}

/// One candidate in one case, in nanoseconds of the thread's processor time per operation, including the loop.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The operation.
    pub case: Case,
    /// The order of page addresses.
    pub pattern: Pattern,
    /// Bytes of all regions.
    pub size: u64,
    /// Number of regions.
    pub regions: u64,
    /// Their arrangement on the host.
    pub layout: Layout,
    /// Number of threads.
    pub threads: u32,
    /// The work of the second thread.
    #[serde(rename = "beside")]
    pub load: BackgroundLoad,
    /// The candidate's name.
    #[serde(rename = "subject")]
    pub candidate: &'static str,
    /// The median of the repetitions.
    pub ns: f64,
    /// The minimum.
    pub low: f64,
    /// The maximum.
    pub high: f64,
    /// Time relative to the roofline: the median of the repetitions' ratios.
    pub ratio_to_limit: Option<f64>,
}

/// A cell of the result: a case on a shape.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The registered memory.
    pub shape: Shape,
    /// The operation.
    pub case: Case,
    /// In which order pages are asked for.
    pub pattern: Pattern,
    /// The work of the second thread.
    pub load: BackgroundLoad,
}

/// A candidate is slow when a full pass would take more than this multiple of the time limit.
const SLOW: u64 = 4;

/// A candidate and its times.
struct Timed<'a> {
    name: &'static str,
    candidate: &'a mut BoxedCandidate,
    operations: u64,
    times: Vec<Duration>,
}

/// Measures `candidates` interleaved; the one named `limit` is the roofline of the ratios.
///
/// # Errors
/// [`Interrupted`].
pub fn interleaved(
    fixture: &Fixture,
    cell: Cell,
    candidates: &mut [(&'static str, BoxedCandidate)],
    effort: Effort,
    cancel: &AtomicBool,
) -> Result<Vec<Row>, Interrupted> {
    let (addresses, range) = (fixture.addresses(), cell.shape.range_bytes());
    let mut all: Vec<Timed<'_>> = candidates
        .iter_mut()
        .filter(|(_, candidate)| candidate.does(cell.case, cell.pattern))
        .map(|(name, candidate)| {
            const PROBE: u64 = 16;
            candidate.pass(cell.case, cell.pattern, addresses, range, PROBE);
            let start = thread_time();
            candidate.pass(cell.case, cell.pattern, addresses, range, PROBE);
            let each = (thread_time() - start).as_nanos() as u64 / PROBE + 1;
            // A range is many pages.
            let wanted = if cell.case == Case::Range { effort.operations / 16 } else { effort.operations };
            // Fewer operations touch less memory, so only candidates that are slow for other reasons get fewer.
            let time_limit = effort.time_limit.as_nanos() as u64;
            let operations =
                if each * wanted > SLOW * time_limit { (time_limit / each).max(PROBE) } else { wanted };
            Timed { name, candidate, operations, times: Vec::new() }
        })
        .collect();
    for _ in 0..effort.reps {
        for timed in &mut all {
            check(cancel)?;
            // The first pass warms the caches.
            timed.candidate.pass(cell.case, cell.pattern, addresses, range, timed.operations);
            let start = thread_time();
            timed.candidate.pass(cell.case, cell.pattern, addresses, range, timed.operations);
            timed.times.push(per_operation(thread_time() - start, timed.operations));
        }
    }
    let limit = all.iter().find(|timed| timed.name == "limit").map(|timed| timed.times.clone());
    Ok(all.iter().filter_map(|timed| row(cell, timed.name, &timed.times, limit.as_deref())).collect())
}

/// The time of a million operations, which keeps the digits that the time of one would lose.
fn per_operation(took: Duration, operations: u64) -> Duration {
    Duration::from_nanos((took.as_nanos() as f64 / operations.max(1) as f64 * 1e6) as u64)
}

/// `times` are for a million operations each.
pub(super) fn row(
    cell: Cell,
    candidate: &'static str,
    times: &[Duration],
    limit: Option<&[Duration]>,
) -> Option<Row> {
    let Summary { median, min, max } = Summary::of(times, 1_000_000)?;
    let Cell { shape, case, pattern, load } = cell;
    Some(Row {
        case,
        pattern,
        size: shape.size,
        regions: shape.regions,
        layout: shape.layout,
        threads: if load == BackgroundLoad::None { 1 } else { 2 },
        load,
        candidate,
        ns: median,
        low: min,
        high: max,
        ratio_to_limit: limit.and_then(|limit| median_ratio(times, limit)),
    })
}

/// Measures with a second thread: `limit`, `prereg` and `one-atomic`, each with another thread of its kind, or with a writer.
///
/// # Errors
/// [`Interrupted`].
pub fn under_load(
    fixture: &Fixture,
    cell: Cell,
    effort: Effort,
    cancel: &AtomicBool,
) -> Result<Vec<Row>, Interrupted> {
    let mut rows = Vec::new();
    match cell.load {
        BackgroundLoad::None => rows = interleaved(fixture, cell, &mut fixture.contenders(), effort, cancel)?,
        BackgroundLoad::Reader => {
            // The second thread runs the same candidate, so candidates cannot be interleaved.
            for (mine, yours) in fixture.contenders().into_iter().zip(fixture.contenders()) {
                let thread = LoadThread::reader(fixture, cell, yours.1);
                rows.extend(thread.during(|| interleaved(fixture, cell, &mut [mine], effort, cancel))?);
            }
        }
        BackgroundLoad::Writer => {
            let thread = LoadThread::writer(fixture, WRITES);
            rows = thread.during(|| interleaved(fixture, cell, &mut fixture.contenders(), effort, cancel))?;
        }
    }
    let limit = rows.iter().find(|row| row.candidate == "limit").map(|row| row.ns);
    for row in &mut rows {
        row.ratio_to_limit = row.ratio_to_limit.or_else(|| limit.map(|limit| row.ns / limit));
    }
    Ok(rows)
}

/// Unregisters per second of the writer.
const WRITES: u64 = 10_000;

/// The work of the second thread.
struct LoadThread<'a> {
    stop: Arc<AtomicBool>,
    work: Box<dyn FnOnce() + Send + 'a>,
}

impl<'a> LoadThread<'a> {
    /// Runs the operation of `cell` in a loop.
    fn reader(fixture: &'a Fixture, cell: Cell, mut candidate: BoxedCandidate) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let work = Box::new(move || {
            // Relaxed: a flag that orders no other memory.
            while !ended.load(Ordering::Relaxed) {
                candidate.pass(
                    cell.case,
                    cell.pattern,
                    fixture.addresses(),
                    cell.shape.range_bytes(),
                    10_000,
                );
            }
        });
        Self { stop, work }
    }

    /// Registers and unregisters a page behind all regions, `rate` times per second.
    fn writer(fixture: &'a Fixture, rate: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = stop.clone();
        let work = Box::new(move || {
            let page = fixture.one_more(1);
            let pace = Duration::from_nanos(1_000_000_000 / rate);
            let mut due = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                if let Ok(registration) = fixture.space().register(&page) {
                    // There are no mappings, so it is not refused.
                    let _ = registration.unregister();
                }
                due = (due + pace).max(Instant::now());
                while Instant::now() < due && !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        });
        Self { stop, work }
    }

    /// Runs `measure` while the second thread works.
    fn during<R>(self, measure: impl FnOnce() -> R) -> R {
        let Self { stop, work } = self;
        std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let measured = measure();
            stop.store(true, Ordering::Relaxed);
            // A panic of the second thread is passed on.
            if let Err(panic) = other.join() {
                std::panic::resume_unwind(panic);
            }
            measured
        })
    }
}

/// Registers and unregisters another page behind all regions without pinning: without a translator, or with one at work on
/// another processor.
///
/// # Errors
/// [`Interrupted`].
pub fn registration(
    fixture: &Fixture,
    load: BackgroundLoad,
    effort: Effort,
    cancel: &AtomicBool,
) -> Result<Option<Row>, Interrupted> {
    let cell = Cell { shape: fixture.shape, case: Case::Register, pattern: Pattern::Random, load };
    let measure = || {
        let page = fixture.one_more(1);
        let operations = (effort.operations / 256).max(64);
        let refused = AtomicU64::new(0);
        let pairs = |count: u64| {
            for _ in 0..count {
                match fixture.space().register(&page).map(prereg::Registration::unregister) {
                    Ok(Ok(())) => {}
                    _ => _ = refused.fetch_add(1, Ordering::Relaxed),
                }
            }
        };
        let mut times = Vec::new();
        for _ in 0..effort.reps {
            check(cancel)?;
            pairs(operations / 8);
            let start = thread_time();
            pairs(operations);
            times.push(per_operation(thread_time() - start, operations));
        }
        assert_eq!(refused.into_inner(), 0, "a page of {PAGE} bytes without mappings was refused");
        Ok(row(cell, "prereg", &times, None))
    };
    match load {
        BackgroundLoad::None | BackgroundLoad::Writer => measure(),
        BackgroundLoad::Reader => {
            let mapping = Cell { case: Case::MapUnmap, ..cell };
            LoadThread::reader(fixture, mapping, fixture.prereg()).during(measure)
        }
    }
}
