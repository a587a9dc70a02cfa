//! The segments of a mapping whose memory is provided block by block: each block at its first access, kept from then on.
//!
//! A block is a power of two bytes. Each has a slot that is filled once and never emptied while the mapping lives, so an access
//! to a provided block takes no lock. Slots are allocated in chunks, so a large mapping that is hardly used costs little.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use std::sync::OnceLock;

use prereg::PageShift;

use super::backing::MemoryProvider;
use super::error::IovaMapError;
use super::segments::MappedSegments;

/// Slots that are allocated together.
const CHUNK: u64 = 256;
/// Blocks of one mapping, at most.
const MAX_BLOCKS: u64 = 1 << 24;

type Chunk = Box<[OnceLock<MappedSegments>]>;

/// The blocks of one mapping.
pub(super) struct OnDemand {
    pub(super) provider: Arc<dyn MemoryProvider>,
    block: PageShift,
    /// The offset of the mapping in its first block.
    skip: u64,
    bytes: u64,
    blocks: u64,
    chunks: Box<[OnceLock<Chunk>]>,
}

/// The part of an access that lies in one block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BlockRange {
    pub(super) block: u64,
    /// The offset in the block, or in the mapping for the first block.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl OnDemand {
    pub(super) fn new(
        provider: Arc<dyn MemoryProvider>,
        block: PageShift,
        skip: u64,
        bytes: u64,
    ) -> Result<Self, IovaMapError> {
        let skip = skip & block.mask();
        let end = u128::from(skip) + u128::from(bytes);
        let blocks = end.div_ceil(u128::from(block.bytes()));
        let blocks = u64::try_from(blocks).ok().filter(|&blocks| blocks <= MAX_BLOCKS);
        let blocks = blocks.ok_or(IovaMapError::TooManyBlocks { bytes, block, limit: MAX_BLOCKS })?;
        if blocks.checked_mul(block.bytes()).is_none() {
            return Err(IovaMapError::BlocksTooLarge { skip, bytes, block });
        }
        let chunks = (0..blocks.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Ok(Self { provider, block, skip, bytes, blocks, chunks })
    }

    /// The number of blocks, provided or not.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The ranges of `[offset, offset + bytes)`, which lies inside the mapping, by block.
    pub(super) fn ranges(&self, offset: u64, bytes: u64) -> impl Iterator<Item = BlockRange> + use<> {
        let (shift, mask, skip) = (self.block.get(), self.block.mask(), self.skip);
        let mut at = offset;
        let end = offset + bytes;
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            // No overflow: `new` checked that the last block ends below 2^64.
            let place = at + skip;
            let block = place >> shift;
            let next = ((place | mask) - skip).saturating_add(1).min(end);
            let first = (block << shift).saturating_sub(skip);
            let range = BlockRange { block, offset: at - first, bytes: next - at };
            at = next;
            Some(range)
        })
    }

    /// The part of the mapping in a block: offset in the mapping and length.
    pub(super) fn extent(&self, block: u64) -> (u64, u64) {
        let shift = self.block.get();
        let first = (block << shift).saturating_sub(self.skip);
        let end = ((block << shift) + self.block.bytes() - self.skip).min(self.bytes);
        (first, end - first)
    }

    /// The segments of a block, if they were provided.
    #[inline]
    pub(super) fn get(&self, block: u64) -> Option<&MappedSegments> {
        let chunk = self.chunks.get(usize::try_from(block / CHUNK).ok()?)?.get()?;
        chunk.get((block % CHUNK) as usize)?.get()
    }

    /// Whether all of `[offset, offset + bytes)` was provided.
    #[inline]
    pub(super) fn has(&self, offset: u64, bytes: u64) -> bool {
        self.ranges(offset, bytes).all(|range| self.get(range.block).is_some())
    }

    /// Stores the segments of a block. If another thread was faster they are returned, to be dropped without a lock.
    pub(super) fn set(&self, block: u64, segments: MappedSegments) -> Result<(), MappedSegments> {
        match self.slot(block) {
            Some(slot) => slot.set(segments),
            None => Err(segments),
        }
    }

    /// The slot of a block. A chunk has no more slots than the mapping has blocks: many mappings have one.
    fn slot(&self, block: u64) -> Option<&OnceLock<MappedSegments>> {
        let number = block / CHUNK;
        let chunk = self.chunks.get(usize::try_from(number).ok()?)?;
        let length = CHUNK.min(self.blocks - number * CHUNK);
        chunk.get_or_init(|| (0..length).map(|_| OnceLock::new()).collect()).get((block % CHUNK) as usize)
    }
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand")
            .field("block", &self.block)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::backing::LocalSegment;
    use super::super::error::ProviderError;
    use super::*;
    use alloc::vec::Vec;

    struct Nothing;
    impl MemoryProvider for Nothing {
        fn provide(&self, _: u64, _: u64) -> Result<Vec<LocalSegment>, ProviderError> {
            Ok(Vec::new())
        }
    }

    fn blocks(skip: u64, bytes: u64) -> Result<OnDemand, IovaMapError> {
        OnDemand::new(Arc::new(Nothing), PageShift::new(13).unwrap(), skip, bytes)
    }

    #[test]
    fn segments_cover_the_access_and_lie_in_their_host_segments() {
        for skip in [0, 0x1000] {
            let table = blocks(skip, 0x9000).unwrap();
            for (offset, bytes) in [(0, 0x9000), (0, 1), (0xfff, 2), (0x1fff, 0x3002), (0x8fff, 1)] {
                let mut at = offset;
                for range in table.ranges(offset, bytes) {
                    let (first, length) = table.extent(range.block);
                    assert_eq!(first + range.offset, at);
                    assert!(range.bytes > 0 && range.offset + range.bytes <= length);
                    assert!((first + skip) % 0x2000 == 0 || first == 0);
                    at += range.bytes;
                }
                assert_eq!(at, offset + bytes, "all of it");
            }
        }
    }

    #[test]
    fn a_mapping_has_a_bounded_number_of_blocks() {
        assert!(blocks(0, MAX_BLOCKS << 13).is_ok());
        assert!(matches!(blocks(0x1000, MAX_BLOCKS << 13), Err(IovaMapError::TooManyBlocks { .. })));
        assert!(blocks(0x1000, u64::MAX).is_err());
    }

    #[test]
    fn there_are_no_more_slots_than_blocks() {
        for (count, slots) in [(1, 1), (CHUNK, CHUNK), (CHUNK + 3, CHUNK + 3)] {
            let table = blocks(0, count << 13).unwrap();
            assert!((0..count).all(|block| table.slot(block).is_some()));
            assert!(table.slot(count).is_none());
            let made: usize = table.chunks.iter().filter_map(OnceLock::get).map(|chunk| chunk.len()).sum();
            assert_eq!(made as u64, slots);
        }
    }

    #[test]
    fn the_last_segment_ends_at_a_number_of_64_bits() {
        let large = |skip, bytes| OnDemand::new(Arc::new(Nothing), PageShift::new(40).unwrap(), skip, bytes);
        let most = u64::MAX - (1 << 40) + 1;
        let table = large(1 << 39, most - (1 << 39)).unwrap();
        let last = table.ranges(most - (1 << 39) - 1, 1).next().unwrap();
        assert_eq!(table.extent(last.block), (most - (1 << 40) - (1 << 39), 1 << 40));
        for (skip, bytes) in [(1 << 39, most - (1 << 39) + 1), (0, u64::MAX)] {
            assert!(matches!(large(skip, bytes), Err(IovaMapError::BlocksTooLarge { .. })));
        }
    }
}
