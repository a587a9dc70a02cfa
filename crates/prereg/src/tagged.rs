//! The word of a cell: a slot, and where the pages are.
//!
//! The region's slot is in the upper 16 bits. Below, with two bits to tell which: the host page number at the cell's start,
//! for a cell that is contiguous on the host, or a pointer to the cell's pages in the region's table. A pointer keeps its
//! provenance: tags and slot only change the address bits.

#![expect(unsafe_code, reason = "a word may point into the page table of its region")]

use core::ptr;

use crate::sync::atomic::{AtomicU64, Ordering};

/// The slot is above this bit.
pub(crate) const SLOT_SHIFT: u32 = 48;
/// The part of a cell that is not the slot.
const PAYLOAD: usize = ((1u64 << SLOT_SHIFT) - 1) as usize;
/// What the payload is; pointers are aligned to 4 bytes at least.
const TAG: usize = 3;
/// A pointer to 4-byte host page numbers.
pub(crate) const NARROW: usize = 0;
/// The host page number of the cell's start, shifted by two.
pub(crate) const RUN: usize = 1;
/// A pointer to 8-byte host addresses with a mark in bit 0.
pub(crate) const WIDE: usize = 2;

/// The slot of a cell's word; 0 when it is empty.
#[inline]
pub(crate) fn slot_of(word: *mut u32) -> u32 {
    ((word.addr() as u64) >> SLOT_SHIFT) as u32
}

/// The host address of the byte `within` bytes after the start of the cell.
///
/// # Safety
/// The word is a cell's, not empty, and a unit of its slot is held since the cell was loaded; `within` is inside the cell,
/// and `granule` the shift of the system page.
#[inline]
pub(crate) unsafe fn host_of(word: *mut u32, within: u64, granule: u32) -> u64 {
    let payload = word.map_addr(|bits| bits & PAYLOAD & !TAG);
    match word.addr() & TAG {
        RUN => (((payload.addr() as u64) >> 2) << granule) + within,
        NARROW => {
            // SAFETY: the region's table has every page of the cell.
            let frame = unsafe { *payload.wrapping_add((within >> granule) as usize) };
            (u64::from(frame) << granule) | (within & ((1 << granule) - 1))
        }
        _ => {
            // SAFETY: as above; words are read as the atomics they are.
            let word = unsafe { &*payload.cast::<AtomicU64>().wrapping_add((within >> granule) as usize) };
            // Relaxed: the address bits never change.
            (word.load(Ordering::Relaxed) & !1) | (within & ((1 << granule) - 1))
        }
    }
}

/// A payload for a contiguous cell that starts at host address `host`.
pub(crate) fn run_payload(host: u64, granule: u32) -> Option<*mut u32> {
    let bits = ((host >> granule) << 2) | RUN as u64;
    (bits >> SLOT_SHIFT == 0).then(|| ptr::without_provenance_mut(bits as usize))
}

/// A payload that points to the pages of a cell.
pub(crate) fn table_payload(pages: *mut u32, tag: usize) -> Option<*mut u32> {
    (pages.addr() & !PAYLOAD == 0 && pages.addr() & TAG == 0).then(|| pages.map_addr(|bits| bits | tag))
}
