//! `prereg replay`: reads all traces, replays each, and prints a report for each.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::backend::{HostMemory, ReplayBackend};
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::replay::report::{Answer, Report};
use crate::replay::{Options, Replay, RuleChoice, Verify};
use crate::trace::parse::Limits;
use crate::trace::read::read;

const MORE: &str = "\
The guest RAM of each trace is a memfd that is registered once. Every call of the trace is replayed over it: once with all \
checks, then for the time. With --json one trace yields an object and several an array, in order. Numbers that are null \
were not measured. With --rules kvm results are still compared with those of QEMU in the trace.

Examples:
  prereg replay conformance/traces/nvme4k.tce.zst
  prereg replay --compare --json nvme4k.tce.zst | jq .speedup
  prereg replay --backend sim --rules kvm --print-calls errors.tce";

/// Replay hypercall traces of real guests over memory that is pinned once
#[derive(Debug, Args)]
#[command(after_long_help = MORE)]
pub(crate) struct ReplayArgs {
    /// Trace files (.tce, or .tce.zst; format in docs/traces.md)
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,

    /// Rules of the hypercalls
    #[arg(long, value_enum, default_value_t = RuleChoice::Qemu)]
    rules: RuleChoice,

    /// Pin back end of guest RAM
    #[arg(long, value_enum, default_value_t = ReplayBackend::Auto)]
    backend: ReplayBackend,

    /// Live entries that are compared with /proc/self/pagemap
    #[arg(long, value_enum, default_value_t = Verify::Sample)]
    verify: Verify,

    /// Also pin at every map and unpin at every unmap, on the same back end, and print the ratio
    ///
    /// Stops after half a million pins, or at the back end's limit; the time is then divided by the entries written so far.
    #[arg(long)]
    compare: bool,

    /// Print every call: its line, the guest's mark, the recorded result and ours (and that of the kernel's handler)
    #[arg(long)]
    print_calls: bool,

    /// Print JSON: an object for one trace, an array for several
    #[arg(long)]
    json: bool,

    /// Timed replays of each trace; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    iterations: u32,
}

/// Replays and prints.
///
/// # Errors
/// [`CommandError`] for the first trace that is invalid (nothing is pinned then) or that the host refuses.
pub(crate) fn run(
    args: &ReplayArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Outcome, CommandError> {
    let host_bytes = HostMemory::now().map_or(u64::MAX, |memory| memory.total);
    let limits = Limits { host_bytes, ..Limits::default() };
    let mut traces = Vec::new();
    for path in &args.traces {
        interrupt.check()?;
        let trace = read(path, &limits)?;
        traces.push(trace);
    }
    let options = Options {
        rules: args.rules,
        backend: args.backend,
        verify: args.verify,
        compare: args.compare,
        print_calls: args.print_calls,
        iterations: args.iterations,
    };
    let mut outcome = Outcome::Ok;
    let mut reports = Vec::new();
    let mut printed = None;
    for trace in &traces {
        let replay = Replay::set_up(trace, &options, interrupt, progress)?;
        // Once for traces with the same notice.
        if let Some(notice) = replay.notice().filter(|notice| printed.as_deref() != Some(*notice)) {
            if args.json {
                // If this fails: the notice is in the JSON too.
                let _ = writeln!(std::io::stderr(), "prereg: {notice}");
            } else {
                writeln!(out, "{notice}")?;
                out.flush()?;
            }
            printed = Some(notice.to_owned());
        }
        let report = replay.run()?;
        if !report.is_clean() {
            outcome = Outcome::Mismatch;
        }
        if !args.json {
            print(&report, out)?;
        }
        reports.push(report);
    }
    if args.json {
        match &reports[..] {
            [one] => serde_json::to_writer_pretty(&mut *out, one)?,
            many => serde_json::to_writer_pretty(&mut *out, many)?,
        }
        writeln!(out)?;
    }
    Ok(outcome)
}

fn print(report: &Report, out: &mut impl Write) -> Result<(), CommandError> {
    for Answer { line, mark, recorded, ours, handler } in report.answers.iter().flatten() {
        write!(out, "{}:{line}\t{mark}\trecorded {recorded}\tours {ours}", report.file)?;
        match handler {
            Some(handler) => writeln!(out, "\thandler {handler}")?,
            None => writeln!(out)?,
        }
    }
    write!(out, "{report}")?;
    out.flush()?;
    Ok(())
}
