//! Programs of another Debian release than the machine's, started without installing them.
//!
//! Their packages are unpacked into a folder with all dependencies, libc included, and the loader among them starts each
//! program. The machine's libraries are not used, the environment of child processes is not changed, and no privilege is
//! needed, unlike chroot.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::triplet;
use crate::error::Error;
use crate::tool::run;

/// Unpacked packages with their loader.
#[derive(Clone, Debug)]
pub(crate) struct Sysroot {
    folder: PathBuf,
    /// The library folders, in the loader's format.
    libraries: OsString,
    loader: PathBuf,
}

/// A file of the folder, and the path where programs expect it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Dependency {
    pub(crate) source: PathBuf,
    /// Relative to the root of the file system.
    pub(crate) place: String,
}

impl Sysroot {
    /// The packages unpacked into `folder`, of Debian's `architecture`.
    ///
    /// # Errors
    /// [`Error::Missing`] without a loader.
    pub(crate) fn at(folder: &Path, architecture: &str) -> Result<Self, Error> {
        let libraries = folder.join("usr/lib").join(triplet(architecture));
        let entries = fs::read_dir(&libraries).map_err(Error::file(&libraries))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        let loader = paths.iter().find(|path| name(path).starts_with("ld-"));
        let loader = loader.cloned().ok_or_else(|| Error::Missing {
            place: libraries.clone(),
            what: "loader ld-*".to_owned(),
            remedy: "--fresh fetches it anew",
        })?;
        // Some packages have libraries in their own folder, which their programs name by its installed path.
        let own = paths.into_iter().filter(|path| path.is_dir() && has_libraries(path));
        let folders = std::iter::once(libraries.clone()).chain(own);
        let libraries = std::env::join_paths(folders).map_err(|_| Error::Format {
            place: libraries,
            kind: "place for libraries",
            why: "its path has a colon, which separates folders of libraries",
        })?;
        Ok(Self { folder: folder.to_owned(), libraries, loader })
    }

    /// The file at `path` of the unpacked packages.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub(crate) fn file(&self, path: &str) -> Result<PathBuf, Error> {
        Some(self.folder.join(path)).filter(|file| file.exists()).ok_or_else(|| Error::Missing {
            place: self.folder.clone(),
            what: path.to_owned(),
            remedy: "--fresh fetches it anew",
        })
    }

    /// A command that starts the program at `path`, such as `usr/bin/xz`, with the words `before` in front.
    pub(crate) fn command_after(&self, before: &[&str], path: &str) -> Result<Command, Error> {
        let program = self.file(path)?;
        let mut words: Vec<&std::ffi::OsStr> = before.iter().map(std::ffi::OsStr::new).collect();
        words.extend([self.loader.as_os_str(), "--library-path".as_ref(), self.libraries.as_ref()]);
        words.push(program.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Ok(command)
    }

    /// A command that starts the program at `path`.
    pub(crate) fn command(&self, path: &str) -> Result<Command, Error> {
        self.command_after(&[], path)
    }

    /// The program at `path`, its loader and its libraries, as files for a guest.
    pub(crate) fn program_with_dependencies(&self, path: &str) -> Result<Vec<Dependency>, Error> {
        let program = self.file(path)?;
        let mut list = Command::new(&self.loader);
        list.arg("--library-path").arg(&self.libraries).arg("--list").arg(&program);
        let mut needed = vec![Dependency { source: program, place: path.to_owned() }];
        needed.extend(self.listed(&run(&mut list)?));
        Ok(needed)
    }

    /// Parses the loader's list: a line is `NAME => FILE (ADDRESS)`; the loader has the name that the program gives it.
    /// Libraries go to the folder that every loader searches.
    fn listed(&self, text: &str) -> Vec<Dependency> {
        let file = |line: &str| {
            let (name, rest) = line.trim().split_once(" => ")?;
            let source = PathBuf::from(rest.rsplit_once(" (")?.0);
            let place = if name.starts_with('/') {
                name.trim_start_matches('/').to_owned()
            } else {
                format!("lib/{name}")
            };
            // An entry without a file, such as the kernel's vDSO, is in every guest.
            source.starts_with(&self.folder).then_some(Dependency { source, place })
        };
        text.lines().filter_map(file).collect()
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether `folder` has versioned libraries; plugins of a program have no version.
fn has_libraries(folder: &Path) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| name(&entry.path()).contains(".so."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_libraries_are_found_and_those_of_modules_are_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let libraries = folder.path().join("usr/lib/x86_64-linux-gnu");
        for part in ["own", "modules"] {
            fs::create_dir_all(libraries.join(part)).expect("a writable folder");
        }
        for file in ["ld-x", "own/liba.so.2", "modules/b.so"] {
            fs::write(libraries.join(file), "").expect("a writable folder");
        }
        let root = Sysroot::at(folder.path(), "amd64").expect("it has a loader");
        let found: Vec<PathBuf> = std::env::split_paths(&root.libraries).collect();
        assert_eq!(found, [libraries.clone(), libraries.join("own")]);
        assert_eq!(root.loader, libraries.join("ld-x"));
    }

    #[test]
    fn libraries_go_where_the_loader_looks_and_the_loader_where_the_program_names_it() {
        let root = Sysroot {
            folder: "/c/root".into(),
            libraries: "/c/root/l".into(),
            loader: "/c/root/l/ld-x".into(),
        };
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\
                    \tlibc.so.6 => /c/root/l/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-x => /c/root/l/ld-x (0x00007f)\n\
                    \tlibz.so.1 => /usr/lib/libz.so.1 (0x00007f)\n";
        let needed = root.listed(text);
        let places: Vec<&str> = needed.iter().map(|needed| needed.place.as_str()).collect();
        assert_eq!(places, ["lib/libc.so.6", "lib64/ld-x"], "nothing of the machine's own");
        assert_eq!(needed[0].source, Path::new("/c/root/l/libc.so.6"));
    }
}
