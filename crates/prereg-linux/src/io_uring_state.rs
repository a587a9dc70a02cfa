//! What the io_uring back end has in use, for reports.

/// What an [`IoUring`](crate::IoUring) has in use, as plain numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct IoUringState {
    /// Rings made.
    pub rings: u32,
    /// Slots taken over all rings.
    pub slots_used: u32,
    /// Slots free over all rings made; another ring is made when they run out.
    pub slots_free: u32,
    /// Pins that succeeded.
    pub pin_calls: u64,
    /// Pins that were released.
    pub unpin_calls: u64,
    /// Bytes pinned now, each page once a region.
    pub pinned_bytes: u64,
    /// Seconds that somebody waited longer for the kernel to let go than it ever should take.
    pub overdue_seconds: u64,
    /// Releases of pins that were not held: a caller's defect, ignored.
    pub stray_unpins: u64,
    /// Slots that the kernel would not empty; they are never used again.
    pub stuck_slots: u64,
    /// I/O rings that have copies of the slots.
    pub io_rings: u32,
}
