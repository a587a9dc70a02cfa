//! Accesses: ranges that a device holds while it reads or writes.

use alloc::vec::Vec;
use core::fmt;

use prereg::{HostAddr, Iova, UserAddr};

use super::backing::Owner;
use super::mapping::{RundownGuard, Target};
use super::segments::{MappedSegment, MappedSegments};

/// An access under way: the memory stays pinned at its addresses until this is dropped, on any thread.
///
/// Dropping the last access of an unmapped mapping releases the mapping's units, which may release memory, and calls
/// [`OnDrained`](super::OnDrained).
#[must_use = "the memory is held only while this lives"]
pub struct HeldRange {
    parts: Parts,
    bytes: u64,
}

pub(super) enum Parts {
    One(AccessPart),
    Many(Vec<AccessPart>),
}

/// The part of an access in one mapping. Fields are dropped in this order, so units are released before the rundown ref is
/// empty.
pub(super) struct AccessPart {
    pub(super) source: Source,
    pub(super) inside: RundownGuard,
    /// The start.
    pub(super) iova: u64,
    pub(super) bytes: u64,
}

/// Location of a part's memory.
pub(super) enum Source {
    /// In the segments of the mapping, or of its blocks.
    Mapped,
    /// In segments of this access alone, which begin where the part does.
    Own(MappedSegments),
    Remote,
}

/// A part of an access that is contiguous for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum HostSegment {
    /// Registered memory.
    Local {
        /// The user address.
        ua: UserAddr,
        /// The address for the device.
        host: HostAddr,
        /// The length.
        bytes: u64,
    },
    /// Memory that is reached by other means.
    Remote {
        /// The start.
        iova: Iova,
        /// The length.
        bytes: u64,
    },
}

/// A part of an access that lies in one registered segment, or in remote memory.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum UserSegment<'a> {
    /// In one registered segment.
    Local {
        /// The start.
        ua: UserAddr,
        /// The length.
        bytes: u64,
        /// The owner of the segment.
        owner: Option<&'a Owner>,
    },
    /// Memory that is reached by other means.
    Remote {
        /// The start.
        iova: Iova,
        /// The length.
        bytes: u64,
    },
}

impl HeldRange {
    pub(super) fn new(parts: Parts, bytes: u64) -> Self {
        Self { parts, bytes }
    }

    fn parts(&self) -> &[AccessPart] {
        match &self.parts {
            Parts::One(part) => core::slice::from_ref(part),
            Parts::Many(parts) => parts,
        }
    }

    /// The parts in order, each contiguous for the device and inside one mapping.
    pub fn host_segments(&self) -> impl Iterator<Item = HostSegment> + '_ {
        self.host_segments_with_owners().map(|(piece, _)| piece)
    }

    /// [`host_segments`](Self::host_segments), each with the owner of its memory.
    pub fn host_segments_with_owners(&self) -> impl Iterator<Item = (HostSegment, Option<&Owner>)> + '_ {
        self.parts().iter().flat_map(|part| {
            let local = part.local().flat_map(|(segment, ua, bytes)| {
                segment.mapping().runs_in(ua, bytes).scan(ua, |at, run| {
                    let ua = *at;
                    // Wraps only after the last segment.
                    *at = UserAddr::new(ua.raw().wrapping_add(run.bytes));
                    Some((HostSegment::Local { ua, host: run.host, bytes: run.bytes }, segment.owner()))
                })
            });
            local.chain(part.remote().map(|(iova, bytes)| (HostSegment::Remote { iova, bytes }, None)))
        })
    }

    /// The parts in order, each in one segment of user memory.
    pub fn user_segments(&self) -> impl Iterator<Item = UserSegment<'_>> + '_ {
        self.parts().iter().flat_map(|part| {
            let local = part.local();
            local
                .map(|(segment, ua, bytes)| UserSegment::Local { ua, bytes, owner: segment.owner() })
                .chain(part.remote().map(|(iova, bytes)| UserSegment::Remote { iova, bytes }))
        })
    }

    /// The length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether [`IovaMap::revoke`](super::IovaMap::revoke) was called: the memory is still held, but must not be accessed.
    #[must_use]
    #[inline]
    pub fn is_revoked(&self) -> bool {
        // All parts are of one map.
        self.parts().first().is_some_and(|part| part.inside.state().is_revoked())
    }

    /// Whether all of it is registered memory.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.parts().iter().all(|part| part.remote().is_none())
    }
}

impl AccessPart {
    fn local(&self) -> impl Iterator<Item = (&MappedSegment, UserAddr, u64)> {
        let offset = self.iova - self.inside.state().span.first;
        let (whole, blocks) = match (&self.source, self.inside.target()) {
            (Source::Own(segments), _) => (Some((segments, 0, self.bytes)), None),
            (Source::Mapped, Target::Local(segments)) => (Some((segments, offset, self.bytes)), None),
            (Source::Mapped, Target::OnDemand(table)) => (None, Some(table)),
            _ => (None, None),
        };
        let blocks = blocks.into_iter().flat_map(move |table| {
            // All blocks were provided before the access was made.
            table
                .ranges(offset, self.bytes)
                .filter_map(|range| Some((table.get(range.block)?, range.offset, range.bytes)))
        });
        whole.into_iter().chain(blocks).flat_map(|(segments, offset, bytes)| segments.parts(offset, bytes))
    }

    fn remote(&self) -> Option<(Iova, u64)> {
        matches!(self.source, Source::Remote).then(|| (Iova::new(self.iova), self.bytes))
    }
}

impl fmt::Debug for HeldRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldRange")
            .field("bytes", &self.bytes)
            .field("mappings", &self.parts().len())
            .finish()
    }
}
