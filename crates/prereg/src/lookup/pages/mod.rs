//! Host addresses of a region's pages: the list that a back end fills, and the table that readers use.
//!
//! A [`PageList`] is filled once, in order, by the back end. It becomes a [`PageTable`] that never changes: runs where
//! memory is contiguous (one run, or runs that meet at multiples of 2 MiB only, as huge pages do), 4-byte page numbers
//! where it is not, 8-byte words above 2^32 system pages (16 TiB with 4 KiB pages). The choice is made when the region is
//! published and is invisible outside.
//!
//! Dirty marks are a bitmap beside the 4-byte numbers, and bit 0 of the 8-byte words (as in the kernel:
//! docs/specification.md 1.9), so that no layout costs more than 8 bytes a page. Runs have one mark for every eight
//! pages, so that contiguous memory costs next to nothing: a device that writes one page of it dirties the neighbours.

use alloc::vec::Vec;
use core::fmt;

use crate::addr::{Granule, HostAddr, PageShift, UserAddr, UserRange};
use crate::lookup::index_entry::EntryPages;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table_memory::SharedTableMemory;
use crate::table_memory::owned::TableArray;

mod runs;

/// The reason why a back end's page could not be added.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageListError {
    /// No memory for the list.
    #[error("no memory for the page list")]
    OutOfMemory,
    /// More pages than the range has.
    #[error("more pages than {range} has")]
    TooMany {
        /// The range the list is for.
        range: UserRange,
    },
    /// Host memory that passes the end of the address space.
    #[error("{pages} pages at {host} pass the end of the host's address space")]
    Wraps {
        /// The first page.
        host: HostAddr,
        /// Contiguous pages pushed from there.
        pages: u64,
    },
}

crate::debug_as_display!(PageListError);

/// Contiguous pages: page `index` and the following ones up to the next run lie at `host` and on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    index: u64,
    host: u64,
}

/// The host addresses of the pages of a range while a back end names them, in order.
#[derive(Debug)]
pub struct PageList {
    range: UserRange,
    granule: Granule,
    filled: u64,
    /// The address that would continue the last run; `None` after the last page of the address space.
    next: Option<u64>,
    runs: Vec<Run>,
    /// One number for each page, once runs take more memory; then `runs` is empty.
    frames: Vec<u64>,
}

/// Receives the host addresses of pinned pages from a pin back end: one for each page of the range, in order.
///
/// The list behind it belongs to the caller and is made for the range of the call: a sink that is left empty, filled in
/// part, or exchanged for another one makes the registration fail, never the list shorter than its range.
#[derive(Debug)]
pub struct PageSink<'a> {
    list: &'a mut PageList,
}

impl PageSink<'_> {
    /// The range to be filled.
    #[must_use]
    pub const fn range(&self) -> UserRange {
        self.list.range
    }

    /// Pages pushed so far.
    #[must_use]
    pub const fn filled(&self) -> u64 {
        self.list.filled
    }

    /// Adds `pages` contiguous pages, the first at `host`. Bits of `host` below the system page are dropped.
    ///
    /// # Errors
    /// [`PageListError::TooMany`] past the end of the range, [`PageListError::Wraps`], [`PageListError::OutOfMemory`].
    #[inline]
    pub fn push(&mut self, host: HostAddr, pages: u64) -> Result<(), PageListError> {
        self.list.push(host, pages)
    }
}

/// A list that is being filled keeps runs as long as they take less memory than page numbers.
const PAGES_PER_RUN: u64 = 16;
/// A dirty mark of a run stands for `2^RUN_UNIT` pages.
const RUN_UNIT: u32 = 3;

impl PageList {
    /// An empty list for `range`.
    #[must_use]
    pub const fn new(range: UserRange, granule: Granule) -> Self {
        Self { range, granule, filled: 0, next: None, runs: Vec::new(), frames: Vec::new() }
    }

    /// The sink for a back end. An address space makes its own list; this is for calling a back end without one.
    #[must_use]
    pub const fn sink(&mut self) -> PageSink<'_> {
        PageSink { list: self }
    }

    /// Pages pushed so far.
    #[must_use]
    pub const fn filled(&self) -> u64 {
        self.filled
    }

    #[inline]
    fn push(&mut self, host: HostAddr, pages: u64) -> Result<(), PageListError> {
        let host = host.align_down(self.granule.shift()).raw();
        let total = self.range.pages(self.granule);
        if pages > total - self.filled {
            return Err(PageListError::TooMany { range: self.range });
        }
        if pages == 0 {
            return Ok(());
        }
        if host.checked_add((pages << self.granule.shift().get()) - 1).is_none() {
            return Err(PageListError::Wraps { host: HostAddr::new(host), pages });
        }
        if !self.frames.is_empty() {
            self.push_frames(host, pages);
        } else if self.next != Some(host) {
            if self.runs.len() as u64 >= 64 && self.runs.len() as u64 >= total / PAGES_PER_RUN {
                self.spread()?;
                self.push_frames(host, pages);
            } else {
                self.runs.try_reserve(1).map_err(|_| PageListError::OutOfMemory)?;
                self.runs.push(Run { index: self.filled, host });
            }
        }
        self.filled += pages;
        self.next = host.checked_add(pages << self.granule.shift().get());
        Ok(())
    }

    /// Appends to `frames`, whose capacity [`spread`](Self::spread) reserved for the whole range.
    fn push_frames(&mut self, host: u64, pages: u64) {
        let shift = self.granule.shift().get();
        self.frames.extend((0..pages).map(|page| (host >> shift).wrapping_add(page)));
    }

    /// Turns the runs into one number for each page.
    fn spread(&mut self) -> Result<(), PageListError> {
        let shift = self.granule.shift().get();
        let total =
            usize::try_from(self.range.pages(self.granule)).map_err(|_| PageListError::OutOfMemory)?;
        self.frames.try_reserve_exact(total).map_err(|_| PageListError::OutOfMemory)?;
        let runs = core::mem::take(&mut self.runs);
        for (i, run) in runs.iter().enumerate() {
            let end = runs.get(i + 1).map_or(self.filled, |next| next.index);
            self.frames.extend((0..end - run.index).map(|page| (run.host >> shift).wrapping_add(page)));
        }
        Ok(())
    }

    /// The largest page that can be mapped anywhere in the range: every aligned block of that size lies inside, is
    /// contiguous and is aligned on the host (docs/contract.md clause 9).
    ///
    /// Every run must start and end on such a block, so the result is the lowest set bit of all starts, ends and
    /// addresses. It is computed per run, so the order of large and small pages does not matter (docs/specification.md
    /// 1.6, B2).
    fn largest_page(&self) -> PageShift {
        let shift = self.granule.shift().get();
        let base = self.range.first().raw();
        let mut bits = base | self.range.bytes();
        if self.frames.is_empty() {
            for run in &self.runs {
                bits |= (run.index << shift) | run.host;
            }
        } else {
            let mut expected = None;
            for (index, &frame) in self.frames.iter().enumerate() {
                if expected != Some(frame) {
                    bits |= ((index as u64) | frame) << shift;
                }
                expected = Some(frame.wrapping_add(1));
            }
        }
        PageShift::new(bits.trailing_zeros().min(63)).unwrap_or(self.granule.shift())
    }

    /// Whether runs meet at multiples of 2 MiB of user memory only.
    fn runs_are_huge(&self) -> bool {
        let start = |run: &Run| self.range.first().raw() + (run.index << self.granule.shift().get());
        self.runs.iter().skip(1).all(|run| start(run) & PageShift::M2.mask() == 0)
    }

    /// Turns the list into a table in `memory`. `None` when the back end named fewer pages than the range has.
    pub(crate) fn finish(mut self, memory: &SharedTableMemory) -> Result<Option<PageTable>, PageListError> {
        if self.filled != self.range.pages(self.granule) {
            return Ok(None);
        }
        let largest = self.largest_page();
        if self.frames.is_empty() && !self.runs_are_huge() {
            self.spread()?;
        }
        let granule = self.granule.shift();
        let first = self.range.first();
        let (runs, frames) = (self.runs.into_iter(), self.frames.iter());
        let layout = if frames.len() == 0 {
            let marks = Bitmap::new(memory, self.filled, RUN_UNIT);
            TableArray::from_iter(memory, runs.len(), runs)
                .and_then(|runs| marks.map(|dirty| Layout::Runs { runs, dirty }))
        } else if frames.clone().all(|&frame| u32::try_from(frame).is_ok()) {
            // Just proved: every number fits.
            let narrow = frames.map(|&frame| frame as u32);
            TableArray::from_iter(memory, narrow.len(), narrow).and_then(|frames| {
                Bitmap::new(memory, self.filled, 0).map(|dirty| Layout::Narrow { frames, dirty })
            })
        } else {
            let wide = frames.map(|&frame| AtomicU64::new(frame << granule.get()));
            TableArray::from_iter(memory, wide.len(), wide).map(|words| Layout::Wide { words })
        };
        let layout = layout.ok_or(PageListError::OutOfMemory)?;
        Ok(Some(PageTable { first, granule, largest, layout }))
    }
}

/// The host addresses of a published region's pages. Does not change, except for the dirty marks.
pub(crate) struct PageTable {
    first: UserAddr,
    granule: PageShift,
    largest: PageShift,
    layout: Layout,
}

enum Layout {
    /// Sorted by index, the first at index 0, never empty.
    Runs { runs: TableArray<Run>, dirty: Bitmap },
    /// Host page numbers.
    Narrow { frames: TableArray<u32>, dirty: Bitmap },
    /// Host addresses with the dirty mark in bit 0.
    Wide { words: TableArray<AtomicU64> },
    /// Device memory: one run that is neither pinned nor marked.
    Device { host: u64 },
}

impl PageTable {
    /// Device memory at `host`. Unlike the kernel's, its largest page takes the user address into account
    /// (docs/specification.md 1.4, B13).
    pub(crate) fn device(range: UserRange, host: HostAddr, granule: Granule) -> Self {
        let bits = range.first().raw() | range.bytes() | host.raw();
        Self {
            first: range.first(),
            granule: granule.shift(),
            largest: PageShift::new(bits.trailing_zeros().min(63)).unwrap_or(granule.shift()),
            layout: Layout::Device { host: host.raw() },
        }
    }

    /// The largest page of which every aligned block is contiguous and aligned.
    #[inline]
    pub(crate) const fn largest_page(&self) -> PageShift {
        self.largest
    }

    /// The system page.
    pub(crate) const fn granule(&self) -> PageShift {
        self.granule
    }

    /// Whether it holds runs, not one address for each page.
    pub(crate) const fn is_runs(&self) -> bool {
        matches!(self.layout, Layout::Runs { .. } | Layout::Device { .. })
    }

    /// The host address of the byte at `ua`, which must lie inside the region (the caller's lookup proved it).
    #[inline]
    pub(crate) fn host(&self, ua: UserAddr) -> HostAddr {
        let offset = ua.raw() - self.first.raw();
        let index = offset >> self.granule.get();
        let inside = offset & self.granule.mask();
        let page = match &self.layout {
            Layout::Narrow { frames, .. } => u64::from(frames[index as usize]) << self.granule.get(),
            Layout::Runs { runs, .. } => {
                let run = if runs.len() == 1 { &runs[0] } else { Self::run_of(runs, index) };
                run.host + ((index - run.index) << self.granule.get())
            }
            // Relaxed: the address bits never change; only the mark beside them does.
            Layout::Wide { words } => words[index as usize].load(Ordering::Relaxed) & !1,
            Layout::Device { host } => return HostAddr::new(host + offset),
        };
        HostAddr::new(page | inside)
    }

    fn run_of(runs: &[Run], index: u64) -> &Run {
        &runs[runs.partition_point(|run| run.index <= index) - 1]
    }

    /// The number of contiguous bytes from `ua` on, at most `bytes`, all inside the region.
    pub(crate) fn contiguous_within(&self, ua: UserAddr, bytes: u64) -> u64 {
        self.run_within(ua, bytes).1
    }

    /// The host address of the byte at `ua`, and the number of contiguous bytes from there on, at most `bytes`, which
    /// is at least 1; all inside the region.
    #[inline]
    pub(crate) fn run_within(&self, ua: UserAddr, bytes: u64) -> (HostAddr, u64) {
        let offset = ua.raw() - self.first.raw();
        let shift = self.granule.get();
        let (index, last) = (offset >> shift, (offset + (bytes - 1)) >> shift);
        let inside = offset & self.granule.mask();
        let (page, count) = match &self.layout {
            Layout::Narrow { frames, .. } => {
                let frames = &frames[index as usize..=last as usize];
                // Wider than a frame number, so the last one has no successor.
                let follows =
                    |&(at, &frame): &(usize, &u32)| u64::from(frame) == u64::from(frames[0]) + at as u64;
                let count = frames.iter().enumerate().take_while(follows).count();
                (u64::from(frames[0]) << shift, count as u64)
            }
            Layout::Runs { runs, .. } => {
                let next = if runs.len() == 1 { 1 } else { runs.partition_point(|run| run.index <= index) };
                let run = &runs[next - 1];
                let end = runs.get(next).map_or(last + 1, |run| run.index);
                (run.host + ((index - run.index) << shift), end - index)
            }
            Layout::Wide { words } => {
                // Relaxed: the address bits never change.
                let page = |word: &AtomicU64| word.load(Ordering::Relaxed) & !1;
                let words = &words[index as usize..=last as usize];
                let first = page(&words[0]);
                let follows = |&(at, word): &(usize, &AtomicU64)| {
                    first.checked_add((at as u64) << shift) == Some(page(word))
                };
                (first, words.iter().enumerate().take_while(follows).count() as u64)
            }
            Layout::Device { host } => return (HostAddr::new(host + offset), bytes),
        };
        (HostAddr::new(page | inside), ((count << shift) - inside).min(bytes))
    }

    /// The pages of an index entry of `2^shift` bytes at `ua`, all of it inside the region. `None` where an entry
    /// cannot express them: a break inside, an address too high, a device address that is no page.
    pub(crate) fn entry_pages(&self, ua: UserAddr, shift: u32) -> Option<EntryPages> {
        let offset = ua.raw() - self.first.raw();
        let index = offset >> self.granule.get();
        match &self.layout {
            Layout::Runs { runs, .. } => {
                let next = runs.partition_point(|run| run.index <= index);
                let end = index + (1 << shift >> self.granule.get());
                let whole = runs.get(next).is_none_or(|run| run.index >= end);
                whole.then(|| EntryPages::Run(self.host(ua).raw()))
            }
            Layout::Device { host } if host & self.granule.mask() == 0 => {
                Some(EntryPages::Run(host + offset))
            }
            Layout::Device { .. } => None,
            // One page is contiguous in every layout.
            _ if shift == self.granule.get() => Some(EntryPages::Run(self.host(ua).raw())),
            Layout::Narrow { frames, .. } => {
                Some(EntryPages::Narrow(frames[index as usize..].as_ptr().cast_mut()))
            }
            Layout::Wide { words } => Some(EntryPages::Wide(words[index as usize..].as_ptr().cast_mut())),
        }
    }

    /// The largest shift of index entries that the breaks of the region admit.
    pub(crate) fn entry_alignment(&self) -> u32 {
        match &self.layout {
            Layout::Runs { runs, .. } => {
                let starts =
                    runs.iter().skip(1).map(|run| self.first.raw() + (run.index << self.granule.get()));
                starts.map(u64::trailing_zeros).min().unwrap_or(63)
            }
            _ => 63,
        }
    }

    /// Marks the system page at `ua` as written by a device. Device memory has no marks (docs/specification.md scenario 51).
    pub(crate) fn mark_dirty(&self, ua: UserAddr) {
        let index = (ua.raw() - self.first.raw()) >> self.granule.get();
        match &self.layout {
            Layout::Runs { dirty, .. } | Layout::Narrow { dirty, .. } => dirty.set(index),
            // Relaxed: the mark is read when the region is released, after its percpu ref has ordered every user
            // before.
            Layout::Wide { words } => {
                words[index as usize].fetch_or(1, Ordering::Relaxed);
            }
            Layout::Device { .. } => {}
        }
    }

    /// The marks.
    pub(crate) fn dirty(&self) -> DirtyPages<'_> {
        DirtyPages { table: Some(self), next: 0 }
    }

    fn pages(&self) -> u64 {
        match &self.layout {
            Layout::Runs { dirty, .. } | Layout::Narrow { dirty, .. } => dirty.pages,
            Layout::Wide { words } => words.len() as u64,
            Layout::Device { .. } => 0,
        }
    }

    fn is_dirty(&self, index: u64) -> bool {
        match &self.layout {
            Layout::Runs { dirty, .. } | Layout::Narrow { dirty, .. } => dirty.get(index),
            // Relaxed: see `mark_dirty`.
            Layout::Wide { words } => words[index as usize].load(Ordering::Relaxed) & 1 != 0,
            Layout::Device { .. } => false,
        }
    }

    /// The memory of this table in bytes.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        let bytes = match &self.layout {
            Layout::Runs { runs, dirty } => size_of_val(&**runs) + size_of_val(&*dirty.words),
            Layout::Narrow { frames, dirty } => size_of_val(&**frames) + size_of_val(&*dirty.words),
            Layout::Wide { words } => size_of_val(&**words),
            Layout::Device { .. } => 0,
        };
        bytes as u64
    }
}

/// One bit for every `2^unit` pages.
struct Bitmap {
    pages: u64,
    unit: u32,
    words: TableArray<AtomicU64>,
}

impl Bitmap {
    /// `None` without memory.
    fn new(memory: &SharedTableMemory, pages: u64, unit: u32) -> Option<Self> {
        let count = usize::try_from(pages.div_ceil(64 << unit)).ok()?;
        Some(Self { pages, unit, words: TableArray::new(memory, count, || AtomicU64::new(0))? })
    }

    // Relaxed, both: marks are read when the region is released, after its percpu ref has ordered every user before.
    fn set(&self, index: u64) {
        let index = index >> self.unit;
        self.words[(index / 64) as usize].fetch_or(1 << (index % 64), Ordering::Relaxed);
    }

    fn get(&self, index: u64) -> bool {
        let index = index >> self.unit;
        self.words[(index / 64) as usize].load(Ordering::Relaxed) & (1 << (index % 64)) != 0
    }
}

/// The pages of a region that were marked dirty: indices of system pages from its start, ascending.
#[derive(Clone)]
pub struct DirtyPages<'a> {
    table: Option<&'a PageTable>,
    next: u64,
}

impl DirtyPages<'_> {
    /// No page.
    #[must_use]
    pub const fn none() -> Self {
        DirtyPages { table: None, next: 0 }
    }
}

impl Iterator for DirtyPages<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let table = self.table?;
        while self.next < table.pages() {
            let index = self.next;
            self.next += 1;
            if table.is_dirty(index) {
                return Some(index);
            }
        }
        None
    }
}

impl fmt::Debug for DirtyPages<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.clone()).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
