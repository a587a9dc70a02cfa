//! `/proc/self/pagemap`: the page frame of each page of this process.
//!
//! Read in bulk into one reused buffer and reported as runs. A page has a visible frame, is present with a hidden frame
//! (the file was opened without CAP_SYS_ADMIN), or is absent. The kernel checks the privilege when the file is opened,
//! so an open [`Pagemap`] keeps working after privileges are dropped.

use std::fs::File;

use prereg::{Errno, Granule, HostAddr, PageShift, UserAddr, UserRange};

use crate::sys;

/// The page map of this process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    granule: Granule,
}

/// Backing of a run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PageBacking {
    /// Contiguous page frames, by the address of the first.
    Frames(HostAddr),
    /// The pages are present, but their frames are hidden from this process.
    Hidden,
    /// The pages are absent: never touched, swapped out, dropped or unmapped.
    Absent,
}

/// Contiguous pages with contiguous backing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageRun {
    /// The first page.
    pub(crate) ua: UserAddr,
    /// Length in system pages.
    pub(crate) pages: u64,
    /// Their backing.
    pub(crate) backing: PageBacking,
}

/// The page map could not be read.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PagemapError {
    /// The file could not be opened.
    #[error(
        "cannot open /proc/self/pagemap ({errno}); after a change of user call prctl(PR_SET_DUMPABLE, 1), and check \
         that /proc is mounted"
    )]
    Open {
        /// The system's errno.
        errno: Errno,
    },
    /// A read failed.
    #[error("reading /proc/self/pagemap at {ua} failed with {errno}")]
    Read {
        /// The first page of the read.
        ua: UserAddr,
        /// The system's errno.
        errno: Errno,
    },
    /// The file ended early.
    #[error("/proc/self/pagemap ends before {ua}; the range is not in this process's address space")]
    Short {
        /// The first page without an entry.
        ua: UserAddr,
    },
    /// The system page size is not supported.
    #[error("a system page of {bytes} bytes is not supported (4 KiB to 16 MiB, a power of two)")]
    PageSize {
        /// The size.
        bytes: u64,
    },
}

prereg::debug_as_display!(PagemapError);

impl PagemapError {
    /// The system's errno; EFAULT for a range outside the address space.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Open { errno } | Self::Read { errno, .. } => *errno,
            Self::Short { .. } => Errno::EFAULT,
            Self::PageSize { .. } => Errno::EOPNOTSUPP,
        }
    }
}

/// The system page as a granule.
///
/// # Errors
/// [`PagemapError::PageSize`].
pub(crate) fn system_granule() -> Result<Granule, PagemapError> {
    let bytes = sys::page_size();
    let shift = bytes.is_power_of_two().then(|| bytes.trailing_zeros());
    shift.and_then(PageShift::new).and_then(Granule::new).ok_or(PagemapError::PageSize { bytes })
}

/// Bit 63 of an entry: the page is present.
const PRESENT: u64 = 1 << 63;
/// Bits 0 to 54: the frame, when present.
const FRAME: u64 = (1 << 55) - 1;

/// Entries read by one call: 64 KiB, which stay in the second-level cache.
const CHUNK: usize = 8192;
/// Up to this many entries are read into a stack buffer.
const FEW: usize = 64;

impl Pagemap {
    /// Opens the page map of this process with its current privilege.
    ///
    /// # Errors
    /// [`PagemapError::Open`], [`PagemapError::PageSize`].
    pub fn open() -> Result<Self, PagemapError> {
        let granule = system_granule()?;
        let file = File::open("/proc/self/pagemap")
            .map_err(|error| PagemapError::Open { errno: sys::errno_of(&error) })?;
        Ok(Self { file, granule })
    }

    /// The system page.
    #[must_use]
    pub const fn granule(&self) -> Granule {
        self.granule
    }

    /// Whether page frames are visible, tested on a page that is present: this thread's stack.
    ///
    /// # Errors
    /// [`PagemapError`].
    pub(crate) fn shows_frames(&self) -> Result<bool, PagemapError> {
        let here = 0u8;
        let ua = UserAddr::new((&raw const here).addr() as u64).align_down(self.granule.shift());
        Ok(matches!(self.page(ua)?, PageBacking::Frames(_)))
    }

    /// The backing of the page that contains `ua`.
    ///
    /// # Errors
    /// [`PagemapError`].
    pub fn page(&self, ua: UserAddr) -> Result<PageBacking, PagemapError> {
        let mut entry = [0u64];
        self.read(ua, &mut entry)?;
        Ok(self.backing(entry[0]))
    }

    /// Calls `each` with every run of `range`, in order, until it fails. Runs are maximal.
    ///
    /// # Errors
    /// [`PagemapError`] as `E`, or the error that `each` returned.
    pub(crate) fn runs<E: From<PagemapError>>(
        &self,
        range: UserRange,
        mut each: impl FnMut(PageRun) -> Result<(), E>,
    ) -> Result<(), E> {
        let pages = range.pages(self.granule);
        let mut few = [0u64; FEW];
        let mut many;
        let buffer: &mut [u64] = if pages <= FEW as u64 {
            &mut few
        } else {
            many = vec![0u64; CHUNK.min(usize::try_from(pages).unwrap_or(CHUNK))];
            &mut many
        };
        let shift = self.granule.shift().get();
        let mut done = 0;
        // The start of the open run and its key: the entry that would continue it.
        let mut open: Option<(u64, u64)> = None;
        let mut next_key = 0;
        let first = range.first().raw();
        let run = |from: u64, to: u64, key: u64| PageRun {
            ua: UserAddr::new(first + (from << shift)),
            pages: to - from,
            backing: self.backing(key),
        };
        while done < pages {
            let want = usize::try_from(pages - done).unwrap_or(CHUNK).min(buffer.len());
            let chunk = &mut buffer[..want];
            self.read(UserAddr::new(first + (done << shift)), chunk)?;
            for (i, &entry) in chunk.iter().enumerate() {
                let key = key_of(entry);
                if key == next_key && open.is_some() {
                    next_key = following(key);
                    continue;
                }
                let at = done + i as u64;
                if let Some((from, key)) = open {
                    each(run(from, at, key))?;
                }
                open = Some((at, key));
                next_key = following(key);
            }
            done += want as u64;
        }
        if let Some((from, key)) = open {
            each(run(from, pages, key))?;
        }
        Ok(())
    }

    /// Reads every entry of `range` but looks only at the last of each chunk: the bare cost of the page map. Returns
    /// how many of those were present.
    pub(crate) fn entries(&self, range: UserRange) -> Result<u64, PagemapError> {
        let pages = range.pages(self.granule);
        let mut buffer = vec![0u64; CHUNK.min(usize::try_from(pages).unwrap_or(CHUNK))];
        let (mut done, mut present) = (0, 0);
        while done < pages {
            let want = usize::try_from(pages - done).unwrap_or(CHUNK).min(buffer.len());
            let ua = UserAddr::new(range.first().raw() + (done << self.granule.shift().get()));
            self.read(ua, &mut buffer[..want])?;
            present += buffer[want - 1] >> 63;
            done += want as u64;
        }
        Ok(present)
    }

    fn backing(&self, entry: u64) -> PageBacking {
        match key_of(entry) {
            0 => PageBacking::Absent,
            PRESENT => PageBacking::Hidden,
            key => PageBacking::Frames(HostAddr::new((key & FRAME) << self.granule.shift().get())),
        }
    }

    /// Fills `entries` from the page of `ua` on.
    fn read(&self, ua: UserAddr, entries: &mut [u64]) -> Result<(), PagemapError> {
        let index = ua.raw() >> self.granule.shift().get();
        let mut filled = 0;
        while filled < entries.len() {
            let offset = (index + filled as u64) * size_of::<u64>() as u64;
            let here = || UserAddr::new((index + filled as u64) << self.granule.shift().get());
            match sys::read_words(&self.file, &mut entries[filled..], offset) {
                Ok(0) => return Err(PagemapError::Short { ua: here() }),
                Ok(words) => filled += words,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(PagemapError::Read { ua: here(), errno }),
            }
        }
        Ok(())
    }
}

/// The bits of an entry that matter: zero when absent, only `PRESENT` when the frame is hidden. (On machines with a
/// page map, frame zero belongs to the firmware.)
const fn key_of(entry: u64) -> u64 {
    if entry & PRESENT == 0 { 0 } else { entry & (PRESENT | FRAME) }
}

/// The key of the next page of a run.
const fn following(key: u64) -> u64 {
    if key & FRAME == 0 { key } else { key + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;

    fn range_of(memory: &GuestMemory) -> UserRange {
        UserRange::new(memory.ua(), memory.bytes(), system_granule().unwrap()).unwrap()
    }

    #[test]
    fn untouched_memory_is_absent_and_touched_pages_split_the_run() {
        let page = sys::page_size();
        let memory = GuestMemory::memfd("absent", 64 * page).unwrap();
        let map = Pagemap::open().unwrap();
        let mut runs = Vec::new();
        map.runs(range_of(&memory), |run| {
            runs.push((run.pages, run.backing));
            Ok::<(), PagemapError>(())
        })
        .unwrap();
        assert_eq!(runs, [(64, PageBacking::Absent)]);
        memory.write(5 * page, &[1]).unwrap();
        runs.clear();
        map.runs(range_of(&memory), |run| {
            runs.push((run.pages, run.backing));
            Ok::<(), PagemapError>(())
        })
        .unwrap();
        assert_eq!(runs.iter().map(|run| run.0).collect::<Vec<_>>(), [5, 1, 58]);
        assert_ne!(runs[1].1, PageBacking::Absent);
    }

    #[test]
    fn runs_of_many_chunks_agree_with_single_reads() {
        let page = sys::page_size();
        let pages = CHUNK as u64 * 2 + 77;
        let memory = GuestMemory::memfd("runs", pages * page).unwrap();
        for at in (0..pages).step_by(3) {
            memory.write(at * page, &[1]).unwrap();
        }
        let map = Pagemap::open().unwrap();
        let mut total = 0;
        map.runs(range_of(&memory), |run| {
            for index in [0, run.pages - 1] {
                let ua = run.ua.checked_add(index * page).unwrap();
                let expected = match run.backing {
                    PageBacking::Frames(host) => PageBacking::Frames(host.checked_add(index * page).unwrap()),
                    other => other,
                };
                assert_eq!(map.page(ua).unwrap(), expected);
            }
            total += run.pages;
            Ok::<(), PagemapError>(())
        })
        .unwrap();
        assert_eq!(total, pages);
    }

    #[test]
    fn the_end_of_the_address_space_is_an_error_and_not_a_panic() {
        let map = Pagemap::open().unwrap();
        let top = UserAddr::new(u64::MAX).align_down(map.granule().shift());
        assert!(map.page(top).is_err());
    }

    #[test]
    fn the_callers_error_stops_the_walk() {
        let memory = GuestMemory::anonymous(sys::page_size()).unwrap();
        let map = Pagemap::open().unwrap();
        let stop = PagemapError::Short { ua: UserAddr::new(7) };
        assert_eq!(map.runs(range_of(&memory), |_| Err(stop)), Err(stop));
    }
}
