//! `prereg bench hot-path`: the time of mapping a registered page, as a table, as JSON, as a plot.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::commands::Outcome;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::units::Bytes;
use prereg_benches::hot_path::measure::Row;
use prereg_benches::hot_path::plan::Plan;
use prereg_benches::hot_path::plot::plot;

const MORE: &str = "\
All times are nanoseconds of the thread's own processor time for one operation, the loop around it (some 1 ns) included: \
the median of 9 repetitions, and the fastest and slowest in brackets. The candidates take turns, each after a pass that warms \
its caches. 'limit' is a flat table of 4-byte page numbers with plain counters and no safety at all; ratios are relative to it. \
For 'prereg', 'translate' returns only whether the page can be mapped: it returns no address without counting it.

Example: prereg bench hot-path --quick --plot hot-path.svg";

/// Measure the time of mapping a registered page, next to the machine's limit and to baselines
#[derive(Debug, Args)]
#[command(after_help = MORE)]
pub(crate) struct HotPathArgs {
    /// Fewer shapes and shorter passes: half a minute instead of many
    #[arg(long)]
    quick: bool,

    /// Print JSON: an array of rows
    #[arg(long)]
    json: bool,

    /// Plot the times as SVG into FILE
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// Pin memory (up to 8 GiB) instead of inventing addresses
    #[arg(long)]
    pin_memory: bool,
}

/// Measures and prints.
///
/// # Errors
/// [`CommandError::Host`] if this user may not pin that much or the plot cannot be written, [`CommandError::Interrupted`].
pub(crate) fn run(
    args: &HotPathArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Outcome, CommandError> {
    let plan = if args.quick { Plan::quick(args.pin_memory) } else { Plan::full(args.pin_memory) };
    let rows = {
        let bar = progress.bar("measuring the hot path", 0);
        plan.measure(&interrupt.flag(), &|done, length| bar.position_of(done, length))?
    };
    if let Some(file) = &args.plot {
        let written = std::fs::write(file, plot(&rows));
        written.map_err(|error| CommandError::host(format!("writing {}", file.display()), error))?;
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    } else {
        print(&rows, out)?;
    }
    Ok(Outcome::Ok)
}

/// Prints one block for each shape and case.
fn print(rows: &[Row], out: &mut impl Write) -> Result<(), CommandError> {
    let mut block = None;
    for row in rows {
        let key = (row.case, row.pattern, row.size, row.regions, row.layout, row.load);
        if block != Some(key) {
            block = Some(key);
            write!(
                out,
                "\n{} {}, {} in {} regions, {}",
                row.case.name(),
                row.pattern.name(),
                Bytes(row.size),
                row.regions,
                row.layout.name()
            )?;
            writeln!(
                out,
                "{}",
                if row.threads > 1 { format!(", beside a {}", row.load.name()) } else { String::new() }
            )?;
        }
        let ratio = row.ratio_to_limit.map_or_else(String::new, |ratio| format!("{ratio:.2}x"));
        let spread = format!("({:.1}..{:.1})", row.low, row.high);
        writeln!(out, "  {:<16} {:>9.1} ns {:<20} {:>8}", row.candidate, row.ns, spread, ratio)?;
    }
    Ok(())
}
