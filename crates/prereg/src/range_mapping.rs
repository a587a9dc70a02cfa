//! A mapping of a whole range: one unit, contiguous runs.

use core::fmt;
use core::ptr::NonNull;

use crate::addr::{HostAddr, UserAddr};
use crate::region::{Mapping, Region};

/// A stretch of contiguous host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRun {
    /// Where the device finds it.
    pub host: HostAddr,
    /// How long it is.
    pub bytes: u64,
}

/// One live mapping of a range inside one region: what an I/O of many pages holds. Counted as one unit.
#[must_use = "the range is mapped only while this lives"]
pub struct RangeMapping {
    unit: Mapping,
    region: NonNull<Region>,
    bytes: u64,
}

#[expect(unsafe_code, reason = "the region is reached by pointer: the unit keeps it")]
mod reach {
    use super::{RangeMapping, Region};

    // SAFETY: the region's header is only read, and the unit may be given back on any thread.
    unsafe impl Send for RangeMapping {}
    // SAFETY: as above.
    unsafe impl Sync for RangeMapping {}

    impl RangeMapping {
        pub(super) fn region(&self) -> &Region {
            // SAFETY: the unit keeps it.
            unsafe { self.region.as_ref() }
        }
    }
}

impl RangeMapping {
    /// `unit` is of `region`, which holds `bytes` bytes from its user address on.
    pub(crate) fn new(unit: Mapping, region: NonNull<Region>, bytes: u64) -> Self {
        Self { unit, region, bytes }
    }

    /// The first byte.
    #[must_use]
    pub fn ua(&self) -> UserAddr {
        self.unit.ua()
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The stretches of contiguous host memory that make up the range, in order: a scatter-gather list.
    #[inline]
    pub fn runs(&self) -> impl Iterator<Item = HostRun> + '_ {
        let runs = self.region().table.runs_within(self.ua(), self.bytes);
        runs.map(|(host, bytes)| HostRun { host, bytes })
    }

    /// The unit alone.
    pub(crate) fn into_unit(self) -> Mapping {
        self.unit
    }
}

impl fmt::Debug for RangeMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RangeMapping")
            .field("ua", &self.ua())
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
