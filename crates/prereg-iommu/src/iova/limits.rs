//! Limits of a device's address space, and ranges checked against them.

use core::sync::atomic::{AtomicU64, Ordering};

use prereg::{Iova, PageShift};

use super::error::IovaMapError;

/// Limits of a device's address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaLimits {
    /// The smallest page: addresses and lengths are multiples of it.
    pub page: PageShift,
    /// Live mappings.
    pub mappings: u32,
    /// Segments of registered memory of all mappings together, including unmapped ones that wait for accesses. Memory on
    /// demand counts its blocks when it is mapped.
    pub segments: u64,
    /// The aperture: the first and last address that can be mapped.
    pub aperture: (Iova, Iova),
}

impl Default for IovaLimits {
    /// 4 KiB pages, 65,535 mappings as in the kernel (`dma_entry_limit` of `vfio_iommu_type1.c`), 262,144 segments, every
    /// address.
    fn default() -> Self {
        Self {
            page: PageShift::K4,
            mappings: 65_535,
            segments: 1 << 18,
            aperture: (Iova::new(0), Iova::new(u64::MAX)),
        }
    }
}

/// The segments of memory of all mappings of one address space. Each costs memory of this process, whatever its size.
#[derive(Debug)]
pub(super) struct SegmentCount {
    used: AtomicU64,
    limit: u64,
}

impl SegmentCount {
    pub(super) fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    pub(super) fn used(&self) -> u64 {
        // Relaxed, here and below: a count that publishes nothing.
        self.used.load(Ordering::Relaxed)
    }

    /// Adds `segments` if the limit allows it.
    pub(super) fn add(&self, segments: u64) -> Result<(), SegmentLimit> {
        let more = |used: u64| used.checked_add(segments).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(used) => Err(SegmentLimit { segments, used, limit: self.limit }),
        }
    }

    pub(super) fn subtract(&self, segments: u64) {
        self.used.fetch_sub(segments, Ordering::Relaxed);
    }
}

/// The limit of [`SegmentCount`] would be exceeded.
#[derive(Clone, Copy, Debug)]
pub(super) struct SegmentLimit {
    segments: u64,
    used: u64,
    limit: u64,
}

impl From<SegmentLimit> for IovaMapError {
    fn from(SegmentLimit { segments, used, limit }: SegmentLimit) -> Self {
        Self::SegmentLimit { segments, used, limit }
    }
}

/// A range of I/O virtual addresses that is not empty and does not pass 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct IovaRange {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl IovaRange {
    /// `bytes` bytes from `iova` on; `None` if empty or beyond 2^64.
    pub(super) fn new(iova: Iova, bytes: u64) -> Option<Self> {
        let last = iova.raw().checked_add(bytes.checked_sub(1)?)?;
        Some(Self { first: iova.raw(), last })
    }

    /// Like [`new`](Self::new), of whole pages.
    pub(super) fn aligned(iova: Iova, bytes: u64, page: PageShift) -> Result<Self, IovaMapError> {
        if (iova.raw() | bytes) & page.mask() != 0 {
            return Err(IovaMapError::Misaligned { iova, bytes });
        }
        if bytes == 0 {
            return Err(IovaMapError::Empty { iova });
        }
        Self::new(iova, bytes).ok_or(IovaMapError::Wraps { iova, bytes })
    }

    /// The length; it fits 64 bits because the range was made from a 64-bit length.
    pub(super) fn bytes(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }
}
