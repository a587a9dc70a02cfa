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
    /// One unit of the region that holds all of `[ua, ua + bytes)`.
    pub(super) fn one(
        translator: &mut Translator,
        ua: UserAddr,
        bytes: u64,
        owner: Option<Arc<Owner>>,
    ) -> Result<Self, MapError> {
        Ok(Self::One(Unit { mapping: translator.map_range(ua, bytes)?, owner }))
    }

    /// A unit for each of `pieces`. Those taken before one that cannot be had are left in `taken`, for the caller to drop
    /// where no lock is held.
    pub(super) fn many(
        translator: &mut Translator,
        pieces: Vec<LocalPiece>,
        taken: &mut Vec<(u64, Unit)>,
    ) -> Result<Self, MapError> {
        let mut offset = 0;
        for piece in pieces {
            let mapping = translator.map_range(piece.ua, piece.bytes)?;
            taken.push((offset, Unit { mapping, owner: piece.owner }));
            offset += piece.bytes;
        }
        Ok(match core::mem::take(taken) {
            mut one if one.len() == 1 => match one.pop() {
                Some((_, unit)) => Self::One(unit),
                None => Self::Many(Box::default()),
            },
            many => Self::Many(many.into_boxed_slice()),
        })
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
