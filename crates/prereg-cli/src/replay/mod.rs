//! Replays a trace over memory that is pinned once.
//!
//! A [`Replay`] owns the registered guest RAM of one trace. [`Replay::run`] replays the trace once with all checks (`check`), then for
//! the time (`timing`), releases the memory and counts leaks, and on request replays it with a pin at every map (`baseline`).
//! Every exit, early or not, releases everything by destructors.

pub(crate) mod baseline;
pub(crate) mod check;
pub(crate) mod machine;
pub(crate) mod report;
pub(crate) mod timing;
pub(crate) mod verify;

use clap::ValueEnum;
use prereg_iommu::Rules;
use prereg_linux::GuestMemory;

use crate::backend::{self, RegisteredMemory, ReplayBackend};
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::progress::Progress;
use crate::trace::record::Trace;
use crate::units::Bytes;
use machine::Machine;
use report::Report;
use verify::Verifier;
pub use verify::Verify;

/// The rules of the hypercalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuleChoice {
    /// QEMU's, with which the traces were recorded
    Qemu,
    /// Those of KVM's handlers in the kernel; calls that are too hard for them follow QEMU's
    Kvm,
}

impl From<RuleChoice> for Rules {
    fn from(choice: RuleChoice) -> Self {
        match choice {
            RuleChoice::Qemu => Self::Qemu,
            RuleChoice::Kvm => Self::Kvm,
        }
    }
}

/// Options of a replay.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The rules of the hypercalls.
    pub rules: RuleChoice,
    /// The pin back end of guest RAM.
    pub backend: ReplayBackend,
    /// Entries compared with pagemap.
    pub verify: Verify,
    /// Also replay with a pin at every map.
    pub compare: bool,
    /// Report every call.
    pub print_calls: bool,
    /// Timed replays.
    pub iterations: u32,
}

/// A trace and the registered memory of its guest.
#[derive(Debug)]
pub struct Replay<'a> {
    trace: &'a Trace,
    options: Options,
    memory: GuestMemory,
    pinned: RegisteredMemory,
    interrupt: &'a Interrupt,
    progress: Progress,
}

impl<'a> Replay<'a> {
    /// Creates guest RAM and registers it.
    ///
    /// # Errors
    /// [`CommandError`]; nothing is pinned then.
    pub fn set_up(
        trace: &'a Trace,
        options: &Options,
        interrupt: &'a Interrupt,
        progress: Progress,
    ) -> Result<Self, CommandError> {
        let what = || format!("{}: making {} of guest RAM", trace.file, Bytes(trace.ram_bytes));
        let memory = GuestMemory::memfd("prereg-guest", trace.ram_bytes)
            .map_err(|error| CommandError::host(what(), error))?;
        let pinned = backend::register(&memory, options.backend, interrupt, progress)?;
        Ok(Self { trace, options: *options, memory, pinned, interrupt, progress })
    }

    /// The reason and remedy if the simulated back end replaces another one.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.pinned.notice.as_deref()
    }

    /// Replays, releases everything, and returns the report.
    ///
    /// # Errors
    /// [`CommandError`]; everything is released.
    pub fn run(self) -> Result<Report, CommandError> {
        let mut report = self.blank_report();
        self.check(&mut report)?;
        self.time(&mut report)?;
        let Self { trace, options, memory, pinned, interrupt, progress } = self;
        let host = pinned.host().clone();
        let check = pinned.release()?;
        report.leaked_pages = check.leaked_pages();
        if options.compare {
            let bar = progress.bar("pinning at every map", trace.records.len() as u64);
            let baseline = baseline::run(trace, memory.ua(), &host, interrupt, &bar)?;
            drop(bar);
            report.leaked_pages = report.leaked_pages.max(check.leaked_pages());
            compare(&mut report, &baseline);
        }
        report.kernel_excess_pages = check.kernel_excess_pages();
        Ok(report)
    }

    fn machine(&self) -> Result<Machine<'_>, CommandError> {
        let largest = self.pinned.registration().largest_page();
        Machine::new(self.trace, &self.memory, self.pinned.space(), largest, self.options.rules.into())
    }

    /// The report before the first call.
    fn blank_report(&self) -> Report {
        let Self { trace, options, pinned, .. } = self;
        let state = pinned.space().snapshot();
        let mut report = Report {
            trace: trace.name.clone(),
            file: trace.file.clone(),
            rules: match options.rules {
                RuleChoice::Qemu => "qemu",
                RuleChoice::Kvm => "kvm",
            }
            .to_owned(),
            backend: pinned.host().name().to_owned(),
            addresses: backend::address_kind_name(pinned.host().address_kind()).to_owned(),
            hypercalls: trace.hypercalls,
            ram_bytes: trace.ram_bytes,
            pages_pinned: state.pinned_pages,
            pin_calls: state.pins,
            register_ms: pinned.took.as_secs_f64() * 1e3,
            ..Report::default()
        };
        report.notice.clone_from(&pinned.notice);
        if trace.claimed_hypercalls.is_some_and(|claimed| claimed != trace.hypercalls) {
            report.notes.push(format!(
                "the file's last line names {} calls and it has {}; it may be truncated",
                trace.claimed_hypercalls.unwrap_or_default(),
                trace.hypercalls
            ));
        }
        if pinned.host().name() == "mlock" {
            report.notes.push(
                "mlock does not pin: locked pages may move, so no device may use their addresses".to_owned(),
            );
        }
        let largest = pinned.registration().largest_page();
        if trace.windows.iter().any(|window| window.shift > largest) {
            report.notes.push(format!(
                "guest RAM is contiguous in pages of {largest} only: larger pages of windows are split into several of those"
            ));
        }
        report
    }

    /// The checking pass.
    fn check(&self, report: &mut Report) -> Result<(), CommandError> {
        let trace = self.trace;
        let mut verifier = Verifier::new(self.options.verify, self.pinned.space())?;
        let bar = self.progress.bar(&format!("{}: checking", trace.name), trace.records.len() as u64);
        let mut machine = self.machine()?;
        let mapped = || self.pinned.registration().state().map_or(0, |state| state.mapped);
        let found = check::run(
            &mut machine,
            trace,
            &mut verifier,
            &mapped,
            self.options.print_calls,
            self.interrupt,
            &bar,
        )?;
        report.calls = found.calls;
        report.tces_written = found.written.tces;
        report.mapping_tces = found.written.mapping;
        report.return_mismatches = found.return_mismatches;
        report.get_mismatches = found.get_mismatches;
        report.xlate_checked = found.xlate_checked;
        report.xlate_mismatches = found.xlate_mismatches;
        report.pagemap_checked = verifier.checked;
        report.pagemap_mismatches = verifier.wrong;
        report.too_hard = found.too_hard;
        report.peak_mapped = found.peak_mapped;
        report.live_at_end = found.live_at_end;
        report.boot_calls = found.boot_calls;
        report.boot_tces = found.boot_written.tces;
        report.answers = found.answers;
        report.notes.extend(verifier.note);
        report.notes.extend(found.first_mismatches);
        if self.options.rules == RuleChoice::Kvm && found.return_mismatches + found.get_mismatches > 0 {
            report
                .notes
                .push("the trace was recorded with QEMU: KVM's handlers return other results for some invalid calls".to_owned());
        }
        Ok(())
    }

    /// The timed passes.
    fn time(&self, report: &mut Report) -> Result<(), CommandError> {
        let trace = self.trace;
        let mut passes = Vec::new();
        for number in 0..self.options.iterations {
            let what = format!("{}: timing {} of {}", trace.name, number + 1, self.options.iterations);
            let bar = self.progress.bar(&what, trace.records.len() as u64);
            let mut machine = self.machine()?;
            passes.push(timing::pass(&mut machine, trace, self.interrupt, &bar)?);
        }
        let pass = timing::median(&passes);
        if passes.iter().any(|pass| pass.mismatches != report.return_mismatches) {
            report.return_mismatches =
                passes.iter().map(|pass| pass.mismatches).fold(report.return_mismatches, u64::max);
            report.notes.push("the results of a timed pass differ from those of the checked one".to_owned());
        }
        report.timed_passes = self.options.iterations;
        report.ns_per_call = timing::ns_each(pass.rest, report.hypercalls - report.boot_calls);
        report.ns_per_tce = timing::ns_each(pass.rest, report.tces_written - report.boot_tces);
        report.boot_ns_per_tce = timing::ns_each(pass.boot, report.boot_tces);
        Ok(())
    }
}

/// Adds the results of the run with a pin at every map.
fn compare(report: &mut Report, baseline: &baseline::Baseline) {
    report.baseline_pins = baseline.pins;
    report.baseline_ns_per_tce = timing::ns_each(baseline.took, baseline.tces);
    report.speedup = match (report.baseline_ns_per_tce, report.ns_per_tce) {
        (Some(theirs), Some(ours)) if ours > 0.0 => Some(theirs / ours),
        _ => None,
    };
    if let Some(why) = &baseline.stopped {
        report.notes.push(format!("pin per map stopped after {} pins: {why}", baseline.pins));
    }
    if report.backend == "sim" {
        report.notes.push(
            "pins are simulated: the ratio to a pin at every map says nothing about a real host".to_owned(),
        );
    }
}
