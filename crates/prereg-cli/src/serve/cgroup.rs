//! The memory limit of this process's control group, in the hierarchies of both versions.
//!
//! A group is limited by its own limit and those of all groups above it, as far as its mount shows them. What cannot be read
//! counts as no limit.

use std::fs;
use std::path::{Path, PathBuf};

/// The lowest memory limit among a group and those above it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct CgroupLimit {
    pub(super) bytes: u64,
    /// The file with the limit.
    pub(super) file: PathBuf,
}

/// This process's limit; `None` without one.
pub(super) fn memory_limit() -> Option<CgroupLimit> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let (groups, mounts) = (read(Path::new("/proc/self/cgroup"))?, read(Path::new("/proc/self/mountinfo"))?);
    lowest(&groups, &mounts, read)
}

/// The version of a hierarchy, which determines the file of a group's limit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// From the texts of `/proc/self/cgroup` and `/proc/self/mountinfo`; limits are read by `read`.
fn lowest(groups: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<CgroupLimit> {
    let limits = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        let version = match controllers {
            "" => Version::Two,
            one if one.split(',').any(|controller| controller == "memory") => Version::One,
            _ => return None,
        };
        mounts.lines().filter_map(|mount| folders(mount, version, group)).find_map(|(top, group)| {
            let above = group.ancestors().take_while(|folder| folder.starts_with(&top));
            above.filter_map(|folder| limit_of(folder, version, &read)).min_by_key(|limit| limit.bytes)
        })
    });
    limits.min_by_key(|limit| limit.bytes)
}

/// The mount point in a line of `mountinfo`, and the folder of `group` below it. A group outside of the mount (one of another
/// namespace) has the mount point itself.
fn folders(mount: &str, version: Version, group: &str) -> Option<(PathBuf, PathBuf)> {
    // id parent major:minor root mountpoint options [tags] - type source options
    let (place, kind) = mount.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (file_system, options) = (kind.next()?, kind.nth(1)?);
    let is_it = match version {
        Version::Two => file_system == "cgroup2",
        Version::One => file_system == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    let mut place = place.split(' ').skip(3);
    let (root, top) = (place.next()?, PathBuf::from(place.next()?));
    let inside = Path::new(group).strip_prefix(root).unwrap_or(Path::new("")).to_owned();
    is_it.then(|| {
        let group = top.join(inside);
        (top, group)
    })
}

fn limit_of(folder: &Path, version: Version, read: impl Fn(&Path) -> Option<String>) -> Option<CgroupLimit> {
    /// Version 1 writes no limit as the largest number of whole pages.
    const NONE: u64 = 1 << 62;
    let file = folder.join(match version {
        Version::One => "memory.limit_in_bytes",
        Version::Two => "memory.max",
    });
    let bytes = read(&file)?.trim().parse().ok().filter(|&bytes| bytes < NONE)?;
    Some(CgroupLimit { bytes, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "32 31 0:29 / /cg/cpu rw - cgroup cgroup rw,cpu\n33 31 0:30 /box /cg/memory rw - cgroup none rw,memory\n";

    fn found(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<(u64, String)> {
        let read = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        };
        lowest(groups, mounts, read).map(|limit| (limit.bytes, limit.file.display().to_string()))
    }

    #[test]
    fn the_lowest_limit_of_a_group_and_those_above_counts() {
        let group = "0::/system.slice/prereg.service\n";
        let own = "/sys/fs/cgroup/system.slice/prereg.service/memory.max";
        let above = "/sys/fs/cgroup/system.slice/memory.max";
        assert_eq!(found(group, V2, &[(own, "4096\n"), (above, "max\n")]), Some((4096, own.to_owned())));
        assert_eq!(found(group, V2, &[(own, "8192\n"), (above, "4096\n")]), Some((4096, above.to_owned())));
        assert_eq!(found(group, V2, &[(own, "max\n"), (above, "max\n")]), None);
        assert_eq!(found(group, V2, &[("/sys/fs/cgroup/other/memory.max", "1\n")]), None);
    }

    #[test]
    fn the_first_version_is_found_by_its_controller_and_below_the_root_of_its_mount() {
        let groups = "5:cpu:/box/x\n4:hugetlb,memory:/box/x\n0::/\n";
        let own = "/cg/memory/x/memory.limit_in_bytes";
        assert_eq!(found(groups, V1, &[(own, "65536\n")]), Some((65536, own.to_owned())));
        assert_eq!(found(groups, V1, &[(own, "9223372036854771712\n")]), None);
        let both = [V1, V2].concat();
        let unified = "/sys/fs/cgroup/memory.max";
        assert_eq!(
            found(groups, &both, &[(own, "65536"), (unified, "4096")]),
            Some((4096, unified.to_owned()))
        );
    }

    #[test]
    fn a_group_of_another_namespace_has_the_limit_of_the_mount() {
        let file = "/sys/fs/cgroup/memory.max";
        assert_eq!(
            found("0::/../../x\n", "1 2 0:3 /a/b /sys/fs/cgroup rw - cgroup2 c rw\n", &[(file, "7")]),
            Some((7, file.to_owned()))
        );
    }

    #[test]
    fn odd_texts_are_no_limit() {
        for (groups, mounts) in
            [("", ""), ("x", "x"), ("0:", "- - -"), ("0::/", "1 2 3"), ("0::/", " - cgroup2"), ("::", V2)]
        {
            assert_eq!(found(groups, mounts, &[]), None, "{groups} {mounts}");
        }
    }
}
