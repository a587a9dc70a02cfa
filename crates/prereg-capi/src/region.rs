//! What can be seen of a region, as plain structs.

use prereg::{HolderTotal, RegionState};

use crate::words::{holder_of, prereg_holder};

/// Device memory: neither pinned nor charged.
pub const PREREG_REGION_DEVICE: u32 = 1;
/// No registration is left, or it waits to be idle: no new mappings, released when the last one goes.
pub const PREREG_REGION_DRAINING: u32 = 2;

/// One region as it was at some moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_region {
    /// The first byte.
    pub ua: u64,
    /// The length in bytes.
    pub bytes: u64,
    /// The length in system pages.
    pub pages: u64,
    /// Registrations.
    pub used: u64,
    /// One more than the live mappings, as the kernel counts them.
    pub mapped: u64,
    /// Memory of ours that describes the region's pages, in bytes.
    pub metadata_bytes: u64,
    /// The largest page it can be mapped with, as a power of two.
    pub largest_page: u32,
    /// `PREREG_REGION_...`, or'ed.
    pub flags: u32,
}

/// A stretch of contiguous host memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_run {
    /// The user address of its first byte.
    pub ua: u64,
    /// Where the device finds it.
    pub host: u64,
    /// How long it is.
    pub bytes: u64,
}

/// So many are one holder's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_held {
    /// Whose.
    pub holder: prereg_holder,
    /// How many.
    pub count: u64,
}

pub(crate) fn held_of(held: &HolderTotal) -> prereg_held {
    prereg_held { holder: holder_of(held.holder), count: held.count }
}

pub(crate) fn region_of(state: &RegionState) -> prereg_region {
    let device = if state.device { PREREG_REGION_DEVICE } else { 0 };
    let draining = if state.draining { PREREG_REGION_DRAINING } else { 0 };
    prereg_region {
        ua: state.ua.raw(),
        bytes: state.bytes,
        pages: state.pages,
        used: state.used,
        mapped: state.kernel_mapped(),
        metadata_bytes: state.metadata_bytes,
        largest_page: state.largest_page.get(),
        flags: device | draining,
    }
}
