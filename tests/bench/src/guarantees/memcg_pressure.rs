//! A memory cgroup that is too small, and a neighbour in it that never has enough: what a promise must hold under.
//!
//! A [`MemoryCgroup`] is a cgroup of version 1 or 2 below the caller's own, with a limit. Who is in it competes for its memory:
//! the [`read_repeatedly`] loop reads a file larger than the limit over and over, so that the kernel reclaims without end. Nothing here
//! takes memory from processes outside of the group.

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

/// What the kernel counted in a group: what is not said by its version of cgroups is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// How often a charge met the limit and pages had to go first.
    pub at_limit: u64,
    /// Pages that left the group.
    pub taken: u64,
    /// Pages looked at for that.
    pub scanned: Option<u64>,
    /// Pages of files that were taken and read again.
    pub refaults: u64,
    /// Bytes that are locked or otherwise not to be taken.
    pub unevictable: u64,
}

impl MemoryCgroup {
    /// A group with `limit` bytes below the caller's own memory cgroup.
    ///
    /// # Errors
    /// Why there can be none: a sentence to print.
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

    /// Where it is, for [`enter`].
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the kernel counted so far.
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
        // A group that is not empty stays, and its name says whose it is.
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

/// Moves the calling process into the group at `folder`.
///
/// # Errors
/// As the kernel says.
pub fn enter(folder: &Path) -> io::Result<()> {
    fs::write(folder.join("cgroup.procs"), std::process::id().to_string())
}

/// Reads a sparse file of `bytes` bytes in `folder` over and over: each page of it is charged, and can be taken again. Ends
/// when its standard input does.
///
/// # Errors
/// As the file system says.
pub fn read_repeatedly(folder: &Path, bytes: u64) -> io::Result<()> {
    let path = folder.join(format!("prereg-read_repeatedly-{}", std::process::id()));
    let mut file = fs::OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    // Has no name any more: gone with this process.
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

/// The folder of the memory cgroup that `mine` (`/proc/self/cgroup`) names, and whether it is of version 2.
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
