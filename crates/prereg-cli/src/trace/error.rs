//! Errors of traces, with file, line and remedy.
//!
//! For a file that ends too early the line is the last one read. Quotations from the file are shortened and made printable, so that a
//! hostile file cannot control the user's terminal.

use std::fmt;
use std::io;

/// The error of a trace.
pub struct TraceError {
    /// The file, as the caller named it.
    pub file: String,
    /// The line, counted from 1; `None` if the file could not be opened.
    pub line: Option<u64>,
    /// The error at that line.
    pub problem: Problem,
}

impl fmt::Display for TraceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.problem),
            None => write!(f, "{}: {}", self.file, self.problem),
        }
    }
}

impl std::error::Error for TraceError {}

prereg::debug_as_display!(TraceError);

/// The error of one line or of the whole file.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The file could not be opened.
    #[error("cannot open the trace: {0}")]
    Open(io::Error),
    /// The file could not be read, or its compressed data is damaged or ends too early.
    #[error("the file ends early or is damaged after this line: {0}; fetch it again")]
    Read(io::Error),
    /// A line longer than any that a recorder writes.
    #[error("the line is longer than {limit} bytes; this is not a trace")]
    LongLine {
        /// The limit.
        limit: usize,
    },
    /// A line that is not UTF-8.
    #[error("the line is not text; this is not a trace (or it is compressed with something other than zstd)")]
    NotText,
    /// The first field is unknown.
    #[error("unknown record '{0}'; known are # W D P I S G X R M (docs/traces.md)")]
    UnknownRecord(Quoted),
    /// Too few or too many fields.
    #[error("{record} takes {wanted}, found {found} fields")]
    Fields {
        /// The record's letter.
        record: &'static str,
        /// Its fields.
        wanted: &'static str,
        /// The number of fields after the letter.
        found: usize,
    },
    /// A field that is not a valid number.
    #[error("{field} '{text}' is not {kind}")]
    Number {
        /// The field's name.
        field: &'static str,
        /// The text of the field.
        text: Quoted,
        /// The expected kind of number.
        kind: &'static str,
    },
    /// A record before the line with the guest's memory.
    #[error(
        "no line '# guest RAM: guest-physical 0 to N' (bytes, hex) before the first record, so the guest's memory cannot be made"
    )]
    NoRam,
    /// An invalid size of guest memory.
    #[error("guest RAM of {bytes:#x} bytes: {why}")]
    Ram {
        /// The size claimed.
        bytes: u64,
        /// The reason.
        why: &'static str,
    },
    /// A guest with more memory than the host.
    #[error(
        "guest RAM of {bytes} bytes is more than this host has ({host} bytes); replay it on a larger one"
    )]
    RamMemory {
        /// The size claimed.
        bytes: u64,
        /// The host's memory.
        host: u64,
    },
    /// An invalid page size.
    #[error("page shift {0} is not in 12..=34, the shifts a table may have")]
    Shift(u64),
    /// An invalid window.
    #[error("window {liobn:x} with {entries} entries of 2^{shift} bytes at {start:#x}: {why}")]
    Window {
        /// The table's number.
        liobn: u64,
        /// Its bus address.
        start: u64,
        /// The page shift.
        shift: u32,
        /// The entries claimed.
        entries: u64,
        /// The reason.
        why: &'static str,
    },
    /// A table too large to be filled on this host.
    #[error(
        "window {liobn:x} has {entries} entries; filled, the tables that exist take {need} bytes and this host has {host}"
    )]
    WindowMemory {
        /// The table's number.
        liobn: u64,
        /// The entries claimed.
        entries: u64,
        /// Memory for it and the existing tables.
        need: u64,
        /// The host's memory.
        host: u64,
    },
    /// A window that overlaps another one.
    #[error(
        "window {liobn:x} overlaps window {other:x} of line {other_line}, which still exists; remove that one first (D)"
    )]
    Overlap {
        /// The new table's number.
        liobn: u64,
        /// The existing table's number.
        other: u64,
        /// The line that created it.
        other_line: u64,
    },
    /// `D` or `X` names a table that does not exist at this point.
    #[error("{record} names table {liobn:x}, which does not exist here; a W line must come first")]
    NoTable {
        /// The record's letter.
        record: &'static str,
        /// The number.
        liobn: u64,
    },
    /// A list whose contents do not match its count.
    #[error("the call has {count} entries and the line lists {found}")]
    ListLength {
        /// The count in the call.
        count: u64,
        /// The entries found, as far as they were counted.
        found: u64,
    },
    /// A run of entries that passes 2^64.
    #[error("the run '{0}' passes 2^64")]
    RunOverflow(Quoted),
    /// An invalid permission.
    #[error("permission {0} is not 0 (refused), 1 (read), 2 (write) or 3 (both)")]
    Permission(u64),
    /// More items than the reader accepts.
    #[error("more than {limit} {what}; the trace is too large to be held in memory")]
    TooMany {
        /// The items.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// No memory for the trace.
    #[error("no memory to hold the trace")]
    OutOfMemory,
    /// A file without a record.
    #[error("the file has no record; is it a trace?")]
    Empty,
}

prereg::debug_as_display!(Problem);

/// A printable quotation from the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quoted(String);

impl Quoted {
    /// At most 40 characters of `text`, with control characters escaped.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        if text.chars().nth(40).is_some() {
            shown.push('…');
        }
        Self(shown)
    }
}

impl fmt::Display for Quoted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
