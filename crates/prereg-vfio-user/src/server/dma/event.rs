//! The events of a client's memory.

use prereg::Iova;
use prereg_iommu::iova::IovaMapError;

use super::error::MapMemoryError;

/// An event of a client's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MemoryEvent {
    /// A DMA_MAP was refused: the device cannot access this memory.
    MapRefused {
        /// The first I/O virtual address.
        iova: Iova,
        /// The length.
        bytes: u64,
        /// The reason.
        error: MapMemoryError,
    },
    /// A DMA_UNMAP was refused: the memory stays mapped.
    UnmapRefused {
        /// The first I/O virtual address.
        iova: Iova,
        /// The length.
        bytes: u64,
        /// The reason.
        error: IovaMapError,
    },
    /// Mapped memory could not be pinned: the device's accesses to it fail.
    PinFailed {
        /// The reason.
        error: MapMemoryError,
    },
    /// No room to pin more of a mapping in the background: the rest is tried again at the device's first access.
    BackgroundEnded {
        /// The reason.
        error: MapMemoryError,
    },
}
