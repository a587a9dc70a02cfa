//! Copies of the workspace that are mutated and built in place of the checkout.
//!
//! They stay in the user's cache with their build results, so that a run builds only the changes since the last one. A lock
//! file with the owner's process number keeps two runs apart. [`Trees::open`] undoes a mutant that an interrupted run left.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::Error;
use super::process;
use prereg_vm::cache::{Cache, write_changed};

/// Build results in a copy; kept when the copy is updated.
pub(crate) const TARGET: &str = "target";

/// One copy per concurrent job.
#[derive(Debug)]
pub(crate) struct Trees {
    pub(crate) folders: Vec<PathBuf>,
    lock: PathBuf,
}

impl Trees {
    /// `count` copies of `checkout`, updated.
    ///
    /// # Errors
    /// Another run that uses them; an error of git or of the file system.
    pub(crate) fn open(cache: &Cache, checkout: &Path, count: usize) -> Result<Self, Error> {
        let base = cache.folder("trees")?;
        let lock = base.join("lock");
        take_lock(&lock)?;
        let trees = Self { folders: (0..count).map(|n| base.join(n.to_string())).collect(), lock };
        let files = tracked(checkout)?;
        for folder in &trees.folders {
            copy(checkout, folder, &files)?;
        }
        Ok(trees)
    }
}

impl Drop for Trees {
    fn drop(&mut self) {
        // A lock that stays names a process that has ended, which the next run ignores.
        let _ = fs::remove_file(&self.lock);
    }
}

fn take_lock(lock: &Path) -> Result<(), Error> {
    // A second attempt after removing the lock of a process that has ended.
    for _ in 0..2 {
        match fs::OpenOptions::new().write(true).create_new(true).open(lock) {
            Ok(mut file) => {
                return write!(file, "{}", std::process::id()).map_err(Error::file(lock));
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let owner = fs::read_to_string(lock).unwrap_or_default();
                if Path::new("/proc").join(owner.trim()).join("stat").exists() {
                    return Err(Error::Locked { process: owner, lock: lock.to_owned() });
                }
                fs::remove_file(lock).map_err(Error::file(lock))?;
            }
            Err(error) => return Err(Error::file(lock)(error)),
        }
    }
    Err(Error::Locked { process: "unknown".to_owned(), lock: lock.to_owned() })
}

/// The tracked and untracked files of the checkout without ignored and deleted ones, from its root.
fn tracked(checkout: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let mut git = Command::new("git");
    git.arg("-C").arg(checkout).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = process::output(&mut git)?;
    Ok(listed
        .split('\0')
        .filter(|name| !name.is_empty())
        .map(PathBuf::from)
        .filter(|path| checkout.join(path).is_file())
        .collect())
}

/// Makes `folder` contain `files` of `checkout` and, besides build results, nothing else. Unchanged files keep their times, so
/// that they are not rebuilt.
fn copy(checkout: &Path, folder: &Path, files: &BTreeSet<PathBuf>) -> Result<(), Error> {
    for file in files {
        let (from, to) = (checkout.join(file), folder.join(file));
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(Error::file(parent))?;
        }
        write_changed(&to, &fs::read(&from).map_err(Error::file(&from))?)?;
    }
    let mut open = vec![folder.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).map_err(Error::file(&directory))? {
            let path = entry.map_err(Error::file(&directory))?.path();
            let relative = path.strip_prefix(folder).unwrap_or(&path);
            if path.is_dir() {
                if relative != Path::new(TARGET) {
                    open.push(path);
                }
            } else if !files.contains(relative) {
                fs::remove_file(&path).map_err(Error::file(&path))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_the_checkout_and_keeps_its_build_results() {
        let dir = tempfile::tempdir().expect("a folder");
        let (checkout, folder) = (dir.path().join("checkout"), dir.path().join("copy"));
        let write = |path: PathBuf, text: &str| {
            fs::create_dir_all(path.parent().expect("below a folder")).expect("writable");
            fs::write(path, text).expect("writable");
        };
        write(checkout.join("src/a.rs"), "a");
        write(checkout.join("src/b.rs"), "b");
        let files = |names: &[&str]| names.iter().map(PathBuf::from).collect();
        copy(&checkout, &folder, &files(&["src/a.rs", "src/b.rs"])).expect("copied");
        write(folder.join("target/result"), "built");
        write(folder.join("src/b.rs"), "mutated");
        let untouched = fs::metadata(folder.join("src/a.rs")).expect("there").modified().expect("a time");
        write(checkout.join("src/c.rs"), "c");
        copy(&checkout, &folder, &files(&["src/a.rs", "src/b.rs"])).expect("copied");
        assert_eq!(fs::read_to_string(folder.join("src/b.rs")).expect("there"), "b");
        let now = fs::metadata(folder.join("src/a.rs")).expect("there").modified().expect("a time");
        assert_eq!(now, untouched);
        copy(&checkout, &folder, &files(&["src/b.rs", "src/c.rs"])).expect("copied");
        assert!(!folder.join("src/a.rs").exists() && folder.join("src/c.rs").exists());
        assert!(folder.join("target/result").exists());
    }

    #[test]
    fn a_lock_of_a_live_process_holds_and_one_of_a_dead_process_does_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let lock = dir.path().join("lock");
        take_lock(&lock).expect("free");
        assert!(matches!(take_lock(&lock), Err(Error::Locked { .. })));
        fs::write(&lock, "4294967295").expect("writable");
        take_lock(&lock).expect("no process has this number");
    }
}
