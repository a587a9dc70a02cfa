//! Adapters for the `vm-memory` crate.

mod iommu;
mod ram;

pub use iommu::{PinnedIommu, Translated};
pub use ram::{RamError, RegisteredRam};
