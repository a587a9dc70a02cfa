//! The cache folder of downloads and builds, outside of the checkout.
//!
//! A part that takes several steps is complete when its stamp is written; an interrupted one starts again.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;

/// The stamp of a complete part.
const STAMP: &str = ".complete";

/// A folder below `$XDG_CACHE_HOME/prereg`.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The folder `name` of this user's cache.
    ///
    /// # Errors
    /// [`Error::NoCache`] without a home, [`Error::File`] if the folder cannot be made.
    pub fn open(name: &str) -> Result<Self, Error> {
        let set = |key| std::env::var_os(key).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = set("XDG_CACHE_HOME").filter(|path| path.is_absolute());
        let base = base.or_else(|| Some(set("HOME")?.join(".cache"))).ok_or(Error::NoCache)?;
        let root = base.join("prereg").join(name);
        fs::create_dir_all(&root).map_err(Error::file(&root))?;
        Ok(Self { root })
    }

    /// Removes everything in it.
    pub fn clear(&self) -> Result<(), Error> {
        remove(&self.root)?;
        fs::create_dir_all(&self.root).map_err(Error::file(&self.root))
    }

    /// The folder `name`; made if it does not exist.
    pub fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let folder = self.root.join(name);
        fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        Ok(folder)
    }

    /// The folder `name`, filled by `fill` unless it is complete, and the text of its stamp.
    ///
    /// `fill` gets the empty folder and returns the text of the stamp.
    pub fn filled(
        &self,
        name: &str,
        fill: impl FnOnce(&Path) -> Result<String, Error>,
    ) -> Result<(PathBuf, String), Error> {
        let folder = self.root.join(name);
        let stamp = folder.join(STAMP);
        if let Ok(said) = fs::read_to_string(&stamp) {
            return Ok((folder, said));
        }
        remove(&folder)?;
        fs::create_dir_all(&folder).map_err(Error::file(&folder))?;
        let said = fill(&folder)?;
        fs::write(&stamp, &said).map_err(Error::file(&stamp))?;
        Ok((folder, said))
    }
}

fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file(folder)(error)),
        _ => Ok(()),
    }
}

/// Writes `text` to `path` unless the file has this text, so that build programs see no change.
pub fn write_changed(path: &Path, text: &[u8]) -> Result<(), Error> {
    if fs::read(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::write(path, text).map_err(Error::file(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_part_is_not_filled_again_and_an_interrupted_one_is_begun_anew() {
        let dir = tempfile::tempdir().expect("a folder");
        let cache = Cache { root: dir.path().to_owned() };
        let broken = cache.filled("part", |folder| {
            fs::write(folder.join("half"), "x").expect("a writable folder");
            Err(Error::NoMirror)
        });
        assert!(matches!(broken, Err(Error::NoMirror)));
        let (folder, said) = cache
            .filled("part", |folder| {
                assert!(!folder.join("half").exists(), "the remains of the interrupted one are gone");
                Ok("6.12".to_owned())
            })
            .expect("filled");
        assert_eq!((folder, said.as_str()), (dir.path().join("part"), "6.12"));
        let (_, again) = cache.filled("part", |_| Err(Error::NoMirror)).expect("not filled again");
        assert_eq!(again, "6.12");
        cache.clear().expect("cleared");
        assert!(cache.filled("part", |_| Err(Error::NoMirror)).is_err());
    }
}
