//! What a device's address space is bounded by, and ranges proved against it.

use core::sync::atomic::{AtomicU64, Ordering};

use prereg::{Iova, PageShift};

use super::error::IovaMapError;

/// What a device's address space is bounded by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaLimits {
    /// The smallest page: addresses and lengths are multiples of it.
    pub page: PageShift,
    /// Mappings at a time.
    pub mappings: u32,
    /// Pieces of registered memory that all mappings together may lead to, those included that wait for their accesses after
    /// an unmap. Memory that is supplied on demand counts by its pieces when it is mapped.
    pub pieces: u64,
    /// The first and the last address that can be mapped.
    pub aperture: (Iova, Iova),
}

impl Default for IovaLimits {
    /// 4 KiB pages, 65,535 mappings as in the kernel (`dma_entry_limit` of `vfio_iommu_type1.c`), 262,144 pieces, every
    /// address.
    fn default() -> Self {
        Self {
            page: PageShift::K4,
            mappings: 65_535,
            pieces: 1 << 18,
            aperture: (Iova::new(0), Iova::new(u64::MAX)),
        }
    }
}

/// How many pieces of memory the mappings of one address space lead to. Each costs memory of this process, whatever its size.
#[derive(Debug)]
pub(super) struct PieceCount {
    used: AtomicU64,
    limit: u64,
}

impl PieceCount {
    pub(super) fn new(limit: u64) -> Self {
        Self { used: AtomicU64::new(0), limit }
    }

    pub(super) fn used(&self) -> u64 {
        // Relaxed, here and below: a number that publishes nothing.
        self.used.load(Ordering::Relaxed)
    }

    /// Counts `pieces` more, if there may be so many.
    pub(super) fn add(&self, pieces: u64) -> Result<(), PieceLimit> {
        let more = |used: u64| used.checked_add(pieces).filter(|&sum| sum <= self.limit);
        match self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more) {
            Ok(_) => Ok(()),
            Err(used) => Err(PieceLimit { pieces, used, limit: self.limit }),
        }
    }

    pub(super) fn subtract(&self, pieces: u64) {
        self.used.fetch_sub(pieces, Ordering::Relaxed);
    }
}

/// There would be too many pieces.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceLimit {
    pieces: u64,
    used: u64,
    limit: u64,
}

impl From<PieceLimit> for IovaMapError {
    fn from(PieceLimit { pieces, used, limit }: PieceLimit) -> Self {
        Self::PieceLimit { pieces, used, limit }
    }
}

/// A range of I/O virtual addresses that is not empty and does not pass 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Span {
    /// `bytes` bytes from `iova` on; `None` when there is none or they pass 2^64.
    pub(super) fn new(iova: Iova, bytes: u64) -> Option<Self> {
        let last = iova.raw().checked_add(bytes.checked_sub(1)?)?;
        Some(Self { first: iova.raw(), last })
    }

    /// The same, made of whole pages.
    pub(super) fn aligned(iova: Iova, bytes: u64, page: PageShift) -> Result<Self, IovaMapError> {
        if (iova.raw() | bytes) & page.mask() != 0 {
            return Err(IovaMapError::Misaligned { iova, bytes });
        }
        if bytes == 0 {
            return Err(IovaMapError::Empty { iova });
        }
        Self::new(iova, bytes).ok_or(IovaMapError::Wraps { iova, bytes })
    }

    /// Its length. A number of 64 bits holds it, because it was made from one.
    pub(super) fn bytes(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }
}
