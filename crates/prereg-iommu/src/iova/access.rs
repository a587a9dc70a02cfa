//! Accesses: what a device holds while it reads or writes.

use alloc::vec::Vec;
use core::fmt;

use prereg::{HostAddr, Iova, UserAddr};

use super::backing::Owner;
use super::mapping::{Inside, LeadsTo};
use super::units::{Unit, Units};

/// An access under way: the memory stays pinned at its addresses until this is dropped, on whatever thread.
///
/// If it was the last one of a mapping that is unmapped, the drop gives the mapping's units back, which may release memory,
/// and tells [`Drained`](super::Drained).
#[must_use = "the memory is held only while this lives"]
pub struct Held {
    parts: Parts,
    bytes: u64,
}

pub(super) enum Parts {
    One(Part),
    Many(Vec<Part>),
}

/// The part of an access that lies in one mapping. Dropped in this order: whoever finds the rundown ref empty finds the units given
/// back too.
pub(super) struct Part {
    pub(super) source: Source,
    pub(super) inside: Inside,
    /// Where it begins.
    pub(super) iova: u64,
    pub(super) bytes: u64,
}

/// Where a part's memory is.
pub(super) enum Source {
    /// In the mapping's units, or those of its pieces.
    Mapped,
    /// In units of its own, which begin where the part does.
    Own(Units),
    Remote,
}

/// A part of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Piece {
    /// Registered memory that is contiguous for the device.
    Local {
        /// Where the owner of the memory finds it.
        ua: UserAddr,
        /// Where the device finds it.
        host: HostAddr,
        /// How long it is.
        bytes: u64,
    },
    /// Memory that is reached by other means.
    Remote {
        /// Where.
        iova: Iova,
        /// How long it is.
        bytes: u64,
    },
}

/// A part of an access that lies in one piece of registered memory, or in none.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Stretch<'a> {
    /// In one piece of registered memory.
    Local {
        /// Where it begins.
        ua: UserAddr,
        /// How long it is.
        bytes: u64,
        /// What was given along with the piece.
        owner: Option<&'a Owner>,
    },
    /// Memory that is reached by other means.
    Remote {
        /// Where.
        iova: Iova,
        /// How long it is.
        bytes: u64,
    },
}

impl Held {
    pub(super) fn new(parts: Parts, bytes: u64) -> Self {
        Self { parts, bytes }
    }

    fn parts(&self) -> &[Part] {
        match &self.parts {
            Parts::One(part) => core::slice::from_ref(part),
            Parts::Many(parts) => parts,
        }
    }

    /// The parts in order, each contiguous for the device and inside one mapping.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        self.pieces_and_owners().map(|(piece, _)| piece)
    }

    /// The same, with what was given along with the memory of each.
    pub fn pieces_and_owners(&self) -> impl Iterator<Item = (Piece, Option<&Owner>)> + '_ {
        self.parts().iter().flat_map(|part| {
            let local = part.local().flat_map(|(unit, ua, bytes)| {
                unit.mapping().runs_in(ua, bytes).scan(ua, |at, run| {
                    let ua = *at;
                    // Past the last byte only when nothing follows.
                    *at = UserAddr::new(ua.raw().wrapping_add(run.bytes));
                    Some((Piece::Local { ua, host: run.host, bytes: run.bytes }, unit.owner()))
                })
            });
            local.chain(part.remote().map(|(iova, bytes)| (Piece::Remote { iova, bytes }, None)))
        })
    }

    /// The parts in order, each in one piece of memory.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch<'_>> + '_ {
        self.parts().iter().flat_map(|part| {
            let local = part.local();
            local
                .map(|(unit, ua, bytes)| Stretch::Local { ua, bytes, owner: unit.owner() })
                .chain(part.remote().map(|(iova, bytes)| Stretch::Remote { iova, bytes }))
        })
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether [`IovaMap::revoke`](super::IovaMap::revoke) was called: the memory is still held, and is not to be touched.
    #[must_use]
    #[inline]
    pub fn is_revoked(&self) -> bool {
        // All parts are of one map.
        self.parts().first().is_some_and(|part| part.inside.state().is_revoked())
    }

    /// Whether none of it is reached by other means.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.parts().iter().all(|part| part.remote().is_none())
    }
}

impl Part {
    fn local(&self) -> impl Iterator<Item = (&Unit, UserAddr, u64)> {
        let offset = self.iova - self.inside.state().span.first;
        let (whole, pieces) = match (&self.source, self.inside.leads_to()) {
            (Source::Own(units), _) => (Some((units, 0, self.bytes)), None),
            (Source::Mapped, LeadsTo::Local(units)) => (Some((units, offset, self.bytes)), None),
            (Source::Mapped, LeadsTo::OnDemand(table)) => (None, Some(table)),
            _ => (None, None),
        };
        let pieces = pieces.into_iter().flat_map(move |table| {
            // All of it was supplied before the access was made.
            table
                .segments(offset, self.bytes)
                .filter_map(|segment| Some((table.get(segment.piece)?, segment.offset, segment.bytes)))
        });
        whole.into_iter().chain(pieces).flat_map(|(units, offset, bytes)| units.parts(offset, bytes))
    }

    fn remote(&self) -> Option<(Iova, u64)> {
        matches!(self.source, Source::Remote).then(|| (Iova::new(self.iova), self.bytes))
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("bytes", &self.bytes).field("mappings", &self.parts().len()).finish()
    }
}
