//! The word of a cell: a slot, and where the pages are.
//!
//! The region's slot is in the lower 16 bits. Above, with two bits to tell which: a host page number, for a cell that is
//! contiguous on the host, or a pointer to host addresses in the region's table. A pointer keeps its provenance: tag and slot
//! only change the address bits.
//!
//! Both are *for the first byte that the array of cells covers*: what lies at a byte is found with its offset in the array,
//! not in the cell. So a translation needs no mask, and one shift serves the number and the index. The number is of 4 KiB
//! pages whatever the system's are, so that a run needs to know nothing but the word.

#![expect(unsafe_code, reason = "a word may point into the page table of its region")]

use core::ptr;

use crate::addr::PageShift;
use crate::lookup::prefetch::prefetch;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The slot is below this bit.
pub(crate) const SLOT_BITS: u32 = 16;
/// What the rest is, above the slot; pointers are aligned to 4 bytes at least.
const TAG: usize = 3;
/// Where a page number begins.
const FRAME_SHIFT: u32 = SLOT_BITS + 2;
/// The page that a page number counts: no system page is smaller.
const UNIT: u32 = PageShift::K4.get();
/// A pointer to 4-byte host page numbers.
const NARROW: usize = 0;
/// A host page number, signed.
const RUN: usize = 1;
/// A pointer to 8-byte host addresses with a mark in bit 0.
const WIDE: usize = 2;

/// The slot of a cell's word; 0 when it is empty.
#[inline]
pub(crate) fn slot_of(word: *mut u32) -> usize {
    usize::from(word.addr() as u16)
}

/// The system page, as a translation needs it.
pub(crate) trait SystemPage {
    /// Its shift.
    fn shift(&self) -> u32;
    /// The bits of an address inside one.
    fn mask(&self) -> u64;
}

/// The host address of the byte `offset` bytes after the first one that the array of cells covers.
///
/// # Safety
/// The word is that of the cell over this byte, not empty, and a unit of its slot is held since the cell was loaded;
/// `system` is the system page.
#[inline]
pub(crate) unsafe fn host_of(word: *mut u32, offset: u64, system: &impl SystemPage) -> u64 {
    if word.addr() & (TAG << SLOT_BITS) == NARROW {
        let frames = word.map_addr(|bits| bits >> SLOT_BITS);
        let granule = system.shift();
        // SAFETY: the region's table has every page of the cell.
        let frame = unsafe { *frames.wrapping_add((offset >> granule) as usize) };
        (u64::from(frame) << granule) | (offset & system.mask())
    } else if word.addr() & (RUN << SLOT_BITS) != 0 {
        // The array begins on a page.
        let pages = (word.addr() as i64 >> (FRAME_SHIFT - UNIT)) as u64 & !PageShift::K4.mask();
        pages.wrapping_add(offset)
    } else {
        let words = word.map_addr(|bits| (bits >> SLOT_BITS) & !TAG).cast::<AtomicU64>();
        // SAFETY: as above; words are read as the atomics they are.
        let word = unsafe { &*words.wrapping_add((offset >> system.shift()) as usize) };
        // Relaxed: the address bits never change.
        (word.load(Ordering::Relaxed) & !1) | (offset & system.mask())
    }
}

/// Asks for the memory that [`host_of`] will read. The word may be any cell's, empty or not.
#[inline]
pub(crate) fn prefetch_page(word: *mut u32, offset: u64, system: &impl SystemPage) {
    if word.addr() & (RUN << SLOT_BITS) == 0 {
        let index = (offset >> system.shift()) as usize;
        // Of wide words it is the wrong line, and no harm: what is asked for is never looked at.
        let frames = word.map_addr(|bits| bits >> SLOT_BITS).wrapping_add(index);
        prefetch(frames);
    }
}

/// What a cell says of its pages, before it is known which cell it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pages {
    /// One run, from this host address on.
    Run(u64),
    /// These host page numbers, of 4 bytes each.
    Narrow(*mut u32),
    /// These host addresses, of 8 bytes each.
    Wide(*mut AtomicU64),
}

/// The word of a cell that begins `offset` bytes after the first byte of the array and belongs to `slot`. `None` for what a
/// word cannot say: a slot or an address too high.
pub(crate) fn word_of(pages: Pages, offset: u64, granule: u32, slot: u32) -> Option<*mut u32> {
    let slot = usize::from(u16::try_from(slot).ok()?);
    let index = (offset >> granule) as usize;
    let (payload, tag) = match pages {
        Pages::Run(host) => {
            let frame = ((host >> UNIT) as i64).wrapping_sub((offset >> UNIT) as i64);
            let word = frame << FRAME_SHIFT;
            let fits = word >> FRAME_SHIFT == frame;
            return fits.then(|| ptr::without_provenance_mut(word as usize | RUN << SLOT_BITS | slot));
        }
        Pages::Narrow(frames) => (frames.wrapping_sub(index), NARROW),
        Pages::Wide(words) => (words.wrapping_sub(index).cast(), WIDE),
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
        assert_eq!(slot_of(word_of(Pages::Run(0x1000), 0, K4, 65_535).unwrap()), 65_535);
        assert_eq!(word_of(Pages::Run(0x1000), 0, K4, 65_536), None, "no such slot in 16 bits");
        assert_eq!(word_of(Pages::Run(1 << 58), 0, K4, 1), None, "a page number past 45 bits");
        let high = ptr::without_provenance_mut(1 << 48);
        assert_eq!(word_of(Pages::Narrow(high), 0, K4, 1), None, "a pointer past 48 bits");
        // A table that lies lower than what its array covers would need a negative pointer.
        let low = ptr::without_provenance_mut(1 << 20);
        assert_eq!(word_of(Pages::Narrow(low), 1 << 40, K4, 1), None);
    }
}
