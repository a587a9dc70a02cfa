//! Cost of registering memory, next to the system calls it consists of.
//!
//! In every repetition the raw calls and prereg alternate on the same memory, in alternating order, so that neither always
//! finds the caches warm. Memory without pages is allocated anew for each measurement.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use prereg::{AddressSpace, UserRange};
use prereg_linux::syscall_baseline::{RawPin, read_page_map};
use prereg_linux::{GuestMemory, HugeSize, IoUring, MemoryError, Pagemap, Prefault, PrefaultError, prefault};
use serde::Serialize;

use crate::error::{BenchError, Interrupted, check};
use crate::stats::{Summary, median_ratio};

/// A plan.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of each memory: whole 2 MiB.
    pub bytes: u64,
    /// Repetitions.
    pub reps: u32,
}

/// Threads that fault pages in, compared with one.
const THREADS: usize = 2;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A memfd of system pages: what guest RAM usually is.
    Memfd,
    /// Private anonymous system pages.
    Anonymous,
    /// Private anonymous memory with transparent huge pages.
    Thp,
    /// A memfd of 2 MiB pages from the pool.
    Hugetlb,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Memfd, Self::Anonymous, Self::Thp, Self::Hugetlb];

    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memfd => "memfd",
            Self::Anonymous => "anonymous",
            Self::Thp => "thp",
            Self::Hugetlb => "hugetlb",
        }
    }

    fn memory(self, bytes: u64) -> Result<GuestMemory, MemoryError> {
        match self {
            Self::Memfd => GuestMemory::memfd("prereg-bench", bytes),
            Self::Anonymous => GuestMemory::anonymous(bytes),
            Self::Thp => GuestMemory::anonymous_thp(bytes),
            Self::Hugetlb => GuestMemory::memfd_hugetlb("prereg-bench", bytes, HugeSize::M2),
        }
    }
}

/// The measurements of one kind of memory, in nanoseconds per system page.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The kind of memory.
    pub memory: Kind,
    /// The reason for not measuring it; then no other field is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The largest page that the registration can be mapped with, in bytes.
    pub largest_page: u64,
    /// Register memory that is present.
    pub register: Option<Summary>,
    /// The raw pin call alone.
    pub raw_pin: Option<Summary>,
    /// One bulk read of pagemap alone.
    pub raw_pagemap: Option<Summary>,
    /// `register` relative to `raw_pin` plus `raw_pagemap`: the median of the repetitions' ratios.
    pub ratio: Option<f64>,
    /// Unregister.
    pub unregister: Option<Summary>,
    /// The raw unpin call alone.
    pub raw_unpin: Option<Summary>,
    /// Register memory without pages, faulted in by one thread.
    pub absent_one_thread: Option<Summary>,
    /// Register memory without pages, faulted in by two threads.
    pub absent_two_threads: Option<Summary>,
    /// Speed of two threads relative to one: the median of the repetitions' ratios.
    pub threads_speedup: Option<f64>,
}

impl Row {
    const fn blank(memory: Kind) -> Self {
        Self {
            memory,
            skipped: None,
            largest_page: 0,
            register: None,
            raw_pin: None,
            raw_pagemap: None,
            ratio: None,
            unregister: None,
            raw_unpin: None,
            absent_one_thread: None,
            absent_two_threads: None,
            threads_speedup: None,
        }
    }
}

/// Measures one kind of memory. `progress` gets the number of finished repetitions.
///
/// # Errors
/// [`BenchError::Failed`] if memory cannot be pinned, [`BenchError::Interrupted`]. Memory that cannot be allocated is a skipped
/// row.
pub fn measure(
    kind: Kind,
    plan: Plan,
    cancel: &AtomicBool,
    progress: &dyn Fn(u64),
) -> Result<Row, BenchError> {
    let mut row = Row::blank(kind);
    // A pool that is too small shows when the memory is mapped or touched.
    let present = match make(kind, plan.bytes, true, cancel)? {
        Ok(memory) => memory,
        Err(reason) => {
            row.skipped = Some(reason);
            return Ok(row);
        }
    };
    let host = |error: &dyn std::fmt::Display| BenchError::failed("measuring registration", error);
    let bare = RawPin::new().map_err(|error| host(&error))?;
    let map = Pagemap::open().map_err(|error| host(&error))?;
    let one = Bench::new(1)?;
    let several = Bench::new(THREADS)?;
    let range = UserRange::new(present.ua(), present.bytes(), map.granule()).map_err(|error| host(&error))?;
    let pages = range.pages(map.granule());

    let mut times = Times::default();
    for rep in 0..plan.reps {
        check(cancel)?;
        progress(u64::from(rep));
        for turn in 0..2 {
            if (rep + turn) % 2 == 0 {
                times.raw(&bare, &map, range)?;
            } else {
                row.largest_page = one.once(&present, &mut times.register, &mut times.unregister)?;
            }
        }
    }
    drop(present);
    let mut unmeasured = Vec::new();
    for rep in 0..plan.reps {
        progress(u64::from(plan.reps + rep));
        for turn in 0..2 {
            check(cancel)?;
            let Ok(absent) = make(kind, plan.bytes, false, cancel)? else { continue };
            if (rep + turn) % 2 == 0 {
                one.once(&absent, &mut times.one_thread, &mut unmeasured)?;
            } else {
                several.once(&absent, &mut times.two_threads, &mut unmeasured)?;
            }
        }
    }
    row.register = Summary::of(&times.register, pages);
    row.unregister = Summary::of(&times.unregister, pages);
    row.raw_pin = Summary::of(&times.raw_pin, pages);
    row.raw_pagemap = Summary::of(&times.raw_pagemap, pages);
    row.raw_unpin = Summary::of(&times.raw_unpin, pages);
    row.absent_one_thread = Summary::of(&times.one_thread, pages);
    row.absent_two_threads = Summary::of(&times.two_threads, pages);
    let raw: Vec<_> = times.raw_pin.iter().zip(&times.raw_pagemap).map(|(pin, read)| *pin + *read).collect();
    row.ratio = median_ratio(&times.register, &raw);
    row.threads_speedup = median_ratio(&times.one_thread, &times.two_threads);
    Ok(row)
}

/// Memory of `kind`, touched or not; the inner error is the reason for this host having none.
fn make(
    kind: Kind,
    bytes: u64,
    touched: bool,
    cancel: &AtomicBool,
) -> Result<Result<GuestMemory, String>, BenchError> {
    let memory = match kind.memory(bytes) {
        Ok(memory) => memory,
        Err(error) => return Ok(Err(error.to_string())),
    };
    if touched {
        match prefault(&memory, Prefault { threads: 0, progress: None, cancel: Some(cancel) }) {
            Ok(()) => {}
            Err(PrefaultError::Cancelled { .. }) => return Err(Interrupted.into()),
            Err(error) => return Ok(Err(error.to_string())),
        }
    }
    Ok(Ok(memory))
}

#[derive(Debug, Default)]
struct Times {
    register: Vec<Duration>,
    unregister: Vec<Duration>,
    raw_pin: Vec<Duration>,
    raw_pagemap: Vec<Duration>,
    raw_unpin: Vec<Duration>,
    one_thread: Vec<Duration>,
    two_threads: Vec<Duration>,
}

impl Times {
    /// Measures the raw calls once.
    fn raw(&mut self, raw: &RawPin, map: &Pagemap, range: UserRange) -> Result<(), BenchError> {
        let start = Instant::now();
        raw.pin(range).map_err(|errno| BenchError::failed("pinning with the raw call", errno))?;
        self.raw_pin.push(start.elapsed());
        let start = Instant::now();
        let read = read_page_map(map, range);
        self.raw_pagemap.push(start.elapsed());
        let start = Instant::now();
        raw.unpin(range);
        self.raw_unpin.push(start.elapsed());
        read.map(drop).map_err(|error| BenchError::failed("reading pagemap", error))
    }
}

/// An address space whose pins fault missing pages in with several threads.
struct Bench {
    space: AddressSpace,
}

impl Bench {
    fn new(threads: usize) -> Result<Self, BenchError> {
        let ring = IoUring::builder().prefault_threads(threads).build();
        let ring = Arc::new(ring.map_err(|error| BenchError::failed("pinning through io_uring", error))?);
        Ok(Self { space: AddressSpace::builder(ring).build()? })
    }

    /// Registers and unregisters once; returns the largest page that the registration can be mapped with.
    fn once(
        &self,
        memory: &GuestMemory,
        register: &mut Vec<Duration>,
        unregister: &mut Vec<Duration>,
    ) -> Result<u64, BenchError> {
        let start = Instant::now();
        let registration =
            self.space.register(memory).map_err(|error| BenchError::failed("registering memory", error))?;
        register.push(start.elapsed());
        let largest = registration.largest_page().bytes();
        let start = Instant::now();
        registration.unregister().map_err(|error| BenchError::failed("unregistering memory", error))?;
        unregister.push(start.elapsed());
        Ok(largest)
    }
}
