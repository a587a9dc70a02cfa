//! `prereg bench hot-path`: the time of a counted translation, as a table, as JSON, as a plot.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::quantity::Bytes;
use prereg_benches::hot_path::measure::Row;
use prereg_benches::hot_path::plan::Plan;
use prereg_benches::hot_path::plot::plot;

const MORE: &str = "\
All times are nanoseconds of the thread's own processor time for one operation, the loop around it (some 1 ns) included: \
the median of 9 repetitions, and the fastest and slowest in brackets. The candidates take turns, each after a pass that warms \
its caches. 'limit' is a flat table of 4-byte page numbers with plain counters and no safety at all; ratios are relative to it. \
'prereg' answers 'translate' with yes or no: it returns no address without counting it.

Example: prereg bench hot-path --quick --plot hot-path.svg";

/// Measure the time of mapping a registered page, next to the machine's limit and to baselines
#[derive(Debug, Args)]
#[command(after_help = MORE)]
pub struct HotPathArgs {
    /// Fewer shapes and shorter passes: half a minute instead of many
    #[arg(long)]
    quick: bool,

    /// Print JSON: an array of rows
    #[arg(long)]
    json: bool,

    /// Plot the times as SVG into FILE
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,

    /// Pin real memory instead of inventing addresses (up to 8 GiB)
    #[arg(long)]
    real: bool,
}

/// Measures and prints.
///
/// # Errors
/// [`Failure::Host`] if this user may not pin that much or the plot cannot be written, [`Failure::Interrupted`].
pub fn run(
    args: &HotPathArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Outcome, Failure> {
    let plan = if args.quick { Plan::quick(args.real) } else { Plan::full(args.real) };
    let rows = {
        let stage = progress.stage("measuring the hot path", 0);
        plan.measure(&interrupt.flag(), &|done, length| stage.at_of(done, length))?
    };
    if let Some(file) = &args.plot {
        let written = std::fs::write(file, plot(&rows));
        written.map_err(|error| Failure::host(format!("writing {}", file.display()), error))?;
    }
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &rows)?;
        writeln!(out)?;
    } else {
        print(&rows, out)?;
    }
    Ok(Outcome::Clean)
}

/// Prints one block per shape and case.
fn print(rows: &[Row], out: &mut impl Write) -> Result<(), Failure> {
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
