//! Allocation of I/O addresses from the ranges that a container allows.
//!
//! Plain data without system calls. A region gets one contiguous range if there is room, at the lowest address with the
//! same offset in the IOMMU's large pages as the memory has in its own, so that they can be used. Otherwise it is split
//! into as few ranges as possible. A range never crosses from one allowed range into another, even an adjacent one,
//! because the kernel refuses such mappings.

use std::collections::BTreeMap;

/// No lower address is allocated: addresses near zero are typical of uninitialised pointers in a device.
const FLOOR: u64 = 1 << 20;

/// A range of I/O addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IovaRange {
    pub(crate) iova: u64,
    pub(crate) bytes: u64,
}

/// Free I/O addresses.
#[derive(Clone, Debug)]
pub(crate) struct IovaAllocator {
    /// First and last byte of each allowed range, ascending.
    allowed: Vec<(u64, u64)>,
    /// First to last byte of each free range; ranges within one allowed range never touch.
    free: BTreeMap<u64, u64>,
    /// The allocation unit: a power of two.
    page: u64,
}

impl IovaAllocator {
    /// The allowed ranges (first and last byte), cut to whole pages of `page` bytes.
    pub(crate) fn new(allowed: &[(u64, u64)], page: u64) -> Self {
        let mut allowed: Vec<_> = allowed.iter().filter_map(|&range| whole_pages(range, page)).collect();
        allowed.sort_unstable();
        // Overlapping ranges would be allocated twice. No kernel reports any; the second is ignored.
        let mut end = None;
        allowed.retain(|&(first, last)| {
            let disjoint = end.is_none_or(|end| first > end);
            if disjoint {
                end = Some(last);
            }
            disjoint
        });
        let free = allowed.iter().copied().collect();
        Self { allowed, free, page }
    }

    /// Free bytes, saturating.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free
            .iter()
            .fold(0u64, |sum, (&first, &last)| sum.saturating_add((last - first).saturating_add(1)))
    }

    /// Allocates `bytes` bytes for the memory at `ua`: whole pages, not zero. `sizes` has a bit for every page size of
    /// the IOMMU. `None` when the free ranges together have no room.
    pub(crate) fn alloc(&mut self, ua: u64, bytes: u64, sizes: u64) -> Option<Vec<IovaRange>> {
        if bytes == 0 || bytes & (self.page - 1) != 0 {
            return None;
        }
        // From the largest IOMMU page that fits into the region down to the allocation unit.
        let useful = (0..64)
            .rev()
            .map(|shift| 1u64 << shift)
            .filter(|&size| (size & sizes != 0 && size <= bytes && size > self.page) || size == self.page);
        for size in useful {
            if let Some(iova) = self.find_aligned(ua, bytes, size) {
                self.remove_free(iova, bytes);
                return Some(vec![IovaRange { iova, bytes }]);
            }
        }
        self.alloc_split(bytes)
    }

    /// The lowest free address with room for `bytes` that has the offset of `ua` in pages of `size` bytes.
    fn find_aligned(&self, ua: u64, bytes: u64, size: u64) -> Option<u64> {
        let offset = ua & (size - 1) & !(self.page - 1);
        self.free.iter().find_map(|(&first, &last)| {
            let base = first & !(size - 1);
            let mut iova = base.checked_add(offset)?;
            if iova < first {
                iova = iova.checked_add(size)?;
            }
            (iova <= last && last - iova >= bytes - 1).then_some(iova)
        })
    }

    fn alloc_split(&mut self, bytes: u64) -> Option<Vec<IovaRange>> {
        if self.free_bytes() < bytes {
            return None;
        }
        let mut spans: Vec<_> = self.free.iter().map(|(&first, &last)| (last - first, first)).collect();
        spans.sort_unstable_by(|a, b| b.cmp(a));
        let (mut pieces, mut left) = (Vec::new(), bytes);
        for (length, first) in spans {
            if left == 0 {
                break;
            }
            let piece = IovaRange { iova: first, bytes: left.min(length.saturating_add(1)) };
            left -= piece.bytes;
            pieces.push(piece);
        }
        for piece in &pieces {
            self.remove_free(piece.iova, piece.bytes);
        }
        Some(pieces)
    }

    /// Removes a part of one free range.
    fn remove_free(&mut self, iova: u64, bytes: u64) {
        let Some((&first, &last)) = self.free.range(..=iova).next_back() else { return };
        let end = iova + (bytes - 1);
        self.free.remove(&first);
        if first < iova {
            self.free.insert(first, iova - 1);
        }
        if end < last {
            self.free.insert(end + 1, last);
        }
    }

    /// Frees a range that [`alloc`](Self::alloc) returned.
    pub(crate) fn free(&mut self, piece: IovaRange) {
        let IovaRange { iova, bytes } = piece;
        let mut last = iova + (bytes - 1);
        let mut first = iova;
        let range = self.allowed.iter().find(|range| range.0 <= iova && iova <= range.1);
        // Addresses that are not allowed any more, because a device with a narrower range was added, are not reused.
        let Some(&(lowest, highest)) = range else { return };
        if last > highest {
            last = highest;
        }
        if let Some((&before, &its_last)) = self.free.range(..first).next_back() {
            if before >= lowest && its_last.checked_add(1) == Some(first) {
                first = before;
            }
        }
        if let Some(after) = last.checked_add(1).filter(|&after| after <= highest) {
            if let Some(its_last) = self.free.remove(&after) {
                last = its_last;
            }
        }
        self.free.insert(first, last);
    }

    /// Replaces the allowed ranges and drops free addresses outside of them.
    pub(crate) fn restrict(&mut self, allowed: &[(u64, u64)]) {
        let new = Self::new(allowed, self.page);
        let mut free = BTreeMap::new();
        for (&first, &last) in &self.free {
            for &(low, high) in &new.allowed {
                let (first, last) = (first.max(low), last.min(high));
                if first <= last {
                    free.insert(first, last);
                }
            }
        }
        self.allowed = new.allowed;
        self.free = free;
    }
}

/// The whole pages of a range, above the floor.
fn whole_pages((first, last): (u64, u64), page: u64) -> Option<(u64, u64)> {
    let first = first.max(FLOOR).checked_add(page - 1)? & !(page - 1);
    // The end is exclusive here; a range up to the top of the address space is whole already.
    let last = match last.checked_add(1) {
        Some(end) => (end & !(page - 1)).checked_sub(1)?,
        None => last,
    };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const M2: u64 = 2 << 20;
    const G1: u64 = 1 << 30;
    /// The page sizes and ranges of an emulated Intel IOMMU.
    const SIZES: u64 = 0x4020_1000;
    const INTEL: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];

    fn only(pieces: Option<Vec<IovaRange>>) -> IovaRange {
        let pieces = pieces.unwrap();
        assert_eq!(pieces.len(), 1, "{pieces:?}");
        pieces[0]
    }

    #[test]
    fn a_gibibyte_is_one_piece_that_lies_in_large_pages_as_its_memory_does() {
        let mut space = IovaAllocator::new(&INTEL, PAGE);
        let piece = only(space.alloc(0x7f12_3460_1000, G1, SIZES));
        assert_eq!((piece.iova & (G1 - 1), piece.bytes), (0x7f12_3460_1000 & (G1 - 1), G1));
        let piece = only(space.alloc(0x7f12_3460_0000, 4 * M2, SIZES));
        assert_eq!(piece.iova & (M2 - 1), 0);
        let piece = only(space.alloc(0x7f12_3460_3000, PAGE, SIZES));
        assert!(piece.iova >= FLOOR);
    }

    #[test]
    fn what_is_given_back_is_whole_again() {
        let mut space = IovaAllocator::new(&INTEL, PAGE);
        let all = space.free_bytes();
        let pieces: Vec<_> = (0..100u64).map(|i| only(space.alloc(i << 21, (i + 1) * PAGE, SIZES))).collect();
        for step in [3, 2, 1] {
            for (index, piece) in pieces.iter().enumerate() {
                if (index + 1) % 3 == step % 3 {
                    space.free(*piece);
                }
            }
        }
        assert_eq!(space.free_bytes(), all);
        assert_eq!(space.free.len(), 2);
    }

    #[test]
    fn a_region_larger_than_every_range_is_split_into_few_pieces() {
        let mut space = IovaAllocator::new(&[(0x10_0000, 0x1f_ffff), (0x40_0000, 0x5f_ffff)], PAGE);
        let pieces = space.alloc(0x7000_0000, 0x28_0000, SIZES).unwrap();
        assert_eq!(
            pieces,
            [IovaRange { iova: 0x40_0000, bytes: 0x20_0000 }, IovaRange { iova: 0x10_0000, bytes: 0x8_0000 }]
        );
        assert_eq!(space.alloc(0x7000_0000, 0x8_1000, SIZES), None);
        assert_eq!(space.free_bytes(), 0x8_0000);
        only(space.alloc(0x7000_0000, 0x8_0000, SIZES));
        assert_eq!(space.free_bytes(), 0);
    }

    #[test]
    fn pieces_never_cross_the_border_of_ranges_that_touch() {
        let mut space = IovaAllocator::new(&[(0x10_0000, 0x10_1fff), (0x10_2000, 0x10_3fff)], PAGE);
        let pieces = space.alloc(0, 4 * PAGE, PAGE).unwrap();
        assert_eq!(pieces.len(), 2);
        for piece in &pieces {
            space.free(*piece);
        }
        assert_eq!(space.free.len(), 2);
        assert_eq!(space.alloc(0, 3 * PAGE, PAGE).unwrap().len(), 2);
    }

    #[test]
    fn ranges_are_cut_to_whole_pages_above_the_floor_and_odd_ones_left_out() {
        let space = IovaAllocator::new(
            &[
                (0, 0xfff),
                (0x10_0800, 0x10_2fff),
                (u64::MAX - 0x1fff, u64::MAX),
                (0x10_2000, 0x10_4fff),
                (9, 3),
            ],
            PAGE,
        );
        assert_eq!(space.allowed, [(0x10_1000, 0x10_2fff), (u64::MAX - 0x1fff, u64::MAX)]);
        assert_eq!(IovaAllocator::new(&[(0, u64::MAX)], PAGE).free_bytes(), u64::MAX - FLOOR + 1);
    }

    #[test]
    fn bad_sizes_take_nothing() {
        let mut space = IovaAllocator::new(&INTEL, PAGE);
        let all = space.free_bytes();
        for bytes in [0, 1, PAGE + 1, u64::MAX, u64::MAX - PAGE + 1] {
            assert_eq!(space.alloc(0, bytes, SIZES), None, "{bytes:#x}");
        }
        assert_eq!(space.free_bytes(), all);
    }

    #[test]
    fn a_smaller_world_keeps_only_what_it_allows() {
        let mut space = IovaAllocator::new(&INTEL, PAGE);
        let piece = only(space.alloc(0, M2, SIZES));
        space.restrict(&[(0x4000_0000, 0x7fff_ffff)]);
        assert_eq!(space.free_bytes(), 0x4000_0000);
        space.free(piece);
        assert_eq!(space.free_bytes(), 0x4000_0000);
        assert_eq!(only(space.alloc(0, PAGE, SIZES)).iova, 0x4000_0000);
    }
}
