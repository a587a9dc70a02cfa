//! Counters of the io_uring back end, for reports.

/// Counters of an [`IoUring`](crate::IoUring).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct IoUringState {
    /// Rings made.
    pub rings: u32,
    /// Slots in use over all rings.
    pub slots_used: u32,
    /// Free slots over all rings; when they run out, another ring is made.
    pub slots_free: u32,
    /// Successful pins.
    pub pin_calls: u64,
    /// Released pins.
    pub unpin_calls: u64,
    /// Bytes pinned now, each page once per region.
    pub pinned_bytes: u64,
    /// Seconds for which unpins waited longer than expected for the kernel to release pages.
    pub overdue_seconds: u64,
    /// Unpins of unknown pins, which are ignored: a defect of the caller.
    pub stray_unpins: u64,
    /// Slots that the kernel did not empty; they are never used again.
    pub stuck_slots: u64,
    /// Attached I/O rings.
    pub io_rings: u32,
}
