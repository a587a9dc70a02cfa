//! Kernel modules: finds them by name, unpacks them and orders them by their dependencies.
//!
//! A module lists its dependencies in its information section, as `depends=a,b`. A module without a file is built into the
//! kernel or does not exist; then the guest fails to load those that depend on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::sysroot::Sysroot;
use crate::error::Error;
use crate::tool::run_into;

/// The modules below a folder.
#[derive(Clone, Debug)]
pub(crate) struct Drivers {
    files: BTreeMap<String, PathBuf>,
}

/// A module that the kernel can load.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Driver {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

impl Drivers {
    /// The modules in `folder` and all folders below.
    pub(crate) fn below(folder: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(Error::file(&folder))?.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files })
    }

    /// The modules `names` and their dependencies in load order; `root` has xz.
    pub(crate) fn with_dependencies(&self, root: &Sysroot, names: &[&str]) -> Result<Vec<Driver>, Error> {
        let mut loaded = Vec::new();
        let mut visited = BTreeSet::new();
        for name in names {
            self.visit(root, &canonical(name), &mut visited, &mut loaded)?;
        }
        Ok(loaded)
    }

    fn visit(
        &self,
        root: &Sysroot,
        name: &str,
        visited: &mut BTreeSet<String>,
        loaded: &mut Vec<Driver>,
    ) -> Result<(), Error> {
        let Some(path) = self.files.get(name) else { return Ok(()) };
        if !visited.insert(name.to_owned()) {
            return Ok(());
        }
        let bytes = read(root, path)?;
        for need in dependencies(&bytes) {
            self.visit(root, &need, visited, loaded)?;
        }
        loaded.push(Driver { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// File names have `-` or `_`, which the kernel treats alike.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    Some(canonical(file.strip_suffix(".ko").or_else(|| file.strip_suffix(".ko.xz"))?))
}

fn read(root: &Sysroot, path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = fs::read(path).map_err(Error::file(path))?;
    if path.extension().is_some_and(|end| end == "xz") {
        run_into(root.command("usr/bin/xz")?.args(["-d", "-c"]), &bytes)
    } else {
        Ok(bytes)
    }
}

/// The names behind `depends=` in the information section, whose entries end in zeros.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let at = module.windows(KEY.len()).position(|window| window == KEY);
    let list = at.and_then(|at| module[at + KEY.len()..].split(|byte| *byte == 0).next()).unwrap_or_default();
    let names = list.split(|byte| *byte == b',').map(String::from_utf8_lossy);
    names.filter(|name| !name.is_empty()).map(|name| canonical(&name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_are_read_from_the_facts() {
        assert_eq!(
            dependencies(b"ELF..\0license=GPL\0depends=nvme-core,crc16\0name=nvme\0"),
            ["nvme_core", "crc16"]
        );
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"no facts").is_empty());
    }

    #[test]
    fn needed_modules_come_first_and_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).expect("a writable folder");
        for (path, text) in [
            (folder.path().join("a.ko"), "\0depends=b-c,d\0"),
            (inner.join("b-c.ko"), "\0depends=d\0"),
            (inner.join("d.ko"), "\0depends=\0"),
            (inner.join("notes"), ""),
        ] {
            fs::write(path, text).expect("a writable folder");
        }
        // No module here is compressed, so no program is started.
        fs::create_dir_all(folder.path().join("usr/lib/x86_64-linux-gnu")).expect("a writable folder");
        fs::write(folder.path().join("usr/lib/x86_64-linux-gnu/ld-x"), "").expect("a writable folder");
        let root = Sysroot::at(folder.path(), "amd64").expect("it has a loader");
        let drivers = Drivers::below(folder.path()).expect("readable");
        let loaded = drivers.with_dependencies(&root, &["a", "built-in", "d"]).expect("readable");
        let names: Vec<&str> = loaded.iter().map(|driver| driver.name.as_str()).collect();
        assert_eq!(names, ["d", "b_c", "a"]);
    }
}
