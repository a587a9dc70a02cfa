//! The units of a mapping that is supplied piece by piece: each piece once, at its first access, and kept from then on.
//!
//! A mapping is cut into pieces of a power of two bytes. A slot per piece is filled once and never emptied while the mapping
//! lives, so an access to a filled piece takes no lock. Slots are allocated in chunks, so a large mapping that is hardly
//! used costs little.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;
use std::sync::OnceLock;

use prereg::PageShift;

use super::backing::Supply;
use super::error::IovaMapError;
use super::units::Units;

/// Slots that are allocated together.
const CHUNK: u64 = 256;
/// Pieces that one mapping may have.
const PIECES: u64 = 1 << 24;

type Chunk = Box<[OnceLock<Units>]>;

/// The pieces of one mapping.
pub(super) struct OnDemand {
    pub(super) supply: Arc<dyn Supply>,
    piece: PageShift,
    /// Bytes of the first piece that lie before the mapping.
    skip: u64,
    bytes: u64,
    /// How many there are.
    pieces: u64,
    chunks: Box<[OnceLock<Chunk>]>,
}

/// The part of an access that lies in one piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) piece: u64,
    /// Where it begins in the part of the piece that the mapping has.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl OnDemand {
    pub(super) fn new(
        supply: Arc<dyn Supply>,
        piece: PageShift,
        skip: u64,
        bytes: u64,
    ) -> Result<Self, IovaMapError> {
        let skip = skip & piece.mask();
        let end = u128::from(skip) + u128::from(bytes);
        let pieces = end.div_ceil(u128::from(piece.bytes()));
        let pieces = u64::try_from(pieces).ok().filter(|&pieces| pieces <= PIECES);
        let pieces = pieces.ok_or(IovaMapError::TooManyPieces { bytes, piece, limit: PIECES })?;
        if pieces.checked_mul(piece.bytes()).is_none() {
            return Err(IovaMapError::PiecesTooLarge { skip, bytes, piece });
        }
        let chunks = (0..pieces.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect();
        Ok(Self { supply, piece, skip, bytes, pieces, chunks })
    }

    /// How many pieces there are, supplied or not.
    pub(super) fn pieces(&self) -> u64 {
        self.pieces
    }

    /// The parts of `[offset, offset + bytes)`, which lies inside the mapping, by piece.
    pub(super) fn segments(&self, offset: u64, bytes: u64) -> impl Iterator<Item = Segment> + use<> {
        let (shift, mask, skip) = (self.piece.get(), self.piece.mask(), self.skip);
        let mut at = offset;
        let end = offset + bytes;
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            // `new` proved that the last piece of a mapping ends at a 64-bit number, so nothing here can overflow.
            let place = at + skip;
            let piece = place >> shift;
            let next = ((place | mask) - skip).saturating_add(1).min(end);
            let first = (piece << shift).saturating_sub(skip);
            let segment = Segment { piece, offset: at - first, bytes: next - at };
            at = next;
            Some(segment)
        })
    }

    /// The whole part of a piece that the mapping has: its offset in the mapping, and its length.
    pub(super) fn extent(&self, piece: u64) -> (u64, u64) {
        let shift = self.piece.get();
        let first = (piece << shift).saturating_sub(self.skip);
        let end = ((piece << shift) + self.piece.bytes() - self.skip).min(self.bytes);
        (first, end - first)
    }

    /// The units of a piece, if it was supplied.
    #[inline]
    pub(super) fn get(&self, piece: u64) -> Option<&Units> {
        let chunk = self.chunks.get(usize::try_from(piece / CHUNK).ok()?)?.get()?;
        chunk.get((piece % CHUNK) as usize)?.get()
    }

    /// Whether all of `[offset, offset + bytes)` was supplied.
    #[inline]
    pub(super) fn has(&self, offset: u64, bytes: u64) -> bool {
        self.segments(offset, bytes).all(|segment| self.get(segment.piece).is_some())
    }

    /// Keeps the units of a piece. Units that another thread was faster with come back, to be dropped without a lock.
    pub(super) fn set(&self, piece: u64, units: Units) -> Result<(), Units> {
        match self.slot(piece) {
            Some(slot) => slot.set(units),
            None => Err(units),
        }
    }

    /// The slot of a piece. A chunk has no more slots than the mapping has pieces: many mappings have one.
    fn slot(&self, piece: u64) -> Option<&OnceLock<Units>> {
        let number = piece / CHUNK;
        let chunk = self.chunks.get(usize::try_from(number).ok()?)?;
        let length = CHUNK.min(self.pieces - number * CHUNK);
        chunk.get_or_init(|| (0..length).map(|_| OnceLock::new()).collect()).get((piece % CHUNK) as usize)
    }
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand")
            .field("piece", &self.piece)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::backing::LocalPiece;
    use super::super::error::SupplyError;
    use super::*;
    use alloc::vec::Vec;

    struct Nothing;
    impl Supply for Nothing {
        fn supply(&self, _: u64, _: u64) -> Result<Vec<LocalPiece>, SupplyError> {
            Ok(Vec::new())
        }
    }

    fn pieces(skip: u64, bytes: u64) -> Result<OnDemand, IovaMapError> {
        OnDemand::new(Arc::new(Nothing), PageShift::new(13).unwrap(), skip, bytes)
    }

    #[test]
    fn segments_cover_the_access_and_lie_in_their_pieces() {
        for skip in [0, 0x1000] {
            let table = pieces(skip, 0x9000).unwrap();
            for (offset, bytes) in [(0, 0x9000), (0, 1), (0xfff, 2), (0x1fff, 0x3002), (0x8fff, 1)] {
                let mut at = offset;
                for segment in table.segments(offset, bytes) {
                    let (first, length) = table.extent(segment.piece);
                    assert_eq!(first + segment.offset, at);
                    assert!(segment.bytes > 0 && segment.offset + segment.bytes <= length);
                    assert!((first + skip) % 0x2000 == 0 || first == 0);
                    at += segment.bytes;
                }
                assert_eq!(at, offset + bytes, "all of it");
            }
        }
    }

    #[test]
    fn a_mapping_has_a_bounded_number_of_pieces() {
        assert!(pieces(0, PIECES << 13).is_ok());
        assert!(matches!(pieces(0x1000, PIECES << 13), Err(IovaMapError::TooManyPieces { .. })));
        assert!(pieces(0x1000, u64::MAX).is_err());
    }

    #[test]
    fn there_are_no_more_slots_than_pieces() {
        for (count, slots) in [(1, 1), (CHUNK, CHUNK), (CHUNK + 3, CHUNK + 3)] {
            let table = pieces(0, count << 13).unwrap();
            assert!((0..count).all(|piece| table.slot(piece).is_some()));
            assert!(table.slot(count).is_none());
            let made: usize = table.chunks.iter().filter_map(OnceLock::get).map(|chunk| chunk.len()).sum();
            assert_eq!(made as u64, slots);
        }
    }

    #[test]
    fn the_last_piece_ends_at_a_number_of_64_bits() {
        let large = |skip, bytes| OnDemand::new(Arc::new(Nothing), PageShift::new(40).unwrap(), skip, bytes);
        let most = u64::MAX - (1 << 40) + 1;
        let table = large(1 << 39, most - (1 << 39)).unwrap();
        let last = table.segments(most - (1 << 39) - 1, 1).next().unwrap();
        assert_eq!(table.extent(last.piece), (most - (1 << 40) - (1 << 39), 1 << 40));
        for (skip, bytes) in [(1 << 39, most - (1 << 39) + 1), (0, u64::MAX)] {
            assert!(matches!(large(skip, bytes), Err(IovaMapError::PiecesTooLarge { .. })));
        }
    }
}
