//! `prereg replay`: reads all traces, replays one after the other, prints what was found.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::pins::{HostMemory, PinChoice};
use crate::progress::Progress;
use crate::replay::report::{Answer, Report};
use crate::replay::{Options, RuleChoice, Stage, Verify};
use crate::trace::parse::Limits;
use crate::trace::read::read;

const MORE: &str = "\
Each trace's guest RAM is made as a memfd, registered once, and every call of the trace is replayed over it: first with \
everything checked, then for the time. With --json one trace gives an object and several give an array, in order. \
Numbers that are null were not measured. Under --rules kvm answers are still compared with what QEMU answered.

Examples:
  prereg replay conformance/traces/nvme4k.tce.zst
  prereg replay --compare --json nvme4k.tce.zst | jq .speedup
  prereg replay --pin sim --rules kvm --answers errors.tce";

/// Replay hypercall traces of real guests over memory that is pinned once
#[derive(Debug, Args)]
#[command(after_long_help = MORE)]
pub struct ReplayArgs {
    /// Trace files (.tce, or .tce.zst; format in docs/traces.md)
    #[arg(required = true, value_name = "TRACE")]
    traces: Vec<PathBuf>,

    /// By whose rules calls are answered
    #[arg(long, value_enum, default_value_t = RuleChoice::Qemu)]
    rules: RuleChoice,

    /// How guest RAM is pinned
    #[arg(long, value_enum, default_value_t = PinChoice::Auto)]
    pin: PinChoice,

    /// Which live entries are compared with /proc/self/pagemap
    #[arg(long, value_enum, default_value_t = Verify::Sample)]
    verify: Verify,

    /// Also pin at every map and unpin at every unmap, on the same back end, and print the ratio
    ///
    /// Stops after half a million pins, or when the back end has no room for more at once; the entries written up to
    /// there are then what the time is divided by.
    #[arg(long)]
    compare: bool,

    /// Print every call: its line, what the guest was doing, the recorded answer and ours (and the kernel handler's)
    #[arg(long)]
    answers: bool,

    /// Print JSON: an object for one trace, an array for several
    #[arg(long)]
    json: bool,

    /// How often each trace is replayed for the time; the median is reported
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    passes: u32,
}

/// Replays and prints.
///
/// # Errors
/// [`Failure`] for the first trace that is bad (nothing is pinned then) or refused by the host.
pub fn run(
    args: &ReplayArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Outcome, Failure> {
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
        pin: args.pin,
        verify: args.verify,
        compare: args.compare,
        answers: args.answers,
        passes: args.passes,
    };
    let mut outcome = Outcome::Clean;
    let mut reports = Vec::new();
    let mut told = None;
    for trace in &traces {
        let stage = Stage::set_up(trace, &options, interrupt, progress)?;
        // Once is enough for traces that all meet the same refusal.
        if let Some(notice) = stage.notice().filter(|notice| told.as_deref() != Some(*notice)) {
            if args.json {
                // Nobody is left to tell when this fails; the note is in the JSON too.
                let _ = writeln!(std::io::stderr(), "prereg: {notice}");
            } else {
                writeln!(out, "{notice}")?;
                out.flush()?;
            }
            told = Some(notice.to_owned());
        }
        let report = stage.run()?;
        if !report.is_clean() {
            outcome = Outcome::Wrong;
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

fn print(report: &Report, out: &mut impl Write) -> Result<(), Failure> {
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
