//! Huge pages of 2 MiB on this machine: free ones are used, missing ones are reserved if that is allowed.

use std::fs;
use std::path::{Path, PathBuf};

use super::case::Failure;
use crate::error::Error;

/// The kernel's counters.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Reserved pages, which are released on drop.
#[derive(Debug)]
pub(crate) struct HugePages {
    pool: PathBuf,
    added: u64,
}

impl HugePages {
    /// Makes sure that `count` pages are free.
    ///
    /// # Errors
    /// [`Failure::Skipped`] if they are not and cannot be reserved.
    pub(crate) fn free(count: u64) -> Result<Self, Failure> {
        Self::free_in(Path::new(POOL), count)
    }

    fn free_in(pool: &Path, count: u64) -> Result<Self, Failure> {
        let mut pages = Self { pool: pool.to_owned(), added: 0 };
        let lacking =
            |why: String| Failure::Skipped(format!("{count} free huge pages of 2 MiB are needed: {why}"));
        let free = pages.available().map_err(|failure| lacking(failure.to_string()))?;
        let Some(missing) = count.checked_sub(free).filter(|missing| *missing > 0) else { return Ok(pages) };
        let all = pages.number("nr_hugepages")?;
        let file = pool.join("nr_hugepages");
        if let Err(error) = fs::write(&file, (all + missing).to_string()) {
            return Err(lacking(format!("{free} are free, and writing {} says {error}", file.display())));
        }
        // The kernel reserves as many as possible and reports no error.
        pages.added = pages.number("nr_hugepages")?.saturating_sub(all);
        let free = pages.available()?;
        if free < count {
            return Err(lacking(format!("the kernel finds memory for {free}")));
        }
        Ok(pages)
    }

    /// Pages that are neither used nor reserved by others.
    fn available(&self) -> Result<u64, Failure> {
        Ok(self.number("free_hugepages")?.saturating_sub(self.number("resv_hugepages")?))
    }

    fn number(&self, name: &str) -> Result<u64, Failure> {
        let path = self.pool.join(name);
        let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
        text.trim().parse().map_err(|error| Failure::check(format!("{}: {error}", path.display())))
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if self.added > 0 {
            // Changes that another program made meanwhile are kept.
            if let Ok(all) = self.number("nr_hugepages") {
                let _ = fs::write(self.pool.join("nr_hugepages"), all.saturating_sub(self.added).to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(all: &str, free: &str, promised: &str) -> tempfile::TempDir {
        let pool = tempfile::tempdir().expect("a folder");
        for (name, text) in [("nr_hugepages", all), ("free_hugepages", free), ("resv_hugepages", promised)] {
            fs::write(pool.path().join(name), text).expect("a writable folder");
        }
        pool
    }

    #[test]
    fn free_pages_are_used_as_they_are() {
        let pool = pool("9\n", "8\n", "2\n");
        drop(HugePages::free_in(pool.path(), 6).expect("six are free"));
        assert_eq!(fs::read_to_string(pool.path().join("nr_hugepages")).expect("readable"), "9\n");
    }

    #[test]
    fn pages_that_do_not_come_are_returned_and_the_case_is_skipped() {
        // Files, unlike the kernel, have no more free pages after a reservation.
        let pool = pool("9", "8", "2");
        let failure = HugePages::free_in(pool.path(), 7).expect_err("one is missing");
        assert!(matches!(failure, Failure::Skipped(_)), "{failure}");
        assert_eq!(fs::read_to_string(pool.path().join("nr_hugepages")).expect("readable"), "9");
        let none = tempfile::tempdir().expect("a folder");
        assert!(matches!(HugePages::free_in(none.path(), 1), Err(Failure::Skipped(_))), "no such pool");
    }
}
