//! A region: the header of one pinned range, and the mapping guard that holds one unit of it.
//!
//! A region never changes after it is published, but for its gate (the live mappings) and its dirty marks. Who may reach
//! one: the registry while it is registered or draining; a snapshot that lists it, for as long as some translator sits on
//! that snapshot; and whoever holds a unit of its gate, for as long as he holds it (the registry keeps a region until the
//! gate is closed and empty). The last one out of a closed gate has the region to himself until he has queued it.

#![expect(
    unsafe_code,
    reason = "a mapping reaches its region by pointer: the unit it holds keeps the region, not a count"
)]

use alloc::sync::{Arc, Weak};
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;

use crate::addr::{HostAddr, PageShift, UserAddr, UserRange};
use crate::errno::Errno;
use crate::gate::{Gate, Left};
use crate::pages::PageTable;
use crate::sync::atomic::AtomicPtr;
use crate::tally::HouseRef;

/// Who is told that the last unit of a closed region is gone, and releases it.
pub(crate) trait Home: Send + Sync {
    /// Queues `region` for release. Lock-free, no allocation, no system call.
    fn queue_drained(&self, region: NonNull<Region>);
    /// Releases what is queued. May lock and make system calls.
    fn reap(&self);
}

/// The header of one pinned range.
pub(crate) struct Region {
    /// Unique within its address space, never used again.
    pub(crate) id: u64,
    /// Index in the arrays of counts; free again when no snapshot lists the region.
    pub(crate) slot: u32,
    pub(crate) range: UserRange,
    /// The live mappings; what the kernel calls `mapped` is one more.
    pub(crate) gate: Gate,
    pub(crate) table: PageTable,
    pub(crate) device: bool,
    pub(crate) home: Weak<dyn Home>,
    /// The next region in the queue of drained ones.
    pub(crate) next_drained: AtomicPtr<Region>,
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
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("range", &self.range).field("gate", &self.gate).finish_non_exhaustive()
    }
}

/// One published region, shared by the registry and the snapshots.
pub(crate) type SharedRegion = Arc<Region>;

/// Why a page cannot be mapped. Nothing is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No one region holds all of the page. EFAULT.
    #[error("no registered region holds the whole {shift} page around {ua}; register it first")]
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
    /// Another thread is changing the same entry. EAGAIN: try again, or take the slow path.
    #[error("another thread is changing the same entry")]
    Contended,
    /// The translator belongs to another address space than the table. EINVAL.
    #[error("the translator belongs to another address space")]
    Foreign,
}

impl MapError {
    /// EFAULT, ENXIO, EINVAL or EAGAIN, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Unregistered { .. } | Self::TooLarge { .. } => Errno::EFAULT,
            Self::Closing { .. } => Errno::ENXIO,
            Self::Misaligned { .. } | Self::Foreign => Errno::EINVAL,
            Self::Contended => Errno::EAGAIN,
        }
    }
}

/// One live mapping of one IOMMU page: the only thing that yields a host address.
///
/// While it lives its region cannot be unregistered and the page stays pinned at [`hpa`](Self::hpa). Dropping it gives the
/// unit back, on any thread. If it was the last one of a region whose registrations are gone, the drop also releases the
/// region, which takes a lock and may make system calls; a signal handler uses [`Translator::unmap`] instead.
///
/// [`Translator::unmap`]: crate::Translator::unmap
#[must_use = "the page is mapped only while this lives"]
pub struct Mapping {
    region: NonNull<Region>,
    house: HouseRef,
    ua: UserAddr,
    host: HostAddr,
    shift: PageShift,
}

// SAFETY: a mapping only reads its region's header and changes it through atomics; any thread may give the unit back.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is changed through `&Mapping`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Wraps a unit of `region`'s gate that was just entered.
    ///
    /// The caller entered the gate for this mapping and counted the unit with the holder of `house`, and `region` admits
    /// the page.
    #[inline]
    pub(crate) fn new(region: &Region, house: HouseRef, ua: UserAddr, shift: PageShift) -> Self {
        Self { region: NonNull::from(region), house, ua, host: region.table.host(ua), shift }
    }

    /// Where the device finds the byte at [`ua`](Self::ua).
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

    #[inline]
    pub(crate) fn region(&self) -> &Region {
        // SAFETY: the unit this mapping holds keeps the region in the registry.
        unsafe { self.region.as_ref() }
    }

    /// Takes the mapping apart without giving the unit back: that is now the caller's to do.
    #[inline]
    pub(crate) fn into_region(self) -> NonNull<Region> {
        ManuallyDrop::new(self).region
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let slot = self.region().slot;
        // SAFETY: the unit being given back is counted with this holder.
        unsafe { self.house.give_back(slot) };
        if self.region().gate.leave() == Ok(Left::Last) {
            // Alone with the region now: see the head of this file.
            if let Some(home) = self.region().home.upgrade() {
                home.queue_drained(self.region);
                home.reap();
            }
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
