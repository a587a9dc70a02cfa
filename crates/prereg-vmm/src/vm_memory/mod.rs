//! Adapters for the `vm-memory` crate.

mod held_memory;
mod iommu;
mod iotlb;
mod ram;
mod region_index;

pub use held_memory::{HeldMemory, HeldSlices};
pub use iommu::{IommuMapError, PinnedIommu, Translated};
pub use iotlb::{Invalidation, IotlbTranslation, IotlbUpdateError, PinnedIotlb};
pub use ram::{RamError, RegisteredRam};
pub use region_index::RamRegion;
