//! A memory cgroup under reclaim, in which guarantees must hold.
//!
//! A [`MemoryCgroup`] is a cgroup of version 1 or 2 below the caller's own, with a limit. [`read_repeatedly`] reads a file
//! larger than the limit in a loop, so that the kernel reclaims memory of the cgroup all the time. Processes outside of the
//! cgroup are not affected.

use std::fmt;
use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// A cgroup with a limit on memory. Removed when dropped; it must be empty by then.
#[derive(Debug)]
pub struct MemoryCgroup {
    folder: PathBuf,
    unified: bool,
}

/// Counters of a cgroup; `None` if its version of cgroups has no such counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Charges that reached the limit and had to reclaim first.
    pub at_limit: u64,
    /// Pages reclaimed.
    pub taken: u64,
    /// Pages scanned for reclaim.
    pub scanned: Option<u64>,
    /// File pages that were reclaimed and read again.
    pub refaults: u64,
    /// Bytes that cannot be reclaimed, such as locked ones.
    pub unevictable: u64,
}

impl MemoryCgroup {
    /// A cgroup with `limit` bytes below the caller's own memory cgroup.
    ///
    /// # Errors
    /// The reason, as a sentence, why it cannot be made.
    pub fn new(name: &str, limit: u64) -> Result<Self, String> {
        let mine = fs::read_to_string("/proc/self/cgroup").map_err(|error| format!("no cgroups: {error}"))?;
        let (parent, unified) = memory_cgroup(&mine, &mounts()?).ok_or("no memory cgroup is mounted")?;
        let folder = parent.join(name);
        fs::create_dir(&folder).map_err(|error| {
            format!("a memory cgroup cannot be made in {} ({error}); it needs root", parent.display())
        })?;
        let group = Self { folder, unified };
        let file = if unified { "memory.max" } else { "memory.limit_in_bytes" };
        let limited = fs::write(group.folder.join(file), limit.to_string());
        limited.map_err(|error| format!("no limit on {}: {error}", group.folder.display()))?;
        Ok(group)
    }

    /// Its folder, for [`enter`].
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The current counters.
    #[must_use]
    pub fn pressure(&self) -> Pressure {
        let read = |file: &str| fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let stat = read("memory.stat");
        let named = |text: &str, name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
            line.unwrap_or(0)
        };
        let (at_limit, taken, scanned) = if self.unified {
            let scanned = Some(named(&stat, "pgscan"));
            (named(&read("memory.events"), "max"), named(&stat, "pgsteal"), scanned)
        } else {
            (read("memory.failcnt").trim().parse().unwrap_or(0), named(&stat, "pgpgout"), None)
        };
        let refaults = named(&stat, "workingset_refault_file");
        Pressure { at_limit, taken, scanned, refaults, unevictable: named(&stat, "unevictable") }
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // A cgroup that is not empty stays; its name has this process's number.
        let _ = fs::remove_dir(&self.folder);
    }
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at_limit, taken, scanned, refaults, unevictable } = self;
        write!(f, "{at_limit} times at the limit, {taken} pages taken away")?;
        if let Some(scanned) = scanned {
            write!(f, " of {scanned} looked at")?;
        }
        write!(f, ", {refaults} pages of files read again; {} KiB not to be taken", unevictable >> 10)
    }
}

/// Moves the calling process into the cgroup at `folder`.
///
/// # Errors
/// The error of the write.
pub fn enter(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), std::process::id().to_string())
}

/// Reads a sparse file of `bytes` bytes in `folder` repeatedly: each page of it is charged and can be reclaimed. Returns when
/// standard input ends.
///
/// # Errors
/// An error of the file system.
pub fn read_repeatedly(folder: &Path, bytes: u64) -> io::Result<()> {
    let path = folder.join(format!("prereg-read_repeatedly-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    // Without a name it vanishes with this process.
    fs::remove_file(&path)?;
    file.set_len(bytes)?;
    file.write_all(b"x")?;
    let parent = std::thread::spawn(|| io::stdin().read(&mut [0]));
    let mut buffer = vec![0; 1 << 20];
    while !parent.is_finished() {
        file.rewind()?;
        while !parent.is_finished() && file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

fn mounts() -> Result<String, String> {
    fs::read_to_string("/proc/self/mounts").map_err(|error| format!("no list of mounts: {error}"))
}

/// The folder of the memory cgroup in `mine` (the text of `/proc/self/cgroup`), and whether it is of version 2.
fn memory_cgroup(mine: &str, mounts: &str) -> Option<(PathBuf, bool)> {
    let path_of = |wanted: fn(&str, &str) -> bool| {
        mine.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(number, controllers).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let mounted = |wanted: fn(&str, &str) -> bool| {
        mounts.lines().find_map(|line| {
            let mut parts = line.split(' ').skip(1);
            let (place, kind, options) = (parts.next()?, parts.next()?, parts.next()?);
            wanted(kind, options).then(|| PathBuf::from(place))
        })
    };
    if let Some(path) = path_of(|_, controllers| controllers.split(',').any(|name| name == "memory")) {
        let root =
            mounted(|kind, options| kind == "cgroup" && options.split(',').any(|one| one == "memory"))?;
        return Some((root.join(path), false));
    }
    let root = mounted(|kind, _| kind == "cgroup2")?;
    Some((root.join(path_of(|number, _| number == "0")?), true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_cgroups_are_found() {
        let mounts = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let first = "9:name=systemd:/\n4:memory:/a/b\n0::/c\n";
        assert_eq!(memory_cgroup(first, mounts), Some(("/sys/fs/cgroup/memory/a/b".into(), false)));
        let second = "0::/user.slice/x\n";
        let only = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(memory_cgroup(second, only), Some(("/sys/fs/cgroup/user.slice/x".into(), true)));
        assert_eq!(memory_cgroup("", mounts), None);
    }
}
