//! Replaying a trace over memory that is pinned once.
//!
//! A [`Stage`] is set for one trace: guest RAM made and registered. [`Stage::run`] replays the trace once with everything
//! [checked](check), then for the [time](timing), gives the memory back and counts what did not come, and on request
//! does it all over with a pin at every map ([`baseline`]). Every way out, early or not, goes through the same drops.

pub mod baseline;
pub mod check;
pub mod machine;
pub mod report;
pub mod timing;
pub mod verify;

use clap::ValueEnum;
use prereg_iommu::Rules;
use prereg_linux::GuestMemory;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::pins::{self, PinChoice, Pinned};
use crate::progress::Progress;
use crate::quantity::Bytes;
use crate::trace::record::Trace;
use machine::Machine;
use report::Report;
use verify::Verifier;
pub use verify::Verify;

/// By whose rules calls are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RuleChoice {
    /// QEMU's, which the traces were recorded with
    Qemu,
    /// KVM's in-kernel handlers; what they find too hard is done by QEMU's rules
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

/// How to replay.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// By whose rules.
    pub rules: RuleChoice,
    /// How guest RAM is pinned.
    pub pin: PinChoice,
    /// Which entries are compared with pagemap.
    pub verify: Verify,
    /// Also pin at every map.
    pub compare: bool,
    /// Keep every answer.
    pub answers: bool,
    /// Timed passes.
    pub passes: u32,
}

/// A trace and the registered memory of its guest.
#[derive(Debug)]
pub struct Stage<'a> {
    trace: &'a Trace,
    options: Options,
    memory: GuestMemory,
    pinned: Pinned,
    interrupt: &'a Interrupt,
    progress: Progress,
}

impl<'a> Stage<'a> {
    /// Makes guest RAM and pins it.
    ///
    /// # Errors
    /// [`Failure`]; nothing is pinned then.
    pub fn set_up(
        trace: &'a Trace,
        options: &Options,
        interrupt: &'a Interrupt,
        progress: Progress,
    ) -> Result<Self, Failure> {
        let what = || format!("{}: making {} of guest RAM", trace.file, Bytes(trace.ram_bytes));
        let memory = GuestMemory::memfd("prereg-guest", trace.ram_bytes)
            .map_err(|error| Failure::host(what(), error))?;
        let pinned = pins::register(&memory, options.pin, interrupt, progress)?;
        Ok(Self { trace, options: *options, memory, pinned, interrupt, progress })
    }

    /// Why this is not the back end one would wish for, if it is not.
    #[must_use]
    pub fn notice(&self) -> Option<&str> {
        self.pinned.notice.as_deref()
    }

    /// Replays, gives all back, and reports.
    ///
    /// # Errors
    /// [`Failure`]; everything is released then too.
    pub fn run(self) -> Result<Report, Failure> {
        let mut report = self.blank_report();
        self.check(&mut report)?;
        self.time(&mut report)?;
        let Self { trace, options, memory, pinned, interrupt, progress } = self;
        let host = pinned.host().clone();
        let ledger = pinned.release()?;
        report.leaked_pages = ledger.leaked_pages();
        if options.compare {
            let stage = progress.stage("pinning at every map", trace.records.len() as u64);
            let baseline = baseline::run(trace, memory.ua(), &host, interrupt, &stage)?;
            drop(stage);
            report.leaked_pages = report.leaked_pages.max(ledger.leaked_pages());
            compare(&mut report, &baseline);
        }
        report.kernel_excess_pages = ledger.kernel_excess_pages();
        Ok(report)
    }

    fn machine(&self) -> Result<Machine<'_>, Failure> {
        let largest = self.pinned.registration().largest_page();
        Machine::new(self.trace, &self.memory, self.pinned.space(), largest, self.options.rules.into())
    }

    /// What is known before the first call.
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
            addresses: pins::address_word(pinned.host().address_kind()).to_owned(),
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
                "the file's last line says {} calls and it has {}; it may have been cut",
                trace.claimed_hypercalls.unwrap_or_default(),
                trace.hypercalls
            ));
        }
        if pinned.host().name() == "mlock" {
            report.notes.push(
                "mlock is no pin: locked pages may still move, so no device may use their addresses"
                    .to_owned(),
            );
        }
        let largest = pinned.registration().largest_page();
        if trace.windows.iter().any(|window| window.shift > largest) {
            report.notes.push(format!(
                "guest RAM is contiguous in pages of {largest} only: behind larger window pages stand several of those"
            ));
        }
        report
    }

    /// The checking pass.
    fn check(&self, report: &mut Report) -> Result<(), Failure> {
        let trace = self.trace;
        let mut verifier = Verifier::new(self.options.verify, self.pinned.space())?;
        let stage = self.progress.stage(&format!("{}: checking", trace.name), trace.records.len() as u64);
        let mut machine = self.machine()?;
        let mapped = || self.pinned.registration().state().map_or(0, |state| state.mapped);
        let found = check::run(
            &mut machine,
            trace,
            &mut verifier,
            &mapped,
            self.options.answers,
            self.interrupt,
            &stage,
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
                .push("the recording is QEMU's: KVM's handlers answer some bad calls otherwise".to_owned());
        }
        Ok(())
    }

    /// The timed passes.
    fn time(&self, report: &mut Report) -> Result<(), Failure> {
        let trace = self.trace;
        let mut passes = Vec::new();
        for number in 0..self.options.passes {
            let what = format!("{}: timing {} of {}", trace.name, number + 1, self.options.passes);
            let stage = self.progress.stage(&what, trace.records.len() as u64);
            let mut machine = self.machine()?;
            passes.push(timing::pass(&mut machine, trace, self.interrupt, &stage)?);
        }
        let pass = timing::median(&passes);
        if passes.iter().any(|pass| pass.mismatches != report.return_mismatches) {
            report.return_mismatches =
                passes.iter().map(|pass| pass.mismatches).fold(report.return_mismatches, u64::max);
            report.notes.push("a timed pass was answered otherwise than the checked one".to_owned());
        }
        report.timed_passes = self.options.passes;
        report.ns_per_call = timing::ns_each(pass.rest, report.hypercalls - report.boot_calls);
        report.ns_per_tce = timing::ns_each(pass.rest, report.tces_written - report.boot_tces);
        report.boot_ns_per_tce = timing::ns_each(pass.boot, report.boot_tces);
        Ok(())
    }
}

/// Puts the pin-per-map run next to ours.
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
        report
            .notes
            .push("pins are pretended: the ratio to pin per map says nothing about a real host".to_owned());
    }
}
