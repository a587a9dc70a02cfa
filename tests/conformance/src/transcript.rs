//! The transcript of a scenario that prereg performed.

use std::fmt;

use prereg::Errno;
use prereg_scenario::transcript::{self, Answer, CHILD};

/// A failed operation.
pub(super) fn failed(errno: Errno) -> Answer {
    transcript::Errno(errno.raw()).into()
}

/// A failed operation, with the reason that rules for deviations name.
pub(super) fn failed_for(errno: Errno, cause: &'static str) -> Answer {
    Answer { cause, ..failed(errno) }
}

/// The answer to an operation that returns nothing.
pub(super) fn answer(result: Result<(), Errno>) -> Answer {
    result.map_or_else(failed, |()| Answer::done())
}

/// One line of a transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A child process starts.
    Child,
    /// An operation that cannot be parsed, or that killed its process.
    ParseError(String),
    /// An operation.
    Op {
        /// The operation's words.
        text: String,
        /// Its answer.
        answer: Answer,
        /// The process's locked memory after it, in KiB.
        locked_kib: u64,
    },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Child => f.write_str(CHILD),
            Self::ParseError(text) => f.write_str(&transcript::parse_error(text)),
            Self::Op { text, answer, locked_kib } => {
                write!(f, "{text} => {}", answer.text(i64::try_from(*locked_kib).unwrap_or(i64::MAX)))
            }
        }
    }
}

/// The transcript of one scenario.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// The scenario's name.
    pub name: String,
    /// Its lines with their numbers in the file.
    pub lines: Vec<(usize, Line)>,
    /// Remarks for the scenario's author, by line number.
    pub remarks: Vec<(usize, String)>,
    /// Pages that stayed pinned or charged after the last process ended; a defect.
    pub leak: Option<String>,
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== {}", self.name)?;
        for (number, line) in &self.lines {
            writeln!(f, "{number:03} {line}")?;
        }
        for (number, remark) in &self.remarks {
            writeln!(f, "#! {number}: {remark}")?;
        }
        if let Some(leak) = &self.leak {
            writeln!(f, "#! left behind: {leak}")?;
        }
        Ok(())
    }
}
