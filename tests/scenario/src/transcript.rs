//! The format of transcripts: one block per scenario, one line per operation.
//!
//! A block begins with `== NAME`. An operation's line is `TEXT => RESULT lck=KIB EXTRA...`: `ok`, a positive result or
//! `-ERRNO`, then the process's locked memory, then further words. Stored transcripts may have the number of the scenario
//! file's line in front of each line, and comments that begin with `#`.

use std::fmt;

/// The line that begins a child process.
pub const CHILD: &str = "child {";

/// The text of the operation that ends a child process.
pub const END_OF_CHILD: &str = "} endchild";

/// A Linux error number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

/// The names of errors 1 to 40; Linux has the same numbers on all architectures.
const NAMES: [&str; 40] = [
    "EPERM",
    "ENOENT",
    "ESRCH",
    "EINTR",
    "EIO",
    "ENXIO",
    "E2BIG",
    "ENOEXEC",
    "EBADF",
    "ECHILD",
    "EAGAIN",
    "ENOMEM",
    "EACCES",
    "EFAULT",
    "ENOTBLK",
    "EBUSY",
    "EEXIST",
    "EXDEV",
    "ENODEV",
    "ENOTDIR",
    "EISDIR",
    "EINVAL",
    "ENFILE",
    "EMFILE",
    "ENOTTY",
    "ETXTBSY",
    "EFBIG",
    "ENOSPC",
    "ESPIPE",
    "EROFS",
    "EMLINK",
    "EPIPE",
    "EDOM",
    "ERANGE",
    "EDEADLK",
    "ENAMETOOLONG",
    "ENOLCK",
    "ENOSYS",
    "ENOTEMPTY",
    "ELOOP",
];

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = usize::try_from(self.0).ok().and_then(|number| NAMES.get(number.checked_sub(1)?));
        match (name, self.0) {
            (Some(name), _) => f.write_str(name),
            (None, 75) => f.write_str("EOVERFLOW"),
            (None, 77) => f.write_str("EBADFD"),
            (None, 95) => f.write_str("EOPNOTSUPP"),
            (None, number) => write!(f, "E{number}"),
        }
    }
}

/// The result of an operation: 0, a positive number, or minus an errno.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Code(pub i64);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("ok"),
            code if code < 0 => {
                write!(f, "-{}", Errno(i32::try_from(code.unsigned_abs()).unwrap_or(i32::MAX)))
            }
            code => write!(f, "{code}"),
        }
    }
}

/// The answer to an operation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Answer {
    /// Its result.
    pub code: Code,
    /// Further words of the line, such as `ret=1`.
    pub extra: String,
    /// The reason for the answer in one word, which rules for deviations name; empty if there is nothing to explain. Not part of
    /// the line.
    pub cause: &'static str,
}

impl Answer {
    /// Success.
    #[must_use]
    pub fn done() -> Self {
        Self::default()
    }

    /// Whether the result is 0.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.code == Code(0)
    }

    /// Adds a word.
    #[must_use]
    pub fn with(mut self, word: impl AsRef<str>) -> Self {
        if !self.extra.is_empty() {
            self.extra.push(' ');
        }
        self.extra.push_str(word.as_ref());
        self
    }

    /// The part of the line behind `=>`.
    #[must_use]
    pub fn text(&self, locked_kib: i64) -> String {
        let mut text = format!("{} lck={locked_kib}", self.code);
        if !self.extra.is_empty() {
            text.push(' ');
            text.push_str(&self.extra);
        }
        text
    }
}

impl From<i64> for Answer {
    fn from(code: i64) -> Self {
        Self { code: Code(code), ..Self::default() }
    }
}

impl From<Errno> for Answer {
    fn from(errno: Errno) -> Self {
        Self::from(-i64::from(errno.0))
    }
}

impl From<Result<i64, Errno>> for Answer {
    fn from(result: Result<i64, Errno>) -> Self {
        result.map_or_else(Self::from, Self::from)
    }
}

/// The line of an operation that cannot be parsed.
#[must_use]
pub fn parse_error(text: &str) -> String {
    format!("{text} => PARSE_ERROR")
}

/// The recorded answers to one scenario.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Block {
    /// The scenario's name.
    pub name: String,
    /// Its lines, without numbers.
    pub lines: Vec<String>,
}

/// Adds a transcript line to `blocks`. Lines before the first `== NAME` are dropped.
pub fn push_line(blocks: &mut Vec<Block>, line: &str) {
    if let Some(name) = line.strip_prefix("== ") {
        blocks.push(Block { name: name.trim_end().to_owned(), lines: Vec::new() });
    } else if let Some(block) = blocks.last_mut() {
        block.lines.push(line.to_owned());
    }
}

/// Parses a stored transcript.
#[must_use]
pub fn parse(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    for line in text.lines().map(str::trim_end) {
        if !line.is_empty() && !line.starts_with('#') {
            push_line(&mut blocks, unnumbered(line));
        }
    }
    blocks
}

/// `line` without a number of three digits or more in front.
fn unnumbered(line: &str) -> &str {
    match line.split_once(' ') {
        Some((number, rest)) if number.len() >= 3 && number.bytes().all(|digit| digit.is_ascii_digit()) => {
            rest
        }
        _ => line,
    }
}

/// A transcript as it is stored.
#[must_use]
pub fn text(blocks: &[Block]) -> String {
    let mut text = String::new();
    for block in blocks {
        text.push_str(&format!("== {}\n", block.name));
        for line in &block.lines {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_names() {
        let named =
            [(1, "EPERM"), (6, "ENXIO"), (22, "EINVAL"), (25, "ENOTTY"), (34, "ERANGE"), (40, "ELOOP")];
        for (number, name) in named.into_iter().chain([(77, "EBADFD"), (524, "E524"), (0, "E0"), (-1, "E-1")])
        {
            assert_eq!(Errno(number).to_string(), name);
        }
        assert_eq!(Answer::from(Err(Errno(16))).code, Code(-16));
    }

    #[test]
    fn an_answer_shows_its_result_the_locked_memory_and_its_words() {
        assert_eq!(Answer::done().text(0), "ok lck=0");
        assert_eq!(Answer::from(12).with("a=1").with("b=2").text(8), "12 lck=8 a=1 b=2");
        assert_eq!(Answer::from(Errno(22)).text(-1), "-EINVAL lck=-1");
    }

    #[test]
    fn stored_lines_may_be_numbered_and_commented() {
        let plain = "== one\nmap => ok lck=0\nunmap => ok lck=0\n== two\nstatus => ok lck=0 pin=0\n";
        let numbered = "noise\n# a comment\n== one \n003 map => ok lck=0\n1004 unmap => ok lck=0\n\n== two\n012 status => ok lck=0 pin=0\n";
        assert_eq!(parse(numbered), parse(plain));
        assert_eq!(text(&parse(numbered)), plain);
    }
}
