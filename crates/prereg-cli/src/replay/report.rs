//! The report of a replay, as a table or as JSON.
//!
//! A [`Report`] is plain data, filled by the other files of this folder. Times are those of the timed passes after the clearing at
//! boot; mismatches are those of the checking pass.

use std::fmt;

use serde::Serialize;

use crate::units::{Bytes, Count};

/// The report of one trace. The names of the first eighteen fields are a stable interface.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The trace's name.
    pub trace: String,
    /// The rules of the hypercalls: `qemu` or `kvm`.
    pub rules: String,
    /// The pin back end.
    pub backend: String,
    /// Calls replayed.
    pub hypercalls: u64,
    /// Entries that calls stored.
    pub tces_written: u64,
    /// Calls whose result differs from the recorded one.
    pub return_mismatches: u64,
    /// GET calls whose value differs from the recorded one.
    pub get_mismatches: u64,
    /// Device accesses looked up.
    pub xlate_checked: u64,
    /// Those that found another page or permission, or no mapping behind the entry.
    pub xlate_mismatches: u64,
    /// System pages behind live entries whose address was compared with pagemap.
    pub pagemap_checked: u64,
    /// Those at another address.
    pub pagemap_mismatches: u64,
    /// System pages pinned for guest RAM.
    pub pages_pinned: u64,
    /// Pin calls for it.
    pub pin_calls: u64,
    /// Mean time of a call; null if there is none to time.
    pub ns_per_call: Option<f64>,
    /// Mean time of an entry written.
    pub ns_per_tce: Option<f64>,
    /// Mean time of an entry with a pin at each map and an unpin at each unmap; null without `--compare`.
    pub baseline_ns_per_tce: Option<f64>,
    /// `baseline_ns_per_tce` divided by `ns_per_tce`.
    pub speedup: Option<f64>,
    /// System pages that are pinned or charged after the release.
    pub leaked_pages: u64,

    /// The trace's file.
    pub file: String,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Kind of the host addresses: `physical`, `slot-offset` or `invented`.
    pub addresses: String,
    /// Calls by kind: put, indirect, stuff, get.
    pub calls: [u64; 4],
    /// Entries written with a permission.
    pub mapping_tces: u64,
    /// Calls that the kernel's handler passed to user space; 0 with QEMU's rules.
    pub too_hard: u64,
    /// The most live mappings seen.
    pub peak_mapped: u64,
    /// Live mappings after the last call.
    pub live_at_end: u64,
    /// Calls before the first one that maps: the clearing at boot.
    pub boot_calls: u64,
    /// Entries written by them.
    pub boot_tces: u64,
    /// Mean time of those entries.
    pub boot_ns_per_tce: Option<f64>,
    /// Timed replays; the median is reported.
    pub timed_passes: u32,
    /// Milliseconds of prefault and registration of guest RAM.
    pub register_ms: f64,
    /// Pins of the run with a pin at each map.
    pub baseline_pins: u64,
    /// VmPin and VmLck after the release, in pages, in excess of their values before.
    pub kernel_excess_pages: u64,
    /// The reason and remedy if the simulated back end replaces another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<String>,
    /// Notes on these numbers.
    pub notes: Vec<String>,
    /// With `--print-calls`: every call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<Vec<Answer>>,
}

/// The results of one call.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Answer {
    /// The line of the call in the trace.
    pub line: u32,
    /// The guest's last mark.
    pub mark: String,
    /// The recorded result: a code, and the entry after a successful GET.
    pub recorded: String,
    /// The result here.
    pub ours: String,
    /// With KVM's rules, the result of the kernel's handler: a code, or `H_TOO_HARD` if user space finished the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
}

impl Report {
    /// Whether nothing differs and nothing leaked.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.mismatches() == 0 && self.leaked_pages == 0
    }

    /// The number of differences.
    #[must_use]
    pub const fn mismatches(&self) -> u64 {
        self.return_mismatches + self.get_mismatches + self.xlate_mismatches + self.pagemap_mismatches
    }
}

/// A time, or a dash without one.
struct Nanoseconds(Option<f64>);

impl fmt::Display for Nanoseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(ns) => write!(f, "{ns:.1} ns"),
            None => f.write_str("-"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, rules, backend, addresses, .. } = self;
        writeln!(f, "{trace}: {rules} rules, {backend} pins, {addresses} addresses")?;
        let mut row = |name: &str, text: fmt::Arguments<'_>| writeln!(f, "  {name:<16}{text}");
        let [put, indirect, stuff, get] = self.calls.map(Count);
        row(
            "calls",
            format_args!(
                "{} ({put} put, {indirect} indirect, {stuff} stuff, {get} get)",
                Count(self.hypercalls)
            ),
        )?;
        row(
            "TCEs written",
            format_args!("{}, of them mapping {}", Count(self.tces_written), Count(self.mapping_tces)),
        )?;
        row("time per call", format_args!("{}", Nanoseconds(self.ns_per_call)))?;
        row("time per TCE", format_args!("{}", Nanoseconds(self.ns_per_tce)))?;
        if self.boot_calls > 0 {
            row(
                "  boot clearing",
                format_args!(
                    "separately: {} calls, {} TCEs, {} per TCE",
                    Count(self.boot_calls),
                    Count(self.boot_tces),
                    Nanoseconds(self.boot_ns_per_tce)
                ),
            )?;
        }
        row(
            "pages pinned",
            format_args!(
                "{}{} ({}), by {} pin call{}, in {:.0} ms",
                if self.backend == "sim" { "simulated: " } else { "" },
                Count(self.pages_pinned),
                Bytes(self.ram_bytes),
                self.pin_calls,
                if self.pin_calls == 1 { "" } else { "s" },
                self.register_ms
            ),
        )?;
        if let (Some(ns), Some(speedup)) = (self.baseline_ns_per_tce, self.speedup) {
            row(
                "pin per map",
                format_args!(
                    "{ns:.1} ns per TCE, {} pin calls: {speedup:.1}x slower",
                    Count(self.baseline_pins)
                ),
            )?;
        }
        if self.too_hard > 0 {
            row("too hard", format_args!("{} calls passed to user space", Count(self.too_hard)))?;
        }
        row(
            "mismatches",
            format_args!(
                "returns {} of {}, GET values {} of {get}, lookups {} of {}, pagemap {} of {}",
                Count(self.return_mismatches),
                Count(self.hypercalls),
                Count(self.get_mismatches),
                Count(self.xlate_mismatches),
                Count(self.xlate_checked),
                Count(self.pagemap_mismatches),
                Count(self.pagemap_checked)
            ),
        )?;
        row(
            "released",
            format_args!(
                "{} of {} pages; {} leaked; VmPin and VmLck {} pages above their start",
                Count(self.pages_pinned.saturating_sub(self.leaked_pages)),
                Count(self.pages_pinned),
                Count(self.leaked_pages),
                Count(self.kernel_excess_pages)
            ),
        )?;
        for note in &self.notes {
            row("note", format_args!("{note}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stable_keys_are_all_present() {
        let json = serde_json::to_value(Report::default()).unwrap();
        for key in [
            "trace",
            "rules",
            "backend",
            "hypercalls",
            "tces_written",
            "return_mismatches",
            "get_mismatches",
            "xlate_checked",
            "xlate_mismatches",
            "pagemap_checked",
            "pagemap_mismatches",
            "pages_pinned",
            "pin_calls",
            "ns_per_call",
            "ns_per_tce",
            "baseline_ns_per_tce",
            "speedup",
            "leaked_pages",
        ] {
            assert!(json.get(key).is_some(), "{key} is missing");
        }
    }

    #[test]
    fn any_mismatch_or_leak_makes_a_report_unclean() {
        assert!(Report::default().is_clean());
        for dirty in [
            Report { return_mismatches: 1, ..Report::default() },
            Report { get_mismatches: 1, ..Report::default() },
            Report { xlate_mismatches: 1, ..Report::default() },
            Report { pagemap_mismatches: 1, ..Report::default() },
            Report { leaked_pages: 1, ..Report::default() },
        ] {
            assert!(!dirty.is_clean());
        }
    }
}
