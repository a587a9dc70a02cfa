//! `/proc/self/status`: locked and pinned memory as the kernel counts it.

/// Locked and pinned memory of this process as the kernel counts it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KernelCount {
    /// Locked with `mlock`, in bytes (`VmLck`).
    pub locked: u64,
    /// Pinned through io_uring and similar, in bytes (`VmPin`). A page in two slots counts twice; a huge page counts
    /// once per ring and in full. Linux 7.3 does not count the buffers of a ring made with CAP_IPC_LOCK.
    pub pinned: u64,
}

impl KernelCount {
    /// The current counts; `None` without `/proc`.
    #[must_use]
    pub fn now() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/self/status").ok()?;
        Some(Self { locked: kib_of(&text, "VmLck")?, pinned: kib_of(&text, "VmPin")? })
    }
}

/// The value of a `Name:   123 kB` line, in bytes.
pub(crate) fn kib_of(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let mut words = value.split_ascii_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    match words.next() {
        Some("kB") => number.checked_mul(1024),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_bytes() {
        let text = "Name:\tx\nVmLck:\t      12 kB\nVmPin:\t       0 kB\n";
        assert_eq!(kib_of(text, "VmLck"), Some(12 * 1024));
        assert_eq!(kib_of(text, "VmPin"), Some(0));
    }

    #[test]
    fn bad_text_gives_nothing() {
        for text in [
            "",
            "VmLck",
            "VmLck:",
            "VmLck: kB",
            "VmLck: 1",
            "VmLck: 1 MB",
            "VmLck: -1 kB",
            "VmLck: 99999999999999999999 kB",
            "VmLck: 18446744073709551615 kB",
            "XVmLck: 1 kB",
        ] {
            assert_eq!(kib_of(text, "VmLck"), None, "{text:?}");
        }
    }
}
