//! The guest-visible half of a TCE table: the values that a guest wrote and may read back (docs/specification.md 3.2).
//!
//! Values are stored as they are and map nothing. A page of 512 values is allocated by the first non-zero write into it; until
//! then it reads as zeros.

use core::convert::Infallible;
use core::sync::atomic::{AtomicU64, Ordering};

use prereg::OutOfMemory;

use crate::sparse::{Sparse, TableError};
use crate::tce::Tce;

const PAGE_BITS: u32 = 9;

type Page = [AtomicU64; 1 << PAGE_BITS];

/// The values of a table of up to 2^52 entries, at most 8 bytes an entry.
///
/// Every access is relaxed: a value is a number for the guest and publishes nothing. Of two concurrent writes of one entry, one
/// stays.
#[derive(Debug)]
pub(crate) struct GuestTable {
    pages: Sparse<Page, PAGE_BITS>,
}

impl GuestTable {
    /// A table of `entries` zeros.
    ///
    /// # Errors
    /// [`OutOfMemory`] for its root, which takes 8 KiB at most.
    pub(crate) fn new(entries: u64) -> Result<Self, OutOfMemory> {
        Ok(Self { pages: Sparse::new(entries)? })
    }

    /// The value of entry `index`; zero if never written or outside the table.
    #[must_use]
    #[inline]
    pub(crate) fn load(&self, index: u64) -> Tce {
        let page = self.pages.block(index);
        Tce::new(page.map_or(0, |page| page[offset(index)].load(Ordering::Relaxed)))
    }

    /// Writes `tce` into `count` entries from `first` on. Zeros visit only allocated pages.
    ///
    /// # Errors
    /// [`TableError::OutOfRange`] with nothing written; [`TableError::OutOfMemory`] with the entries before the missing page
    /// written.
    pub(crate) fn fill(&self, first: u64, count: u64, tce: Tce) -> Result<(), TableError> {
        self.pages.check(first, count)?;
        if tce == Tce::NONE {
            let Ok(()) = self.pages.visit(first, count, |_, part, page| {
                for cell in &page[part] {
                    cell.store(0, Ordering::Relaxed);
                }
                Ok::<(), Infallible>(())
            });
            return Ok(());
        }
        let mut index = first;
        while index < first + count {
            let page = self.page_or_make(index)?;
            let start = offset(index);
            let part =
                page.len().min(start + usize::try_from(first + count - index).unwrap_or(page.len())) - start;
            for cell in &page[start..start + part] {
                cell.store(tce.raw(), Ordering::Relaxed);
            }
            index += part as u64;
        }
        Ok(())
    }

    /// Allocates the pages of `count` entries from `first` on, so that writing them cannot fail.
    ///
    /// # Errors
    /// [`TableError`]. Pages allocated before a failure stay.
    pub(crate) fn prepare(&self, first: u64, count: u64) -> Result<(), TableError> {
        self.pages.check(first, count)?;
        let mut index = first;
        while index < first + count {
            self.page_or_make(index)?;
            index = ((index >> PAGE_BITS) + 1) << PAGE_BITS;
        }
        Ok(())
    }

    /// The location for `tce`, allocated so that writing it cannot fail.
    #[inline]
    pub(crate) fn value_slot(&self, index: u64, tce: Tce) -> Result<ValueSlot<'_>, TableError> {
        let page = match self.pages.block(index) {
            Some(page) => page,
            None if tce == Tce::NONE => return Ok(ValueSlot(None)),
            None => self.page_or_make(index)?,
        };
        Ok(ValueSlot(Some(&page[offset(index)])))
    }

    fn page_or_make(&self, index: u64) -> Result<&Page, TableError> {
        self.pages.block_or_make(index, || Ok([const { AtomicU64::new(0) }; 1 << PAGE_BITS]))
    }

    /// Bytes of memory this table takes now.
    #[must_use]
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.pages.memory_bytes(|page| size_of_val(page) as u64)
    }
}

/// The location of a value; `None` for a zero in a page that is not allocated.
pub(crate) struct ValueSlot<'a>(Option<&'a AtomicU64>);

impl ValueSlot<'_> {
    #[inline]
    pub(crate) fn write(self, tce: Tce) {
        if let Some(cell) = self.0 {
            cell.store(tce.raw(), Ordering::Relaxed);
        }
    }
}

#[inline]
const fn offset(index: u64) -> usize {
    Sparse::<Page, PAGE_BITS>::offset(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl GuestTable {
        fn store(&self, index: u64, tce: Tce) -> Result<(), TableError> {
            self.pages.check(index, 1)?;
            self.value_slot(index, tce)?.write(tce);
            Ok(())
        }
    }

    #[test]
    fn a_value_reads_back_as_it_was_written() {
        let table = GuestTable::new(1 << 40).unwrap();
        for (index, raw) in [(0, 1), (511, u64::MAX), (512, 0x2abf), ((1 << 40) - 1, 7)] {
            assert_eq!(table.load(index), Tce::NONE);
            table.store(index, Tce::new(raw)).unwrap();
            assert_eq!(table.load(index), Tce::new(raw));
            table.store(index, Tce::NONE).unwrap();
            assert_eq!(table.load(index), Tce::NONE);
        }
        assert_eq!(table.load(1 << 40), Tce::NONE);
        assert!(table.store(1 << 40, Tce::NONE).is_err());
    }

    #[test]
    fn scenario_126_127_zeros_make_nothing() {
        let table = GuestTable::new(1 << 28).unwrap();
        let before = table.memory_bytes();
        table.fill(0, 1 << 28, Tce::NONE).unwrap();
        table.store(5, Tce::NONE).unwrap();
        assert_eq!((table.load(5), table.memory_bytes()), (Tce::NONE, before));
        table.store(5, Tce::new(3)).unwrap();
        assert!(table.memory_bytes() > before);
    }

    #[test]
    fn a_fill_touches_its_range_and_nothing_else() {
        for (first, count) in [(0, 1), (511, 2), (100, 1000), (512, 512), (1, 2047)] {
            let table = GuestTable::new(2048).unwrap();
            table.fill(0, 2048, Tce::new(0x5000)).unwrap();
            table.fill(first, count, Tce::new(0x7000)).unwrap();
            for index in 0..2048 {
                let inside = index >= first && index < first + count;
                assert_eq!(
                    table.load(index).raw(),
                    if inside { 0x7000 } else { 0x5000 },
                    "{first} {count} {index}"
                );
            }
            table.fill(first, count, Tce::NONE).unwrap();
            assert_eq!((0..2048).filter(|&index| table.load(index) == Tce::NONE).count() as u64, count);
        }
    }

    #[test]
    fn a_fill_past_the_end_writes_nothing() {
        let table = GuestTable::new(1000).unwrap();
        let before = table.memory_bytes();
        for (first, count) in [(999, 2), (1000, 1), (0, 1001), (1, u64::MAX), (u64::MAX, 1)] {
            assert!(table.fill(first, count, Tce::new(0x5000)).is_err());
            assert!(table.prepare(first, count).is_err());
        }
        assert_eq!(table.memory_bytes(), before);
    }

    #[test]
    fn prepared_entries_need_no_more_memory() {
        let table = GuestTable::new(4096).unwrap();
        table.prepare(500, 600).unwrap();
        let prepared = table.memory_bytes();
        table.fill(500, 600, Tce::new(0x5000)).unwrap();
        assert_eq!(table.memory_bytes(), prepared);
    }
}
