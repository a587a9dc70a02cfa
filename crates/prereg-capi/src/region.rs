//! The state of a region, as plain structs.

use prereg::{HolderTotal, RegionState};

use crate::record::records;
use crate::types::holder_kind;

/// Device memory: neither pinned nor charged.
pub const PREREG_REGION_DEVICE: u32 = 1;
/// Without registrations, closed for new mappings, released with the last mapping.
pub const PREREG_REGION_DRAINING: u32 = 2;

/// The state of a region at one moment.
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
    /// The live mappings + 1, as the kernel counts them.
    pub mapped: u64,
    /// Memory for the region's tables, in bytes.
    pub metadata_bytes: u64,
    /// The largest page with which it can be mapped, as a power of two.
    pub largest_page: u32,
    /// `PREREG_REGION_...`, or'ed.
    pub flags: u32,
}

/// A run of contiguous host memory.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_run {
    /// sizeof(struct prereg_run), set by the caller; in an array, in the first element.
    pub size: usize,
    /// The user address of its first byte.
    pub ua: u64,
    /// The host address, for the device.
    pub host: u64,
    /// Its length.
    pub bytes: u64,
}

/// The registrations or mappings of one holder.
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
    /// Their number.
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
