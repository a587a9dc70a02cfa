//! Programs of another Debian release than the machine's, started without installing them.
//!
//! Their packages are unpacked into a folder together with all that they need, libc included, and each program is started
//! by the loader that came along. So nothing of the machine's own libraries is used, no environment is changed for
//! the program's children, and no privilege is needed as for chroot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Trouble;
use super::apt::triplet;
use super::tool::run;

/// Unpacked packages with their own loader.
#[derive(Clone, Debug)]
pub(crate) struct Root {
    folder: PathBuf,
    libraries: PathBuf,
    loader: PathBuf,
}

/// A file of the folder and where a program expects it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Needed {
    pub(crate) source: PathBuf,
    /// Relative to the root of the file system.
    pub(crate) place: String,
}

impl Root {
    /// What was unpacked into `folder`, for Debian's `architecture`.
    ///
    /// # Errors
    /// [`Trouble::Missing`] without a loader.
    pub(crate) fn at(folder: &Path, architecture: &str) -> Result<Self, Trouble> {
        let libraries = folder.join("usr/lib").join(triplet(architecture));
        let entries = fs::read_dir(&libraries).map_err(Trouble::file(&libraries))?;
        let loader = entries.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with("ld-"));
        let loader = loader.map(|entry| entry.path()).ok_or_else(|| Trouble::Missing {
            place: libraries.clone(),
            what: "loader ld-*".to_owned(),
            remedy: "--fresh fetches it anew",
        })?;
        Ok(Self { folder: folder.to_owned(), libraries, loader })
    }

    /// The file at `path` of the unpacked packages.
    ///
    /// # Errors
    /// [`Trouble::Missing`].
    pub(crate) fn file(&self, path: &str) -> Result<PathBuf, Trouble> {
        Some(self.folder.join(path)).filter(|file| file.exists()).ok_or_else(|| Trouble::Missing {
            place: self.folder.clone(),
            what: path.to_owned(),
            remedy: "--fresh fetches it anew",
        })
    }

    /// A command that starts the program at `path`, such as `usr/bin/xz`, with whatever stands `before` it.
    pub(crate) fn command_after(&self, before: &[&str], path: &str) -> Result<Command, Trouble> {
        let program = self.file(path)?;
        let mut words: Vec<&std::ffi::OsStr> = before.iter().map(std::ffi::OsStr::new).collect();
        words.extend([self.loader.as_os_str(), "--library-path".as_ref(), self.libraries.as_os_str()]);
        words.push(program.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        Ok(command)
    }

    /// A command that starts the program at `path`.
    pub(crate) fn command(&self, path: &str) -> Result<Command, Trouble> {
        self.command_after(&[], path)
    }

    /// The program at `path`, the loader it names and the libraries it needs, to be put into a guest.
    pub(crate) fn program_with_needs(&self, path: &str) -> Result<Vec<Needed>, Trouble> {
        let program = self.file(path)?;
        let mut list = Command::new(&self.loader);
        list.arg("--library-path").arg(&self.libraries).arg("--list").arg(&program);
        let mut needed = vec![Needed { source: program, place: path.to_owned() }];
        needed.extend(self.listed(&run(&mut list)?));
        Ok(needed)
    }

    /// The files that the loader lists, one a line: `NAME => FILE (ADDRESS)`, the loader itself by its name in the
    /// program. Libraries go to the folder that every loader looks in.
    fn listed(&self, text: &str) -> Vec<Needed> {
        let file = |line: &str| {
            let (name, rest) = line.trim().split_once(" => ")?;
            let source = PathBuf::from(rest.rsplit_once(" (")?.0);
            let place = if name.starts_with('/') {
                name.trim_start_matches('/').to_owned()
            } else {
                format!("lib/{name}")
            };
            // What has no file, such as the kernel's own, is in every guest.
            source.starts_with(&self.folder).then_some(Needed { source, place })
        };
        text.lines().filter_map(file).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_go_where_the_loader_looks_and_the_loader_where_the_program_names_it() {
        let root =
            Root { folder: "/c/root".into(), libraries: "/c/root/l".into(), loader: "/c/root/l/ld-x".into() };
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
