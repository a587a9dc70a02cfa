//! A mapping of a whole range: one unit, and the contiguous runs of the range.

use core::fmt;
use core::ptr::NonNull;

use crate::addr::{HostAddr, UserAddr};
use crate::lookup::region::{Mapping, Region};

/// Contiguous host memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostRun {
    /// The address at which a device reaches it.
    pub host: HostAddr,
    /// The length.
    pub bytes: u64,
}

/// One live mapping of a range inside one region: what an I/O of many pages holds. It counts as one unit.
#[must_use = "the range is mapped only while this lives"]
pub struct RangeMapping {
    unit: Mapping,
    region: NonNull<Region>,
    bytes: u64,
}

#[expect(unsafe_code, reason = "the region is reached by pointer: the unit keeps it")]
mod reach {
    use super::{RangeMapping, Region};

    // SAFETY: the region's header is only read, and the unit may be released on any thread.
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
    /// `unit` is of `region`, which holds `bytes` bytes from the unit's user address on.
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

    /// Whether its region was first registered by a holder of [`HolderKind::OnDemand`](crate::HolderKind::OnDemand). Such a
    /// region goes with the last of those registrations: a mapping that is to keep it takes one of its own.
    #[inline]
    #[must_use]
    pub fn is_on_demand(&self) -> bool {
        self.region().on_demand
    }

    /// The runs of contiguous host memory that make up the range, in order: a scatter-gather list.
    #[inline]
    pub fn runs(&self) -> impl Iterator<Item = HostRun> + '_ {
        let runs = self.region().table.runs_within(self.ua(), self.bytes);
        runs.map(|(host, bytes)| HostRun { host, bytes })
    }

    /// [`runs`](Self::runs) for `bytes` bytes from `ua` on; empty where those are not all inside the range.
    ///
    /// ```
    /// # use prereg::{AddressSpace, Granule, UserAddr};
    /// # let host = prereg_sim::SimHost::new(Granule::K4);
    /// # let space = AddressSpace::builder(host.clone()).build()?;
    /// # let registration = space.register(&host.memory(0x10_0000, 8 << 12))?;
    /// let range = space.translator().map_range(UserAddr::new(0x10_1000), 4 << 12)?;
    /// let part: u64 = range.runs_in(UserAddr::new(0x10_2800), 0x1000).map(|run| run.bytes).sum();
    /// assert_eq!(part, 0x1000);
    /// for (ua, bytes) in [(0x10_0fff, 2), (0x10_4fff, 2), (0x10_1000, (4 << 12) + 1), (0x10_2000, 0)] {
    ///     assert_eq!(range.runs_in(UserAddr::new(ua), bytes).count(), 0);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn runs_in(&self, ua: UserAddr, bytes: u64) -> impl Iterator<Item = HostRun> + '_ {
        let inside = ua
            .offset_from(self.ua())
            .is_some_and(|offset| self.bytes.checked_sub(offset).is_some_and(|left| bytes <= left));
        let (ua, bytes) = if inside { (ua, bytes) } else { (self.ua(), 0) };
        let runs = self.region().table.runs_within(ua, bytes);
        runs.map(|(host, bytes)| HostRun { host, bytes })
    }

    /// The unit, without the range.
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
