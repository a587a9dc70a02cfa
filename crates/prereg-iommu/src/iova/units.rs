//! The units of registered memory that a mapping holds, one for each region it leads to.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use prereg::{MapError, RangeMapping, Translator, UserAddr};

use super::backing::{LocalPiece, Owner};

/// One counted use of one region, and what keeps the memory company.
pub(super) struct Unit {
    mapping: RangeMapping,
    owner: Option<Arc<Owner>>,
}

/// Units that lie one behind the other in a mapping.
pub(super) enum Units {
    One(Unit),
    /// With the offset of each in the mapping.
    Many(Box<[(u64, Unit)]>),
}

impl Units {
    /// A unit for each of `pieces`, one behind the other. The caller holds a lock, so nothing is dropped here: units taken
    /// before one that cannot be had are left in `taken`.
    pub(super) fn of(
        translator: &mut Translator,
        pieces: &[LocalPiece],
        taken: &mut Vec<(u64, Unit)>,
    ) -> Result<Self, MapError> {
        if let [piece] = pieces {
            return Ok(Self::One(Unit::of(translator, piece)?));
        }
        taken.reserve_exact(pieces.len());
        let mut offset = 0;
        for piece in pieces {
            taken.push((offset, Unit::of(translator, piece)?));
            offset += piece.bytes;
        }
        Ok(Self::Many(core::mem::take(taken).into_boxed_slice()))
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Many(units) => units.len() as u64,
        }
    }

    /// The parts of `bytes` bytes from `offset` on, all inside: unit, user address, length.
    pub(super) fn parts(&self, offset: u64, bytes: u64) -> impl Iterator<Item = (&Unit, UserAddr, u64)> {
        let (one, many) = match self {
            Self::One(unit) => (Some(unit), &[][..]),
            Self::Many(units) => {
                // The last that begins at `offset` or before.
                let from = units.partition_point(|&(start, _)| start <= offset).saturating_sub(1);
                (None, &units[from..])
            }
        };
        let end = offset.saturating_add(bytes);
        let one = one.into_iter().map(|unit| (0, unit));
        let many = many.iter().map(|(start, unit)| (*start, unit)).take_while(move |&(start, _)| start < end);
        one.chain(many).filter_map(move |(start, unit)| {
            let skip = offset.saturating_sub(start);
            let ua = unit.mapping.ua().checked_add(skip)?;
            let left = unit.mapping.bytes().checked_sub(skip)?.min(end - start.max(offset));
            Some((unit, ua, left))
        })
    }
}

impl Unit {
    fn of(translator: &mut Translator, piece: &LocalPiece) -> Result<Self, MapError> {
        let mapping = translator.map_range(piece.ua, piece.bytes)?;
        Ok(Self { mapping, owner: piece.owner.clone() })
    }

    pub(super) fn mapping(&self) -> &RangeMapping {
        &self.mapping
    }

    pub(super) fn owner(&self) -> Option<&Owner> {
        self.owner.as_deref()
    }
}

impl fmt::Debug for Units {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(unit) => fmt::Debug::fmt(&unit.mapping, f),
            Self::Many(units) => f.debug_list().entries(units.iter().map(|(_, unit)| &unit.mapping)).finish(),
        }
    }
}
