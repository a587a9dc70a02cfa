//! Whether the pages that were pinned still are the file's.
//!
//! A file's owner may take pages out of it (`FALLOC_FL_PUNCH_HOLE`, `MADV_REMOVE`, `ftruncate`) while they are pinned: memory
//! that a guest gives back goes that way. The pin then holds pages that belong to no file any more; when the same range of the
//! file is used again it gets new ones, and a device that goes on with the old addresses writes into nothing. Nobody tells us.
//! So whoever is about to use pinned memory of a file again asks here first.
//!
//! What tells them apart. Taking a page out of a file first takes it out of the page tables of everybody who maps it
//! (`unmap_mapping_range` in `mm/memory.c`), and an entry that is gone comes back in one way only: by a touch through that
//! mapping, of a processor or of the kernel on its behalf. The mapping that memory is registered by is touched by nothing but
//! the pin itself, which leaves every entry present: copies go through a mapping of their own ([`SharedMemory`] has two), and
//! fixed-buffer I/O goes to the pinned pages without any mapping. So an entry that is present was present all the time since
//! the pin, and shows the pinned page; one that is not, does not prove anything any more.
//!
//! What does not tell them apart: that the file has a page there now (`mincore`, `SEEK_HOLE`, the count of blocks) says nothing
//! about which one; the time of the last change moves with every first write to a page too, and on hugetlbfs not at all. (It
//! can spare the question, though, on tmpfs: where it has not moved, no page was taken out.)
//!
//! When it errs, it errs by "gone": the kernel takes entries of pages away that it would like to write to swap, before it finds
//! them pinned, and all entries of a transparent huge page of which a part is punched. Such memory is registered once more, at
//! the price of a second pin. An entry that says the page is being moved (compaction tries, and gives up) counts as present.
//!
//! The page map shows that to everybody, privileged or not. One question is one `pread`, 0.6 µs for up to 64 pages; for more,
//! PAGEMAP_SCAN (Linux 6.7) looks for gaps at 3 ns a page.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::Errno;

use super::error::SharedError;
use super::memory::SharedMemory;
use super::syscalls::{self, PageRegion};
use crate::sys;

/// Asks whether pinned pages still are the file's. One for a process is enough.
#[derive(Debug)]
pub struct PageResidency {
    pagemap: File,
    page: u64,
    /// The kernel has PAGEMAP_SCAN, as far as is known.
    scans: AtomicBool,
}

/// Bits of an entry of the page map: the page is there; the entry names a page elsewhere, here one that is being moved.
const PRESENT: u64 = 1 << 63;
const MIGRATING: u64 = 1 << 62;

/// Up to this many pages are looked at one by one.
const SINGLE_READS: usize = 64;

impl PageResidency {
    /// Opens the page map of this process.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn open() -> Result<Self, SharedError> {
        let opened = File::open("/proc/self/pagemap");
        let pagemap = opened.map_err(|error| SharedError::Os {
            during: "opening /proc/self/pagemap",
            errno: sys::errno_of(&error),
        })?;
        Ok(Self { pagemap, page: sys::page_size(), scans: AtomicBool::new(true) })
    }

    /// The shortest stretch, in bytes from the start of `memory`, that has every page of the `bytes` bytes from `offset` on
    /// that is not the file's any more: first byte and length. `None` when all are. Meant for memory that is pinned; what
    /// never was is not there either.
    ///
    /// # Errors
    /// [`SharedError::OutOfBounds`], [`SharedError::Os`].
    pub fn lost_range(
        &self,
        memory: &SharedMemory,
        offset: u64,
        bytes: u64,
    ) -> Result<Option<(u64, u64)>, SharedError> {
        let outside = SharedError::OutOfBounds { offset, len: bytes, bytes: memory.bytes() };
        let part = memory.part(offset, bytes).ok_or(outside)?;
        let mask = self.page - 1;
        let base = memory.ua().raw();
        let first = part.ua().raw() & !mask;
        let end = ((part.ua().raw() + (bytes - 1)) | mask) + 1;
        // Relaxed: at worst the kernel is asked once more.
        let found = if end - first <= SINGLE_READS as u64 * self.page || !self.scans.load(Ordering::Relaxed) {
            self.read(first, end)
        } else {
            match self.scan(first, end) {
                Err(Errno::ENOTTY | Errno::EINVAL) => {
                    // Relaxed, as above.
                    self.scans.store(false, Ordering::Relaxed);
                    self.read(first, end)
                }
                found => found,
            }
        };
        let found = found.map_err(SharedError::os("reading /proc/self/pagemap"))?;
        // Whole pages, but never before the start or past the end of the memory.
        Ok(found.map(|(from, to)| {
            let from = from.max(base);
            (from - base, to.min(base + memory.bytes()) - from)
        }))
    }

    /// By single entries.
    fn read(&self, first: u64, end: u64) -> Result<Option<(u64, u64)>, Errno> {
        let mut entries = [0u64; SINGLE_READS];
        let mut hull = None;
        let mut at = first;
        while at < end {
            let want = ((end - at) / self.page).min(SINGLE_READS as u64) as usize;
            let got = match sys::read_words(
                &self.pagemap,
                &mut entries[..want],
                at / self.page * size_of::<u64>() as u64,
            ) {
                Ok(0) => return Err(Errno::EFAULT),
                Ok(got) => got,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno),
            };
            for &entry in &entries[..got] {
                if entry & (PRESENT | MIGRATING) == 0 {
                    widen(&mut hull, at, at + self.page);
                }
                at += self.page;
            }
        }
        Ok(hull)
    }

    /// By asking for gaps.
    fn scan(&self, first: u64, end: u64) -> Result<Option<(u64, u64)>, Errno> {
        let mut found = [PageRegion::default(); 16];
        let mut hull = None;
        let mut at = first;
        while at < end {
            let (count, reached) = syscalls::absent_pages(&self.pagemap, at, end, &mut found)?;
            for region in &found[..count.min(found.len())] {
                widen(&mut hull, region.start, region.end);
            }
            if reached <= at {
                return Err(Errno::EINVAL);
            }
            at = reached;
        }
        Ok(hull)
    }
}

fn widen(hull: &mut Option<(u64, u64)>, from: u64, to: u64) {
    let (first, end) = hull.unwrap_or((from, to));
    *hull = Some((first.min(from), end.max(to)));
}
