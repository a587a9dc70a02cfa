//! What the kernel said to one operation, in the words of the transcript.

use std::fmt;

/// The result of an operation, and what else it gave.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Answer {
    /// Zero, a positive result that the kernel let through, or minus an errno.
    pub(crate) code: i64,
    /// `key=value` words that follow the result.
    pub(crate) notes: Vec<String>,
}

impl Answer {
    /// Success, with one word more.
    pub(crate) fn noted(word: String) -> Self {
        Self { code: 0, notes: vec![word] }
    }

    /// The same answer with one word more.
    pub(crate) fn and(mut self, word: String) -> Self {
        self.notes.push(word);
        self
    }
}

impl From<i64> for Answer {
    fn from(code: i64) -> Self {
        Self { code, notes: Vec::new() }
    }
}

impl From<Result<i64, Errno>> for Answer {
    fn from(result: Result<i64, Errno>) -> Self {
        Self::from(result.unwrap_or_else(|errno| -i64::from(errno.0)))
    }
}

/// Why a system call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Errno(pub(crate) i32);

impl Errno {
    /// The errno inside a negative result.
    pub(crate) fn of_code(code: i64) -> Self {
        Self(i32::try_from(code.unsigned_abs()).unwrap_or(i32::MAX))
    }
}

/// The names of 1 to 40, in their order; Linux has had these numbers on every machine from the first day.
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
            (None, libc::EOVERFLOW) => f.write_str("EOVERFLOW"),
            (None, libc::EOPNOTSUPP) => f.write_str("EOPNOTSUPP"),
            (None, number) => write!(f, "E{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_their_names() {
        let named = [
            (libc::EPERM, "EPERM"),
            (libc::ENXIO, "ENXIO"),
            (libc::EINVAL, "EINVAL"),
            (libc::ENOTTY, "ENOTTY"),
        ];
        for (number, name) in
            named.into_iter().chain([(libc::ERANGE, "ERANGE"), (libc::ELOOP, "ELOOP"), (524, "E524")])
        {
            assert_eq!(Errno(number).to_string(), name);
        }
        assert_eq!(Answer::from(Err(Errno(libc::EBUSY))).code, -16);
    }
}
