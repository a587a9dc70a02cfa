//! What a run says: one line an operation, in the words of the program that recorded the kernel's answers.

use std::fmt;

use prereg::Errno;

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It returned 0.
    Done,
    /// It returned this number.
    Number(u64),
    /// It failed.
    Failed(Errno),
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done | Self::Number(0) => f.write_str("ok"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Failed(errno) => match (errno.name(), errno.raw()) {
                (None, 77) => f.write_str("-EBADFD"),
                _ => write!(f, "-{errno}"),
            },
        }
    }
}

/// An operation's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub code: Code,
    /// What else it said: words `k=v`.
    pub extra: String,
    /// Why we answered so, in one word; empty where nothing is to be explained. Not part of the line.
    pub cause: &'static str,
}

impl Answer {
    pub(super) fn done() -> Self {
        Self { code: Code::Done, extra: String::new(), cause: "" }
    }

    pub(super) fn number(number: u64) -> Self {
        Self { code: Code::Number(number), ..Self::done() }
    }

    pub(super) fn failed(errno: Errno) -> Self {
        Self::failed_for(errno, "")
    }

    pub(super) fn failed_for(errno: Errno, cause: &'static str) -> Self {
        Self { code: Code::Failed(errno), extra: String::new(), cause }
    }

    pub(super) fn of(result: Result<(), Errno>) -> Self {
        result.map_or_else(Self::failed, |()| Self::done())
    }

    pub(super) fn with(self, extra: impl Into<String>) -> Self {
        Self { extra: extra.into(), ..self }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.code, Code::Done)
    }
}

/// One line of a transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// A child process starts.
    Child,
    /// An operation that could not be read.
    Unreadable(String),
    /// An operation and its answer, with the process' locked memory after it, in KiB.
    Op {
        /// The operation's words.
        text: String,
        /// Its answer.
        answer: Answer,
        /// Locked memory.
        locked_kib: u64,
    },
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Child => f.write_str("child {"),
            Self::Unreadable(text) => write!(f, "{text} => PARSE_ERROR"),
            Self::Op { text, answer, locked_kib } => {
                write!(f, "{text} => {} lck={locked_kib}", answer.code)?;
                if !answer.extra.is_empty() {
                    write!(f, " {}", answer.extra)?;
                }
                Ok(())
            }
        }
    }
}

/// What a scenario said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// The scenario's name.
    pub name: String,
    /// Its lines with their numbers in the file.
    pub lines: Vec<(usize, Line)>,
    /// Remarks for whoever wrote the scenario, by line number.
    pub remarks: Vec<(usize, String)>,
    /// What was left pinned or charged when every process had ended; there must be nothing.
    pub left: Option<String>,
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
        if let Some(left) = &self.left {
            writeln!(f, "#! left behind: {left}")?;
        }
        Ok(())
    }
}
