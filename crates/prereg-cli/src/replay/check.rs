//! The checking pass: results, GET values, device accesses, and the places of pages in memory.
//!
//! One replay of the whole trace over new tables, without a clock. It returns [`Findings`].

use prereg::{BusAddr, PageShift};
use prereg_iommu::{HReturn, Liobn, Reply, Rules, Tce};

use super::machine::{Machine, code_text};
use super::report::Answer;
use super::verify::Verifier;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::progress::Bar;
use crate::trace::record::{List, Lookup, PERMISSION, Record, Trace};

/// The counts of the pass.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Calls by kind: put, indirect, stuff, get.
    pub calls: [u64; 4],
    /// Calls whose result differs from the recorded one.
    pub return_mismatches: u64,
    /// GET values that differ from the recorded ones.
    pub get_mismatches: u64,
    /// Device accesses looked up.
    pub xlate_checked: u64,
    /// Those that found another page, permission or no mapping.
    pub xlate_mismatches: u64,
    /// Entries stored, and those of them with a permission.
    pub written: Written,
    /// Those before the first call that maps.
    pub boot_written: Written,
    /// Calls before the first one that maps.
    pub boot_calls: u64,
    /// Calls that the kernel's handler passed to user space.
    pub too_hard: u64,
    /// The most live mappings seen at every 64th record and at each mark.
    pub peak_mapped: u64,
    /// Live mappings after the last record.
    pub live_at_end: u64,
    /// Every call, on request.
    pub answers: Option<Vec<Answer>>,
    /// Messages of the first calls that differ.
    pub first_mismatches: Vec<String>,
}

/// Entries that calls stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// All.
    pub tces: u64,
    /// Those with a permission.
    pub mapping: u64,
}

/// Mismatches with a message of their own.
const MAX_REPORTED: usize = 5;

/// Records between two reads of the interrupt flag.
const CHUNK: usize = 4096;

/// Records between two reads of the number of live mappings.
const SAMPLE: usize = 64;

/// Replays all of `trace` on `machine`, which has no tables. `mapped` returns the number of live mappings.
///
/// # Errors
/// [`CommandError::Interrupted`], or [`CommandError::Replay`] if a table cannot be created.
pub(crate) fn run(
    machine: &mut Machine<'_>,
    trace: &Trace,
    verifier: &mut Verifier,
    mapped: &dyn Fn() -> u64,
    with_answers: bool,
    interrupt: &Interrupt,
    bar: &Bar,
) -> Result<Findings, CommandError> {
    let mut pass = Pass { machine, trace, verifier, findings: Findings::default(), mark: "" };
    pass.findings.answers = with_answers.then(Vec::new);
    let boot = trace.first_mapping();
    for (number, record) in trace.records.iter().enumerate() {
        if number % CHUNK == 0 {
            interrupt.check()?;
            bar.position(number as u64);
        }
        if number % SAMPLE == 0 || matches!(record, Record::Mark(_)) {
            pass.findings.peak_mapped = pass.findings.peak_mapped.max(mapped());
        }
        if number == boot {
            pass.findings.boot_written = pass.findings.written;
            pass.findings.boot_calls = pass.findings.calls.iter().sum();
        }
        match *record {
            Record::Mark(index) => {
                pass.mark = &trace.marks[index as usize];
                pass.verifier.at_mark(pass.machine);
            }
            Record::Lookup(index) => pass.look_up(number, &trace.lookups[index as usize])?,
            Record::Remove { .. } => {
                pass.verifier.at_mark(pass.machine);
                pass.machine.step(number, record)?;
            }
            _ => {
                if let Some(reply) = pass.machine.step(number, record)? {
                    pass.compare(number, record, reply);
                }
            }
        }
    }
    pass.verifier.at_mark(pass.machine);
    pass.findings.live_at_end = mapped();
    pass.findings.peak_mapped = pass.findings.peak_mapped.max(pass.findings.live_at_end);
    Ok(pass.findings)
}

struct Pass<'p, 'm> {
    machine: &'p mut Machine<'m>,
    trace: &'p Trace,
    verifier: &'p mut Verifier,
    findings: Findings,
    mark: &'p str,
}

impl Pass<'_, '_> {
    /// Compares the result of a call with the recorded one.
    fn compare(&mut self, number: usize, record: &Record, reply: Reply) {
        let (kind, liobn, ioba, ret, value) = match *record {
            Record::Put { liobn, ioba, ret, .. } => (0, liobn, ioba, ret, None),
            Record::Indirect { liobn, ioba, ret, .. } => (1, liobn, ioba, ret, None),
            Record::Stuff { liobn, ioba, ret, .. } => (2, liobn, ioba, ret, None),
            Record::Get { liobn, ioba, ret, tce } => (3, liobn, ioba, ret, (ret == 0).then_some(tce)),
            _ => return,
        };
        let findings = &mut self.findings;
        findings.calls[kind] += 1;
        findings.too_hard += u64::from(reply.fell_back_to_userspace);
        let same_code = reply.code.raw() == i64::from(ret);
        findings.return_mismatches += u64::from(!same_code);
        let ours = reply.value.map(Tce::raw);
        let same_value = !same_code || ours == value;
        findings.get_mismatches += u64::from(!same_value);
        if !(same_code && same_value) && findings.first_mismatches.len() < MAX_REPORTED {
            findings.first_mismatches.push(format!(
                "{}:{}: recorded {}, ours {} ({})",
                self.trace.file,
                self.trace.lines[number],
                answer_text(i64::from(ret).to_string(), value),
                answer_text(code_text(reply.code), ours),
                self.mark
            ));
        }
        if let Some(answers) = &mut findings.answers {
            let handler = if reply.fell_back_to_userspace { HReturn::TOO_HARD } else { reply.code };
            answers.push(Answer {
                line: self.trace.lines[number],
                mark: self.mark.to_owned(),
                recorded: answer_text(i64::from(ret).to_string(), value),
                ours: answer_text(code_text(reply.code), ours),
                handler: (self.machine.calls.rules() == Rules::Kvm).then(|| code_text(handler)),
            });
        }
        let written = self.written(record, reply);
        self.findings.written.tces += written.tces;
        self.findings.written.mapping += written.mapping;
        if written.mapping > 0 {
            let first = self.machine.table(liobn).and_then(|table| table.geometry().index(ioba));
            if let Some(first) = first {
                self.verifier.after_call(self.machine, liobn, first, written.tces);
            }
        }
    }

    /// The entries that a call stored: all, or those before the one that failed.
    fn written(&self, record: &Record, reply: Reply) -> Written {
        let mapping = |tce: u64, count: u64| if tce & PERMISSION == 0 { 0 } else { count };
        match *record {
            Record::Put { tce, .. } if reply.code == HReturn::SUCCESS => {
                Written { tces: 1, mapping: mapping(tce, 1) }
            }
            Record::Stuff { liobn, ioba, tce, count, .. } => {
                let tces = match reply.code {
                    HReturn::SUCCESS => count,
                    _ => self.inside(liobn, ioba, count, None, reply),
                };
                Written { tces, mapping: mapping(tce, tces) }
            }
            Record::Indirect { liobn, ioba, list, .. } => {
                let list = &self.trace.lists[list as usize];
                let values = self.trace.values(list);
                let tces = match reply.code {
                    HReturn::SUCCESS => list.count,
                    _ if self.by_handler(reply) => self.before_poison(liobn, ioba, list, values),
                    _ if !list.at.is_aligned(PageShift::K4) => 0,
                    _ => self.inside(liobn, ioba, list.count, Some(LIST_MAX), reply),
                };
                let stored = values.iter().take(usize::try_from(tces).unwrap_or(usize::MAX));
                Written { tces, mapping: stored.filter(|&&tce| tce & PERMISSION != 0).count() as u64 }
            }
            _ => Written::default(),
        }
    }

    /// Whether the result is that of the kernel's handler, which fails before it writes an entry.
    fn by_handler(&self, reply: Reply) -> bool {
        self.machine.calls.rules() == Rules::Kvm && !reply.fell_back_to_userspace
    }

    /// The entries of `count` that QEMU stores before it fails at the end of the table. More than `most` entries (for `None`: than
    /// the table has) are refused at once.
    fn inside(&self, liobn: u64, ioba: BusAddr, count: u64, most: Option<u64>, reply: Reply) -> u64 {
        let Some(table) = self.machine.table(liobn) else { return 0 };
        let geometry = table.geometry();
        if self.by_handler(reply) || count > most.unwrap_or(geometry.entries()) {
            return 0;
        }
        geometry.index(ioba).map_or(0, |index| count.min(geometry.entries() - index))
    }

    /// The entries that the kernel's list call stores before it stops at a value whose address is in no memory slot.
    fn before_poison(&self, liobn: u64, ioba: BusAddr, list: &List, values: &[u64]) -> u64 {
        let Some(table) = self.machine.table(liobn) else { return 0 };
        if !list.at.is_aligned(PageShift::K4) || table.geometry().aligned_index(ioba, list.count).is_none() {
            return 0;
        }
        let slots = self.machine.calls.slots();
        let poison = |&tce: &u64| slots.find(Tce::new(tce).address()).is_none();
        values.iter().position(poison).unwrap_or(0) as u64
    }

    /// Checks a device's access: the guest's entry must have the recorded page and permission, and its hardware entry must map the
    /// memory of that page.
    fn look_up(&mut self, number: usize, wanted: &Lookup) -> Result<(), CommandError> {
        let findings = &mut self.findings;
        findings.xlate_checked = findings.xlate_checked.saturating_add(wanted.count);
        let found = Liobn::from_register(wanted.liobn)
            .map(|liobn| self.machine.calls.lookup(&mut self.machine.translator, liobn, wanted.ioba));
        let right = match found {
            Some(Ok(Some(found))) => {
                let access = found.guest.access.map_or(0, prereg::Access::bits);
                let ua = self.machine.ram().ua(wanted.gpa);
                let inside = wanted.ioba.raw() & found.guest.shift.mask();
                let host = found.host.as_ref().map(|(mapping, access)| {
                    let page = mapping.shift();
                    (mapping.ua().align_down(page), access.bits())
                });
                let expected = ua.and_then(|ua| ua.checked_add(inside)).map(|ua| {
                    let page = found.host.as_ref().map_or(PageShift::K4, |(mapping, _)| mapping.shift());
                    (ua.align_down(page), access)
                });
                found.guest.page == wanted.gpa && access == wanted.permission && host == expected
            }
            Some(Ok(None)) | None => false,
            Some(Err(_)) => false,
        };
        if !right {
            self.findings.xlate_mismatches = self.findings.xlate_mismatches.saturating_add(wanted.count);
            if self.findings.first_mismatches.len() < MAX_REPORTED {
                self.findings.first_mismatches.push(format!(
                    "{}:{}: the device reached another page than {}",
                    self.trace.file, self.trace.lines[number], wanted.gpa
                ));
            }
        }
        Ok(())
    }
}

/// The most entries of a list call.
const LIST_MAX: u64 = prereg_iommu::Hypercall::MAX_LIST as u64;

/// `0, 2003` or `-4`.
fn answer_text(code: String, value: Option<u64>) -> String {
    match value {
        Some(value) => format!("{code}, {value:x}"),
        None => code,
    }
}
