//! Detection of pinned pages that no longer belong to their file.
//!
//! Other owners of a file may remove pages from it while they are pinned (`FALLOC_FL_PUNCH_HOLE`, `MADV_REMOVE`,
//! `ftruncate`), for example when a guest balloons memory away. The pin then holds pages that belong to no file. When
//! that range of the file is used again it gets new pages, and a device that uses the old addresses writes to the wrong
//! ones. No error or event reports this, so it is checked before pinned memory of a file is used again.
//!
//! What is checked is the page table. Before the kernel removes a page from a file, it removes it from the page tables
//! of every process that maps it (`unmap_mapping_range` in `mm/memory.c`), and the entry returns only by an access
//! through that mapping. The registered mapping is accessed by nothing but the pin, which leaves every entry present:
//! copies use the other mapping of [`SharedMemory`], and fixed-buffer I/O uses the pinned pages without any mapping. So
//! a present entry has been present since the pin, and maps the pinned page. An absent entry proves nothing.
//!
//! Other sources do not work: whether the file has a page now (`mincore`, `SEEK_HOLE`, the block count) says nothing
//! about which page; the ctime changes with the first write to a page too, and never on hugetlbfs. (On tmpfs an
//! unchanged ctime makes the check unnecessary: no page was removed.)
//!
//! A false positive is possible, a false negative is not: the kernel removes entries of pages that it tries to swap
//! out, before it finds them pinned, and all entries of a transparent huge page of which a part is punched. Such memory
//! is registered again, at the cost of a second pin. An entry of a page under migration counts as present, because
//! migration of a pinned page fails.
//!
//! The page map shows this to unprivileged users too. A check is one `pread`, 0.6 µs for up to 64 pages; larger ranges
//! use PAGEMAP_SCAN (Linux 6.7), at 3 ns per page.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::Errno;

use super::error::SharedError;
use super::memory::SharedMemory;
use super::syscalls::{self, PageRegion};
use crate::sys;

/// Checks whether pinned pages still belong to their file. One instance per process is enough.
#[derive(Debug)]
pub struct PageResidency {
    pagemap: File,
    page: u64,
    /// Whether the kernel has PAGEMAP_SCAN, as far as is known.
    scans: AtomicBool,
}

/// Bits of a page-map entry: the page is present; the page is swapped out or, here, under migration.
const PRESENT: u64 = 1 << 63;
const MIGRATING: u64 = 1 << 62;

/// Up to this many pages are read entry by entry.
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

    /// The smallest range that covers every page of the `bytes` bytes from `offset` on that no longer belongs to the
    /// file, as offset from the start of `memory` and length. `None` when all do. For pinned memory only: a page that
    /// was never present counts as lost.
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
        // Relaxed: a stale value costs one more system call.
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
        // Whole pages, clipped to the memory.
        Ok(found.map(|(from, to)| {
            let from = from.max(base);
            (from - base, to.min(base + memory.bytes()) - from)
        }))
    }

    /// Reads single entries.
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

    /// Uses PAGEMAP_SCAN.
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
