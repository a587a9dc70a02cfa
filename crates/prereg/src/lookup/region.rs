//! A region: the header of one pinned range, and the mapping guard that holds one unit of it.
//!
//! A region does not change after it is published, except for its dirty marks. It may be reached by the registry while
//! it is registered or draining; by a translator whose snapshot names it (the registry keeps a released region that
//! long); and by the holder of a unit of its percpu ref.

use alloc::sync::Arc;
use core::fmt;
use core::mem::ManuallyDrop;

use crate::addr::{HostAddr, PageShift, UserAddr, UserRange};
use crate::errno::Errno;
use crate::lookup::holder::HolderCountsRef;
use crate::lookup::pages::PageTable;
use crate::table_memory::owned::TableBox;

/// The header of one pinned range.
pub(crate) struct Region {
    /// Unique within its address space, never reused.
    pub(crate) id: u64,
    /// Index of its percpu ref and counters; reusable when no snapshot in use names the region.
    pub(crate) slot: u32,
    pub(crate) range: UserRange,
    pub(crate) table: PageTable,
    pub(crate) device: bool,
    /// First registered by a holder of [`HolderKind::OnDemand`](crate::HolderKind::OnDemand).
    pub(crate) on_demand: bool,
}

impl Region {
    /// Whether the page of `shift` around `ua` may be mapped: all of it inside, contiguous and aligned on the host.
    ///
    /// # Errors
    /// [`MapError::Unregistered`] or [`MapError::TooLarge`].
    #[inline]
    pub(crate) fn admits(&self, ua: UserAddr, shift: PageShift) -> Result<(), MapError> {
        if !self.range.holds(ua.align_down(shift), shift.bytes()) {
            return Err(MapError::Unregistered { ua, shift });
        }
        let largest = self.table.largest_page();
        if shift > largest {
            return Err(MapError::TooLarge { ua, shift, largest });
        }
        Ok(())
    }

    /// The largest shift of index entries that can cover it: its start, its end and its breaks are multiples.
    pub(crate) fn entry_alignment(&self) -> u32 {
        (self.range.first().raw() | self.range.bytes()).trailing_zeros().min(self.table.entry_alignment())
    }
}

/// One published region, shared by the registry and the snapshots. Readers know its address in table memory.
pub(crate) type SharedRegion = Arc<TableBox<Region>>;

/// The reason why a page cannot be mapped. Nothing is counted.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No one region holds all of the page. EFAULT.
    #[error(
        "no registered region holds the whole {shift} page around {ua}; register all of it, or map a smaller page"
    )]
    Unregistered {
        /// The address asked for.
        ua: UserAddr,
        /// The page asked for.
        shift: PageShift,
    },
    /// The region's pages are not contiguous enough for a page of this size. EFAULT.
    #[error(
        "{ua} lies in a region that can be mapped with pages up to {largest}, not {shift}; use smaller IOMMU pages or huge pages as backing"
    )]
    TooLarge {
        /// The address asked for.
        ua: UserAddr,
        /// The page asked for.
        shift: PageShift,
        /// The largest page the region can be mapped with.
        largest: PageShift,
    },
    /// The region is being unregistered. ENXIO.
    #[error("the region at {ua} is being unregistered")]
    Closing {
        /// The address asked for.
        ua: UserAddr,
    },
    /// The address is not the start of an IOMMU page. EINVAL.
    #[error("{ua} is not aligned to the table's {shift} page")]
    Misaligned {
        /// The address asked for.
        ua: UserAddr,
        /// The table's page.
        shift: PageShift,
    },
    /// The block of entries is shorter. EINVAL.
    #[error("there is no entry {index}: the block has {len} entries")]
    NoEntry {
        /// The entry asked for.
        index: usize,
        /// Entries of the block.
        len: usize,
    },
    /// Another thread is changing the same entry. EAGAIN: try again, or take the slow path.
    #[error("another thread is changing the same entry")]
    Contended,
    /// The translator belongs to another address space than the table. EINVAL.
    #[error("the translator belongs to another address space")]
    Foreign,
}

crate::debug_as_display!(MapError);

impl MapError {
    /// EFAULT, ENXIO, EINVAL or EAGAIN, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Unregistered { .. } | Self::TooLarge { .. } => Errno::EFAULT,
            Self::Closing { .. } => Errno::ENXIO,
            Self::Misaligned { .. } | Self::NoEntry { .. } | Self::Foreign => Errno::EINVAL,
            Self::Contended => Errno::EAGAIN,
        }
    }
}

/// One live mapping of one IOMMU page: the only thing that yields a host address.
///
/// While it lives, its region cannot be unregistered and the page stays pinned at [`hpa`](Self::hpa). Release it with
/// [`Translator::unmap`], which costs a few instructions and works in a signal handler, or drop it on any thread, which
/// costs one or two atomic operations. If it was the last mapping of a region without registrations, the drop also
/// releases the region, which takes a lock and may make system calls.
///
/// [`Translator::unmap`]: crate::Translator::unmap
#[must_use = "the page is mapped only while this lives"]
pub struct Mapping {
    host: HostAddr,
    ua: UserAddr,
    counts: HolderCountsRef,
    slot: u32,
    shift: PageShift,
}

impl Mapping {
    /// Wraps a unit of `slot` that was just entered and is counted with the holder of `counts`.
    #[inline]
    pub(crate) fn new(
        host: HostAddr,
        ua: UserAddr,
        shift: PageShift,
        slot: u32,
        counts: HolderCountsRef,
    ) -> Self {
        Self { host, ua, counts, slot, shift }
    }

    /// The address at which a device reaches the byte at [`ua`](Self::ua).
    #[must_use]
    #[inline]
    pub fn hpa(&self) -> HostAddr {
        self.host
    }

    /// The user address that was mapped.
    #[must_use]
    #[inline]
    pub fn ua(&self) -> UserAddr {
        self.ua
    }

    /// The size of the mapped page.
    #[must_use]
    #[inline]
    pub fn shift(&self) -> PageShift {
        self.shift
    }

    /// The counters of the unit's holder.
    #[inline]
    pub(crate) fn counts(&self) -> HolderCountsRef {
        self.counts
    }

    /// Takes the mapping apart without releasing the unit, which is now up to the caller.
    #[inline]
    pub(crate) fn into_unit(self) -> (u32, HolderCountsRef) {
        let this = ManuallyDrop::new(self);
        (this.slot, this.counts)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the unit is counted with this holder, and the address is not used any more.
        #[expect(unsafe_code, reason = "the counters are reached by pointer: the unit keeps them")]
        unsafe {
            self.counts.release_unit(self.slot);
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("ua", &self.ua)
            .field("host", &self.host)
            .field("shift", &self.shift)
            .finish_non_exhaustive()
    }
}
