//! `prereg bench registration`: the time of registering memory, as a table or as JSON.

use std::fmt;
use std::io::Write;

use clap::Args;
use prereg::PageShift;
use serde::Serialize;

use crate::backend;
use crate::commands::Outcome;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::units::{Bytes, parse_bytes};
use prereg_benches::registration::{Kind, Plan, Row, measure};
use prereg_benches::stats::Summary;

const MORE: &str = "\
All times are nanoseconds per system page, usually 4 KiB: the median, and the fastest and slowest in brackets. 'raw' are the \
system calls alone, measured in turns with prereg in the same run. The ratio is registering relative to the pin call plus one \
bulk read of pagemap, the median of the repetitions; so is the speed of two threads relative to one.

Example: prereg bench registration --size 1G --iterations 9";

/// Measure the time of registering and unregistering memory, next to the raw system calls
#[derive(Debug, Args)]
#[command(after_help = MORE)]
pub(crate) struct RegistrationArgs {
    /// Size of each memory, a multiple of 2M (suffixes K, M, G)
    #[arg(long, default_value = "256M", value_parser = parse_bytes)]
    size: u64,

    /// Repetitions
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    iterations: u32,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The results.
#[derive(Debug, Serialize)]
struct Results {
    bytes: u64,
    repetitions: u32,
    /// Processors of the machine.
    processors: usize,
    memories: Vec<Row>,
}

/// Measures and prints.
///
/// # Errors
/// [`CommandError::Host`] if this user may not pin that much, [`CommandError::Interrupted`].
pub(crate) fn run(
    args: &RegistrationArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Outcome, CommandError> {
    let what = || format!("measuring the registration of {}", Bytes(args.size));
    if args.size == 0 || args.size & PageShift::M2.mask() != 0 {
        return Err(CommandError::host(what(), "--size must be a multiple of 2 MiB, and not 0"));
    }
    // The raw calls and prereg pin the memory in turns, never both at once.
    backend::check_lockable(args.size).map_err(|why| {
        CommandError::host(what(), format!("this user cannot pin that: {why}, or ask for less with --size"))
    })?;
    let plan = Plan { bytes: args.size, reps: args.iterations };
    let mut memories = Vec::new();
    for kind in Kind::ALL {
        let bar = progress.bar(kind.name(), u64::from(args.iterations) * 2);
        memories.push(measure(kind, plan, &interrupt.flag(), &|done| bar.position(done))?);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let results = Results { bytes: args.size, repetitions: args.iterations, processors, memories };
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &results)?;
        writeln!(out)?;
    } else {
        write!(out, "{results}")?;
    }
    Ok(Outcome::Ok)
}

/// A summary, or a dash.
struct Cell(Option<Summary>);

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(spread) => fmt::Display::fmt(&spread, f),
            None => f.pad("-"),
        }
    }
}

/// A ratio, or a dash.
struct Factor(Option<f64>);

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(factor) => f.pad(&format!("{factor:.2}x")),
            None => f.pad("-"),
        }
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Registering {}, {} repetitions; ns for each system page: median (fastest..slowest)\n",
            Bytes(self.bytes),
            self.repetitions
        )?;
        writeln!(f, "memory with pages")?;
        writeln!(
            f,
            "  {:<10} {:>9} {:>24} {:>24} {:>24} {:>7} {:>24} {:>24}",
            "memory", "page", "register", "raw pin", "raw pagemap", "ratio", "unregister", "raw unpin"
        )?;
        for row in &self.memories {
            let name = row.memory.name();
            if let Some(why) = &row.skipped {
                writeln!(f, "  {name:<10} skipped: {why}")?;
                continue;
            }
            writeln!(
                f,
                "  {name:<10} {:>9} {:>24} {:>24} {:>24} {:>7} {:>24} {:>24}",
                Bytes(row.largest_page).to_string(),
                Cell(row.register),
                Cell(row.raw_pin),
                Cell(row.raw_pagemap),
                Factor(row.ratio),
                Cell(row.unregister),
                Cell(row.raw_unpin),
            )?;
        }
        writeln!(f, "\nmemory without pages ({} processors)", self.processors)?;
        writeln!(f, "  {:<10} {:>24} {:>24} {:>7}", "memory", "1 thread", "2 threads", "faster")?;
        for row in self.memories.iter().filter(|row| row.skipped.is_none()) {
            writeln!(
                f,
                "  {:<10} {:>24} {:>24} {:>7}",
                row.memory.name(),
                Cell(row.absent_one_thread),
                Cell(row.absent_two_threads),
                Factor(row.threads_speedup),
            )?;
        }
        Ok(())
    }
}
