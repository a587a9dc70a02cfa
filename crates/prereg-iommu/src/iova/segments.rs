//! The mapped segments of registered memory behind a mapping: one counted unit for each region.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use prereg::{MapError, RangeMapping, Translator, UserAddr};

use super::backing::{LocalSegment, Owner};

/// One unit of a region, with the owner of its memory.
pub(super) struct MappedSegment {
    mapping: RangeMapping,
    owner: Option<Arc<Owner>>,
}

/// Consecutive segments of a mapping.
pub(super) enum MappedSegments {
    One(MappedSegment),
    /// With their offsets in the mapping.
    Many(Box<[(u64, MappedSegment)]>),
}

impl MappedSegments {
    /// Maps each of `segments`. The caller holds a lock, so nothing is dropped here: on failure the segments mapped before
    /// are left in `taken`.
    pub(super) fn of(
        translator: &mut Translator,
        segments: &[LocalSegment],
        taken: &mut Vec<(u64, MappedSegment)>,
    ) -> Result<Self, MapError> {
        if let [segment] = segments {
            return Ok(Self::One(MappedSegment::of(translator, segment)?));
        }
        taken.reserve_exact(segments.len());
        let mut offset = 0;
        for segment in segments {
            taken.push((offset, MappedSegment::of(translator, segment)?));
            offset += segment.bytes;
        }
        Ok(Self::Many(core::mem::take(taken).into_boxed_slice()))
    }

    pub(super) fn count(&self) -> u64 {
        match self {
            Self::One(_) => 1,
            Self::Many(segments) => segments.len() as u64,
        }
    }

    /// The parts of `bytes` bytes from `offset` on, all inside: segment, user address, length.
    pub(super) fn parts(
        &self,
        offset: u64,
        bytes: u64,
    ) -> impl Iterator<Item = (&MappedSegment, UserAddr, u64)> {
        let (one, many) = match self {
            Self::One(segment) => (Some(segment), &[][..]),
            Self::Many(segments) => {
                // The last one that begins at or before `offset`.
                let from = segments.partition_point(|&(start, _)| start <= offset).saturating_sub(1);
                (None, &segments[from..])
            }
        };
        let end = offset.saturating_add(bytes);
        let one = one.into_iter().map(|segment| (0, segment));
        let many =
            many.iter().map(|(start, segment)| (*start, segment)).take_while(move |&(start, _)| start < end);
        one.chain(many).filter_map(move |(start, segment)| {
            let skip = offset.saturating_sub(start);
            let ua = segment.mapping.ua().checked_add(skip)?;
            let left = segment.mapping.bytes().checked_sub(skip)?.min(end - start.max(offset));
            Some((segment, ua, left))
        })
    }
}

impl MappedSegment {
    fn of(translator: &mut Translator, segment: &LocalSegment) -> Result<Self, MapError> {
        let mapping = translator.map_range(segment.ua, segment.bytes)?;
        Ok(Self { mapping, owner: segment.owner.clone() })
    }

    pub(super) fn mapping(&self) -> &RangeMapping {
        &self.mapping
    }

    pub(super) fn owner(&self) -> Option<&Owner> {
        self.owner.as_deref()
    }
}

impl fmt::Debug for MappedSegments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(segment) => fmt::Debug::fmt(&segment.mapping, f),
            Self::Many(segments) => {
                f.debug_list().entries(segments.iter().map(|(_, segment)| &segment.mapping)).finish()
            }
        }
    }
}
