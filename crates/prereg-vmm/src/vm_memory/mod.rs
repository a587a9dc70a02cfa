//! Adapters for the `vm-memory` crate.

mod held_memory;
mod iommu;
mod iotlb;
mod ram;

pub use held_memory::{HeldMemory, HeldSlices};
pub use iommu::{IommuMapError, PinnedIommu, Translated};
pub use iotlb::{Invalidation, IotlbTranslation, IotlbUpdateError, PinnedIotlb};
pub use ram::{RamError, RamRegion, RegisteredRam};
