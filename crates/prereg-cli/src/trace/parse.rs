//! The parser of traces, with every check before anything is pinned.
//!
//! A [`Parser`] owns the [`Trace`] that is being built and the windows that exist at the current line. Numbers from the file are
//! checked against [`Limits`] before memory is allocated for them. A parser that returned an error is not used again.

use std::str::SplitAsciiWhitespace;

use prereg::{BusAddr, GuestAddr, PageShift};

use super::error::{Problem, Quoted};
use super::record::{List, Lookup, PERMISSION, Record, Trace, Window};

/// Windows that may exist at once; a machine has a few for each host bridge.
const LIVE_WINDOWS: usize = 1024;

/// Limits of a trace.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one line.
    pub line_bytes: usize,
    /// Records.
    pub records: u64,
    /// Entries of all lists together.
    pub values: u64,
    /// Bytes of memory of the host: a guest with more is refused, and windows whose filled tables need more.
    pub host_bytes: u64,
}

impl Default for Limits {
    /// Limits for traces some fifty times the size of the bundled ones, on any host.
    fn default() -> Self {
        Self { line_bytes: 1 << 16, records: 1 << 24, values: 1 << 26, host_bytes: u64::MAX }
    }
}

/// The most entries of a list call; longer ones are refused before the list is read, so their entries are not recorded.
const LIST_MAX: u64 = 512;

/// Memory of a full window: the guest's value of each entry, and the address of each 4 KiB.
fn filled_bytes(window: &Window) -> u64 {
    const VALUE: u64 = 8;
    const ADDRESS: u64 = 16;
    let pages = window.entries.saturating_mul(window.shift.bytes() / PageShift::K4.bytes());
    window.entries.saturating_mul(VALUE).saturating_add(pages.saturating_mul(ADDRESS))
}

/// Turns lines into a [`Trace`].
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    trace: Trace,
    ram: Option<u64>,
    /// The windows that exist at this line, each with the line that made it.
    live: Vec<(Window, u64)>,
}

impl Parser {
    /// A parser before the first line.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, trace: Trace::default(), ram: None, live: Vec::new() }
    }

    /// Parses line `number`, without its line end.
    ///
    /// # Errors
    /// [`Problem`] of this line.
    pub fn line(&mut self, number: u64, text: &str) -> Result<(), Problem> {
        if let Some(comment) = text.strip_prefix('#') {
            return self.comment(comment);
        }
        let mut fields = Fields::new(text);
        let Some(letter) = fields.next() else { return Ok(()) };
        let record = match letter {
            "W" => self.window(number, fields)?,
            "D" => self.remove(fields)?,
            "P" => Self::put(fields)?,
            "I" => self.indirect(fields)?,
            "S" => Self::stuff(fields)?,
            "G" => Self::get(fields)?,
            "X" => self.lookup(fields)?,
            "M" => self.mark(text)?,
            "R" => return Self::rtas(fields),
            other => return Err(Problem::UnknownRecord(Quoted::new(other))),
        };
        self.push(number, record)
    }

    /// The trace, after the last line.
    ///
    /// # Errors
    /// [`Problem::Empty`] for a file without a record.
    pub fn finish(mut self) -> Result<Trace, Problem> {
        if self.trace.records.is_empty() {
            return Err(Problem::Empty);
        }
        self.trace.ram_bytes = self.ram.ok_or(Problem::NoRam)?;
        Ok(self.trace)
    }

    fn push(&mut self, number: u64, record: Record) -> Result<(), Problem> {
        if self.ram.is_none() {
            return Err(Problem::NoRam);
        }
        room(&mut self.trace.records, self.limits.records, "records")?;
        room(&mut self.trace.lines, self.limits.records, "records")?;
        self.trace.hypercalls += u64::from(record.is_hypercall());
        self.trace.records.push(record);
        self.trace.lines.push(u32::try_from(number).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Parses the two comments with data: the guest's memory, and the number of calls of the file.
    fn comment(&mut self, comment: &str) -> Result<(), Problem> {
        let comment = comment.trim();
        if let Some(rest) = comment.strip_prefix("guest RAM: guest-physical 0 to ") {
            let text = rest.split_ascii_whitespace().next().unwrap_or("");
            let bytes = hex("the end of guest RAM", text)?;
            let why = if bytes == 0 {
                "a guest needs memory"
            } else if bytes & PageShift::K4.mask() != 0 {
                "not a multiple of 4 KiB"
            } else if bytes > 1 << 52 {
                "more than a processor can address"
            } else if self.ram.is_some_and(|ram| ram != bytes) {
                "an earlier line gave another size"
            } else if bytes > self.limits.host_bytes {
                return Err(Problem::RamMemory { bytes, host: self.limits.host_bytes });
            } else {
                self.ram = Some(bytes);
                return Ok(());
            };
            return Err(Problem::Ram { bytes, why });
        }
        if let Some(claimed) =
            comment.strip_prefix("end: ").and_then(|rest| rest.strip_suffix(" hypercalls")?.parse().ok())
        {
            self.trace.claimed_hypercalls = Some(claimed);
        }
        Ok(())
    }

    fn window(&mut self, number: u64, fields: Fields<'_>) -> Result<Record, Problem> {
        let [liobn, start, shift, entries] = fields.exactly("W", "liobn start shift entries")?;
        let (liobn, start) = (hex("liobn", liobn)?, hex("start", start)?);
        let (shift, entries) = (decimal("shift", shift)?, decimal("entries", entries)?);
        let shift = u32::try_from(shift)
            .ok()
            .filter(|shift| (12..=34).contains(shift))
            .and_then(PageShift::new)
            .ok_or(Problem::Shift(shift))?;
        let refuse = |why| Err(Problem::Window { liobn, start, shift: shift.get(), entries, why });
        if entries == 0 {
            return refuse("a window has at least one entry");
        }
        if start & shift.mask() != 0 {
            return refuse("its start is not a multiple of its page");
        }
        let end = (start >> shift.get()).checked_add(entries);
        if end.is_none_or(|end| end > u64::MAX >> shift.get()) {
            return refuse("it reaches or passes the end of the bus, 2^64");
        }
        if u32::try_from(liobn).is_err() {
            return refuse("its number is wider than 32 bits");
        }
        if self.live.len() == LIVE_WINDOWS {
            return Err(Problem::TooMany { what: "windows at once", limit: LIVE_WINDOWS as u64 });
        }
        let window = Window { liobn, start: BusAddr::new(start), shift, entries };
        let in_the_way = |(other, _): &&(Window, u64)| {
            other.liobn == liobn || (window.shares_bus(other) && window.overlaps(other))
        };
        if let Some((other, other_line)) = self.live.iter().find(in_the_way) {
            return Err(Problem::Overlap { liobn, other: other.liobn, other_line: *other_line });
        }
        // All existing windows together must fit.
        let live = self.live.iter().map(|(window, _)| filled_bytes(window));
        let need = live.fold(filled_bytes(&window), u64::saturating_add);
        if need > self.limits.host_bytes {
            return Err(Problem::WindowMemory { liobn, entries, need, host: self.limits.host_bytes });
        }
        let index = room(&mut self.trace.windows, self.limits.records, "windows")?;
        self.trace.windows.push(window);
        self.live.push((window, number));
        Ok(Record::Window(index))
    }

    fn remove(&mut self, fields: Fields<'_>) -> Result<Record, Problem> {
        let [liobn] = fields.exactly("D", "liobn")?;
        let liobn = hex("liobn", liobn)?;
        let at = self.live.iter().position(|(window, _)| window.liobn == liobn);
        self.live.swap_remove(at.ok_or(Problem::NoTable { record: "D", liobn })?);
        Ok(Record::Remove { liobn })
    }

    fn put(fields: Fields<'_>) -> Result<Record, Problem> {
        let [liobn, ioba, tce, ret] = fields.exactly("P", "liobn ioba tce ret")?;
        Ok(Record::Put {
            ret: return_code(ret)?,
            liobn: hex("liobn", liobn)?,
            ioba: BusAddr::new(hex("ioba", ioba)?),
            tce: hex("tce", tce)?,
        })
    }

    fn get(fields: Fields<'_>) -> Result<Record, Problem> {
        let [liobn, ioba, tce, ret] = fields.exactly("G", "liobn ioba tce ret")?;
        Ok(Record::Get {
            ret: return_code(ret)?,
            liobn: hex("liobn", liobn)?,
            ioba: BusAddr::new(hex("ioba", ioba)?),
            tce: hex("tce", tce)?,
        })
    }

    fn stuff(fields: Fields<'_>) -> Result<Record, Problem> {
        let [liobn, ioba, tce, count, ret] = fields.exactly("S", "liobn ioba value n ret")?;
        Ok(Record::Stuff {
            ret: return_code(ret)?,
            liobn: hex("liobn", liobn)?,
            ioba: BusAddr::new(hex("ioba", ioba)?),
            tce: hex("value", tce)?,
            count: decimal("n", count)?,
        })
    }

    fn indirect(&mut self, mut fields: Fields<'_>) -> Result<Record, Problem> {
        let [liobn, ioba, at, count, ret] = fields.first("I", "liobn ioba list n ret tces...")?;
        let (liobn, ioba) = (hex("liobn", liobn)?, BusAddr::new(hex("ioba", ioba)?));
        let (at, count, ret) = (GuestAddr::new(hex("list", at)?), decimal("n", count)?, return_code(ret)?);
        // Runs increase by the page of the window, by 4 KiB if the table does not exist.
        let shift = self.live.iter().find(|(w, _)| w.liobn == liobn).map_or(PageShift::K4, |(w, _)| w.shift);
        let first = self.trace.values.len();
        let mut readable = true;
        let mut found = 0u64;
        for run in fields.rest() {
            if run == "?" && found == 0 && readable {
                readable = false;
                continue;
            }
            found = found.saturating_add(self.run(run, shift, count.saturating_sub(found))?);
        }
        let wanted = if readable && count <= LIST_MAX { count } else { 0 };
        if found != wanted {
            return Err(Problem::ListLength { count, found });
        }
        let list = List {
            at,
            count,
            // `room` keeps the number of values within 32 bits.
            first: u32::try_from(first).unwrap_or(u32::MAX),
            recorded: u32::try_from(found).unwrap_or(u32::MAX),
            readable,
        };
        let index = room(&mut self.trace.lists, self.limits.records, "lists")?;
        self.trace.lists.push(list);
        Ok(Record::Indirect { ret, liobn, ioba, list: index })
    }

    /// Parses `a` or `a:c`: c entries from `a` on, one page apart. A run longer than `left` is not kept; its count is returned, for
    /// the caller to refuse.
    fn run(&mut self, run: &str, shift: PageShift, left: u64) -> Result<u64, Problem> {
        let (value, count) = run.split_once(':').unwrap_or((run, "1"));
        let (value, count) = (hex("tce", value)?, decimal("the run's length", count)?);
        if count == 0 {
            return Err(Problem::Number {
                field: "the run's length",
                text: Quoted::new(run),
                kind: "a count of at least 1",
            });
        }
        if count > left || count > LIST_MAX {
            return Ok(count);
        }
        if (count - 1).checked_mul(shift.bytes()).and_then(|bytes| value.checked_add(bytes)).is_none() {
            return Err(Problem::RunOverflow(Quoted::new(run)));
        }
        let values = &mut self.trace.values;
        if values.len() as u64 + count > self.limits.values.min(u64::from(u32::MAX)) {
            return Err(Problem::TooMany { what: "list entries", limit: self.limits.values });
        }
        // `count` is at most LIST_MAX.
        values.try_reserve(count as usize).map_err(|_| Problem::OutOfMemory)?;
        values.extend((0..count).map(|step| value + (step << shift.get())));
        Ok(count)
    }

    fn lookup(&mut self, fields: Fields<'_>) -> Result<Record, Problem> {
        let [liobn, ioba, gpa, permission, count] = fields.exactly("X", "liobn ioba gpa perm count")?;
        let lookup = Lookup {
            liobn: hex("liobn", liobn)?,
            ioba: BusAddr::new(hex("ioba", ioba)?),
            gpa: GuestAddr::new(hex("gpa", gpa)?),
            permission: decimal("perm", permission)?,
            count: decimal("count", count)?,
        };
        if lookup.permission > PERMISSION {
            return Err(Problem::Permission(lookup.permission));
        }
        if !self.live.iter().any(|(window, _)| window.liobn == lookup.liobn) {
            return Err(Problem::NoTable { record: "X", liobn: lookup.liobn });
        }
        let index = room(&mut self.trace.lookups, self.limits.records, "lookups")?;
        self.trace.lookups.push(lookup);
        Ok(Record::Lookup(index))
    }

    fn mark(&mut self, text: &str) -> Result<Record, Problem> {
        let printable: String =
            text[1..].trim().chars().map(|c| if c.is_control() { '?' } else { c }).take(200).collect();
        let index = room(&mut self.trace.marks, self.limits.records, "marks")?;
        self.trace.marks.push(printable.into());
        Ok(Record::Mark(index))
    }

    /// Checks an RTAS call, which is only information: its effect is in the W and D lines after it.
    fn rtas(mut fields: Fields<'_>) -> Result<(), Problem> {
        let [token] = fields.first("R", "token args... : rets... : hcall-ret")?;
        decimal("the RTAS token", token)?;
        let colons = fields.rest().filter(|&field| field == ":").count();
        if colons == 2 {
            Ok(())
        } else {
            Err(Problem::Fields { record: "R", wanted: "token args... : rets... : hcall-ret", found: colons })
        }
    }
}

/// The index of the next element of `list`, for which memory is reserved.
fn room<T>(list: &mut Vec<T>, limit: u64, what: &'static str) -> Result<u32, Problem> {
    if list.len() as u64 >= limit {
        return Err(Problem::TooMany { what, limit });
    }
    list.try_reserve(1).map_err(|_| Problem::OutOfMemory)?;
    u32::try_from(list.len()).map_err(|_| Problem::TooMany { what, limit: u64::from(u32::MAX) })
}

/// The fields of a line, separated by spaces.
struct Fields<'a>(SplitAsciiWhitespace<'a>);

impl<'a> Fields<'a> {
    fn new(text: &'a str) -> Self {
        Self(text.split_ascii_whitespace())
    }

    fn next(&mut self) -> Option<&'a str> {
        self.0.next()
    }

    fn rest(self) -> SplitAsciiWhitespace<'a> {
        self.0
    }

    /// The next `N` fields.
    fn first<const N: usize>(
        &mut self,
        record: &'static str,
        wanted: &'static str,
    ) -> Result<[&'a str; N], Problem> {
        let mut fields = [""; N];
        for (found, field) in fields.iter_mut().enumerate() {
            *field = self.0.next().ok_or(Problem::Fields { record, wanted, found })?;
        }
        Ok(fields)
    }

    /// The `N` fields that are left, and no more.
    fn exactly<const N: usize>(
        mut self,
        record: &'static str,
        wanted: &'static str,
    ) -> Result<[&'a str; N], Problem> {
        let fields = self.first(record, wanted)?;
        match self.0.count() {
            0 => Ok(fields),
            more => Err(Problem::Fields { record, wanted, found: N + more }),
        }
    }
}

/// Digits only: the standard parser also accepts a sign.
fn digits(text: &str, radix: u32) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric())
        .then(|| u64::from_str_radix(text, radix).ok())
        .flatten()
}

fn hex(field: &'static str, text: &str) -> Result<u64, Problem> {
    digits(text, 16).ok_or_else(|| Problem::Number {
        field,
        text: Quoted::new(text),
        kind: "a hexadecimal number of at most 64 bits (without 0x)",
    })
}

fn decimal(field: &'static str, text: &str) -> Result<u64, Problem> {
    digits(text, 10).ok_or_else(|| Problem::Number {
        field,
        text: Quoted::new(text),
        kind: "a decimal number of at most 64 bits",
    })
}

/// A hypercall's return code: decimal, often negative.
fn return_code(text: &str) -> Result<i32, Problem> {
    let (sign, number) = text.strip_prefix('-').map_or((1, text), |number| (-1, number));
    digits(number, 10).and_then(|number| i32::try_from(number).ok()).map(|number| sign * number).ok_or_else(
        || Problem::Number { field: "ret", text: Quoted::new(text), kind: "a decimal return code" },
    )
}

#[cfg(test)]
mod tests;
