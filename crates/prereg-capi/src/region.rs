//! The state of a region, as plain structs.

use prereg::{HolderTotal, RegionState};

use crate::record::records;
use crate::words::holder_kind;

/// Device memory: neither pinned nor charged.
pub const PREREG_REGION_DEVICE: u32 = 1;
/// No registration is left, or it waits to be idle: no new mappings, released when the last one goes.
pub const PREREG_REGION_DRAINING: u32 = 2;

/// One region as it was at some moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_region {
    /// sizeof(struct prereg_region), set by the caller.
    pub size: usize,
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
    /// sizeof(struct prereg_run), set by the caller; in an array, in the first element.
    pub size: usize,
    /// The user address of its first byte.
    pub ua: u64,
    /// The host address, for the device.
    pub host: u64,
    /// How long it is.
    pub bytes: u64,
}

/// So many are one holder's.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_held {
    /// sizeof(struct prereg_held), set by the caller; in an array, in the first element.
    pub size: usize,
    /// Number of the holder.
    pub container: u64,
    /// Kind of the holder, a `PREREG_HOLDER_...`.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
    /// How many.
    pub count: u64,
}

pub(crate) fn held_of(held: &HolderTotal) -> prereg_held {
    prereg_held {
        size: 0,
        container: held.holder.container,
        kind: holder_kind(held.holder),
        reserved: 0,
        count: held.count,
    }
}

records!(prereg_region, prereg_run, prereg_held);

pub(crate) fn region_of(state: &RegionState) -> prereg_region {
    let device = if state.device { PREREG_REGION_DEVICE } else { 0 };
    let draining = if state.draining { PREREG_REGION_DRAINING } else { 0 };
    prereg_region {
        size: 0,
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
