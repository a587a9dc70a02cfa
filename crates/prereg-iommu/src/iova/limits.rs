//! What a device's address space is bounded by, and ranges proved against it.

use prereg::{Iova, PageShift};

use super::error::IovaMapError;

/// What a device's address space is bounded by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaLimits {
    /// The smallest page: addresses and lengths are multiples of it.
    pub page: PageShift,
    /// Mappings at a time.
    pub mappings: u32,
    /// The first and the last address that can be mapped.
    pub aperture: (Iova, Iova),
}

impl Default for IovaLimits {
    /// 4 KiB pages, 65,535 mappings as in the kernel (`dma_entry_limit` of `vfio_iommu_type1.c`), every address.
    fn default() -> Self {
        Self { page: PageShift::K4, mappings: 65_535, aperture: (Iova::new(0), Iova::new(u64::MAX)) }
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
