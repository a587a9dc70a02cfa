//! `/proc/self/maps`, read to explain why a page cannot be pinned.
//!
//! The kernel returns EFAULT for a hole, a read-only mapping, a disk file, a page past the end of its file and more,
//! without saying which or where. This is read only after a failure and never decides whether a pin succeeds.

use std::path::{Path, PathBuf};

use prereg::{PinError, UserAddr, UserRange};

use crate::sys;

/// A line of `maps`: one virtual memory area.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Vma {
    pub(crate) start: u64,
    /// One past the last byte.
    pub(crate) end: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    pub(crate) shared: bool,
    pub(crate) path: String,
}

/// The areas in `text`, in order. Malformed lines are skipped.
pub(crate) fn parse(text: &str) -> Vec<Vma> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Vma> {
    // start-end perms offset device inode          path (which may hold spaces)
    let (span, rest) = line.split_once(' ')?;
    let (start, end) = span.split_once('-')?;
    let (flags, rest) = rest.split_once(' ')?;
    let flags = flags.as_bytes();
    let mut rest = rest;
    for _ in 0..3 {
        rest = rest.trim_start();
        rest = &rest[rest.find(' ').unwrap_or(rest.len())..];
    }
    let vma = Vma {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        readable: *flags.first()? == b'r',
        writable: *flags.get(1)? == b'w',
        shared: *flags.get(3)? == b's',
        path: rest.trim_start().to_owned(),
    };
    (vma.start < vma.end).then_some(vma)
}

/// A page that cannot be pinned, and the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnpinnablePage {
    pub(crate) ua: UserAddr,
    pub(crate) why: &'static str,
}

impl From<UnpinnablePage> for PinError {
    fn from(found: UnpinnablePage) -> Self {
        Self::Fault { ua: found.ua, why: found.why }
    }
}

const HOLE: &str = "nothing is mapped there; register only memory that is mapped from end to end";
const NO_ACCESS: &str = "it is mapped without any access (PROT_NONE); make it readable and writable first";
const READ_ONLY: &str = "it is mapped read-only, and a device may write; map it with PROT_READ | PROT_WRITE";
const KERNEL: &str = "it belongs to the kernel (vdso, vvar or vsyscall) and can never be pinned";
const SECRET: &str = "it is memfd_secret memory, which the kernel never pins";
const DISK_FILE: &str =
    "it is a shared mapping of a file on a disk; use a memfd, anonymous memory or hugetlb";
const PAST_THE_END: &str = "it lies past the end of its file, or the huge-page pool is empty; make the file longer, \
                            or raise /proc/sys/vm/nr_hugepages";
const NO_MEMORY: &str =
    "its page could not be brought into memory (out of memory, or out of the cgroup's limit)";
/// Used when no other reason was found.
pub(crate) const OTHER_KIND: &str =
    "the kernel does not pin memory of this kind (for example a device's mapping)";

/// The first page of `range` that cannot be pinned, judged by the areas alone.
pub(crate) fn reason_in_vmas(
    vmas: &[Vma],
    range: UserRange,
    on_disk: impl Fn(&Vma) -> bool,
) -> Option<UnpinnablePage> {
    let mut at = range.first().raw();
    let mut next = vmas.partition_point(|vma| vma.end <= at);
    loop {
        let found = |why| Some(UnpinnablePage { ua: UserAddr::new(at), why });
        let Some(vma) = vmas.get(next).filter(|vma| vma.start <= at) else { return found(HOLE) };
        match vma.path.as_str() {
            "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]" => return found(KERNEL),
            path if path.starts_with("/secretmem") => return found(SECRET),
            _ if !vma.readable && !vma.writable => return found(NO_ACCESS),
            _ if !vma.writable => return found(READ_ONLY),
            _ if vma.shared && on_disk(vma) => return found(DISK_FILE),
            _ => {}
        }
        if vma.end > range.last().raw() {
            return None;
        }
        at = vma.end;
        next += 1;
    }
}

/// The first page of `range` that cannot be pinned, judged by the current `/proc/self/maps`.
pub(crate) fn vma_reason(range: UserRange) -> Option<UnpinnablePage> {
    let text = std::fs::read("/proc/self/maps").ok()?;
    reason_in_vmas(&parse(&String::from_utf8_lossy(&text)), range, on_disk)
}

/// The first page of `range` that cannot be pinned, found by the areas and then by faulting pages in.
pub(crate) fn unpinnable_reason(range: UserRange) -> Option<UnpinnablePage> {
    let found = vma_reason(range);
    if found.is_some() {
        return found;
    }
    let (ua, errno) = first_unpopulated(range.first().raw(), range.bytes())?;
    let why = if errno == prereg::Errno::ENOMEM { NO_MEMORY } else { PAST_THE_END };
    Some(UnpinnablePage { ua: UserAddr::new(ua), why })
}

/// Whether the reason forbids pinning but not `mlock`.
pub(crate) fn only_a_disk_file(found: UnpinnablePage) -> bool {
    found.why == DISK_FILE
}

/// The first page that cannot be faulted in, by bisection; `None` when all can, or the kernel cannot populate.
pub(crate) fn first_unpopulated(ua: u64, bytes: u64) -> Option<(u64, prereg::Errno)> {
    let page = sys::page_size();
    let mut errno = match sys::populate_write(ua, bytes) {
        Ok(()) | Err(prereg::Errno::EINVAL) => return None,
        Err(errno) => errno,
    };
    // Pages [0, good) can be faulted in; [0, bad) cannot.
    let (mut good, mut bad) = (0, bytes / page);
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        match sys::populate_write(ua + good * page, (middle - good) * page) {
            Ok(()) => good = middle,
            Err(found) => (bad, errno) = (middle, found),
        }
    }
    Some((ua + good * page, errno))
}

/// Whether a shared mapping's file is on a file system that must be notified of writes, which the kernel does not pin.
fn on_disk(vma: &Vma) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    const HUGETLBFS: i64 = 0x9584_58f6;
    const IN_MEMORY: [&str; 5] = ["/memfd:", "/dev/zero", "/SYSV", "/anon_hugepage", "anon_inode:"];
    if !vma.path.starts_with('/') || IN_MEMORY.iter().any(|known| vma.path.starts_with(known)) {
        return false;
    }
    let deleted = vma.path.strip_suffix(" (deleted)").map(PathBuf::from);
    let place = match &deleted {
        Some(path) => path.parent().unwrap_or(Path::new("/")),
        None => Path::new(&vma.path),
    };
    sys::filesystem_magic(place).is_ok_and(|magic| magic != TMPFS && magic != HUGETLBFS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prereg::Granule;

    const TEXT: &str = "\
00001000-00003000 rw-p 00000000 00:00 0 
00003000-00004000 r--p 00000000 fe:00 77                 /usr/lib/a file with spaces
00006000-00008000 rw-s 00000000 00:01 12                 /memfd:guest (deleted)
00008000-00009000 rw-s 00000000 fe:00 13                 /var/disk
00009000-0000a000 ---p 00000000 00:00 0 
7ffe0000-7ffe2000 r--p 00000000 00:00 0                  [vvar]
";

    fn found(first: u64, bytes: u64) -> Option<(u64, &'static str)> {
        let range = UserRange::new(UserAddr::new(first), bytes, Granule::K4).unwrap();
        reason_in_vmas(&parse(TEXT), range, |vma| vma.path == "/var/disk").map(|o| (o.ua.raw(), o.why))
    }

    #[test]
    fn every_kind_of_obstacle_is_named_at_its_first_page() {
        assert_eq!(found(0x1000, 0x2000), None);
        assert_eq!(found(0x6000, 0x2000), None);
        assert_eq!(found(0x1000, 0x3000), Some((0x3000, READ_ONLY)));
        assert_eq!(found(0x2000, 0x1000), None);
        assert_eq!(found(0x4000, 0x1000), Some((0x4000, HOLE)));
        assert_eq!(found(0x7000, 0x2000), Some((0x8000, DISK_FILE)));
        assert_eq!(found(0x9000, 0x1000), Some((0x9000, NO_ACCESS)));
        assert_eq!(found(0x7ffe_0000, 0x1000), Some((0x7ffe_0000, KERNEL)));
        assert_eq!(found(0x7fff_0000, 0x1000), Some((0x7fff_0000, HOLE)));
        assert_eq!(found(0, 0x2000), Some((0, HOLE)));
    }

    #[test]
    fn paths_keep_their_spaces_and_anonymous_areas_have_none() {
        let vmas = parse(TEXT);
        assert_eq!(vmas[1].path, "/usr/lib/a file with spaces");
        assert_eq!(vmas[0].path, "");
        assert!(vmas[2].shared && vmas[2].writable);
    }

    #[test]
    fn bad_lines_are_left_out() {
        for text in [
            "",
            "\n\n",
            "x",
            "1-2",
            "1-2 ",
            "1-2 rw",
            "1-2 rw x",
            "2-1 rw-p 0 0 0",
            "zz-1 rw-p 0 00:00 0",
            "1-1 rwxp 0 0 0",
            "-",
        ] {
            assert_eq!(parse(text), [], "{text:?}");
        }
        assert_eq!(parse("1-2 rw-p").len(), 0);
        assert_eq!(parse("1000-2000 rw-p 0").len(), 1);
        assert_eq!(parse("garbage\n1000-2000 rw-p 0 0:0 0\n\u{fffd}").len(), 1);
    }
}
