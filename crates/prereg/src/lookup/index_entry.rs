//! The word of an index entry: a slot, and where the pages are.
//!
//! The region's slot is in the lower 16 bits. Above are two tag bits and either a host page number, for an entry that is
//! contiguous on the host, or a pointer to host addresses in the region's page table. A pointer keeps its provenance: tag
//! and slot change only its address bits.
//!
//! Both are *for the first byte that the index covers*: the address of a byte is found with its offset in the index, not in
//! the entry. So a translation needs no mask, and one shift serves both the page number and the array index. The number
//! counts 4 KiB pages whatever the system page is, so that a contiguous entry needs nothing but itself.

#![expect(unsafe_code, reason = "an entry may point into the page table of its region")]

use core::ptr;

use crate::addr::PageShift;
use crate::lookup::prefetch::prefetch;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The slot is below this bit.
pub(crate) const SLOT_BITS: u32 = 16;
/// The tag, above the slot; pointers are aligned to at least 4 bytes.
const TAG: usize = 3;
/// The lowest bit of a page number.
const FRAME_SHIFT: u32 = SLOT_BITS + 2;
/// The page that a page number counts: no system page is smaller.
const UNIT: u32 = PageShift::K4.get();
/// A pointer to 4-byte host page numbers.
const NARROW: usize = 0;
/// A host page number, signed.
const RUN: usize = 1;
/// A pointer to 8-byte host addresses with a mark in bit 0.
const WIDE: usize = 2;

/// The slot of an entry; 0 when it is empty.
#[inline]
pub(crate) fn slot_of(entry: *mut u32) -> usize {
    entry.addr() & ((1 << SLOT_BITS) - 1)
}

/// The host address of the byte `offset` bytes after the first one that the index covers.
///
/// # Safety
/// `entry` is the one over this byte, not empty, and a unit of its slot is held since it was loaded; `granule` is the
/// system page as a power of two.
#[inline(always)]
pub(crate) unsafe fn host_of(entry: *mut u32, offset: u64, granule: u32) -> u64 {
    if entry.addr() & (TAG << SLOT_BITS) == NARROW {
        let frames = entry.map_addr(|bits| bits >> SLOT_BITS);
        let index = offset >> granule;
        // SAFETY: the region's table has every page of the entry.
        let frame = unsafe { *frames.wrapping_add(index as usize) };
        // The bytes inside the page come with the offset, so that no mask is needed.
        (u64::from(frame).wrapping_sub(index) << granule).wrapping_add(offset)
    } else if entry.addr() & (RUN << SLOT_BITS) != 0 {
        // The index begins on a page.
        let pages = (entry.addr() as i64 >> (FRAME_SHIFT - UNIT)) as u64 & !PageShift::K4.mask();
        pages.wrapping_add(offset)
    } else {
        // Subtracted, not masked: that is a part of the load's address.
        let words = entry.map_addr(|bits| (bits >> SLOT_BITS) - WIDE).cast::<AtomicU64>();
        let index = offset >> granule;
        // SAFETY: as above; words are read as the atomics they are.
        let word = unsafe { &*words.wrapping_add(index as usize) };
        // Relaxed: the address bits never change.
        (word.load(Ordering::Relaxed) & !1).wrapping_sub(index << granule).wrapping_add(offset)
    }
}

/// Prefetches the memory that [`host_of`] will read. Any entry may be passed, empty or not.
#[inline]
pub(crate) fn prefetch_page(entry: *mut u32, offset: u64, granule: u32) {
    if entry.addr() & (RUN << SLOT_BITS) == 0 {
        let index = (offset >> granule) as usize;
        // For 8-byte words this is the wrong line, which does no harm: the line is only prefetched.
        let frames = entry.map_addr(|bits| bits >> SLOT_BITS).wrapping_add(index);
        prefetch(frames);
    }
}

/// The location of an entry's pages, before it is known which entry it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryPages {
    /// One run, from this host address on.
    Run(u64),
    /// These host page numbers, of 4 bytes each.
    Narrow(*mut u32),
    /// These host addresses, of 8 bytes each.
    Wide(*mut AtomicU64),
}

/// The entry that begins `offset` bytes after the first byte of the index and belongs to `slot`. `None` for a slot or
/// an address too high for an entry.
pub(crate) fn entry_of(pages: EntryPages, offset: u64, granule: u32, slot: u32) -> Option<*mut u32> {
    let slot = usize::from(u16::try_from(slot).ok()?);
    let index = (offset >> granule) as usize;
    let (payload, tag) = match pages {
        EntryPages::Run(host) => {
            let frame = ((host >> UNIT) as i64).wrapping_sub((offset >> UNIT) as i64);
            let entry = frame << FRAME_SHIFT;
            let fits = entry >> FRAME_SHIFT == frame;
            return fits.then(|| ptr::without_provenance_mut(entry as usize | RUN << SLOT_BITS | slot));
        }
        EntryPages::Narrow(frames) => (frames.wrapping_sub(index), NARROW),
        EntryPages::Wide(words) => (words.wrapping_sub(index).cast(), WIDE),
    };
    let fits = payload.addr() as u64 >> (64 - SLOT_BITS) == 0 && payload.addr() & TAG == 0;
    fits.then(|| payload.map_addr(|bits| (bits | tag) << SLOT_BITS | slot))
}

#[cfg(all(test, target_pointer_width = "64"))]
mod tests {
    use super::*;

    const K4: u32 = 12;

    #[test]
    fn what_a_word_cannot_say_is_refused() {
        assert_eq!(slot_of(entry_of(EntryPages::Run(0x1000), 0, K4, 65_535).unwrap()), 65_535);
        assert_eq!(entry_of(EntryPages::Run(0x1000), 0, K4, 65_536), None, "no such slot in 16 bits");
        assert_eq!(entry_of(EntryPages::Run(1 << 58), 0, K4, 1), None, "a page number past 45 bits");
        let high = ptr::without_provenance_mut(1 << 48);
        assert_eq!(entry_of(EntryPages::Narrow(high), 0, K4, 1), None, "a pointer past 48 bits");
        // A table that lies lower than what its array covers would need a negative pointer.
        let low = ptr::without_provenance_mut(1 << 20);
        assert_eq!(entry_of(EntryPages::Narrow(low), 1 << 40, K4, 1), None);
    }
}
