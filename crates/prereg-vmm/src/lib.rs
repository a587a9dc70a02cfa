//! Adapters that put prereg into the VMMs that exist. Each is a feature, off by default.
//!
//! - `vm-memory`: `vm_memory::RegisteredRam` registers a `GuestMemoryMmap` region by region; `vm_memory::PinnedIommu` is
//!   the `Iommu` of an `IommuMemory`: it translates I/O virtual addresses, and what it translated stays mapped and pinned
//!   as long as the iterator over it lives.
//! - `vfio-ioctls`: `vfio::PinnedVfio` is a `VfioOps` around another one. A VMM that takes `Arc<dyn VfioOps>` uses it in
//!   that one's place; pins and mappings then outlast the devices.
//! - `openvmm`: `openvmm::PinnedTarget` is a `DmaTarget` in the shape of openvmm's.
//!
//! The last two stand on [`KeptMappings`], which needs no feature: the mappings of one device address space, each holding
//! its memory pinned, put into whatever [`DmaContainer`] really maps, and put in again when that one forgot them.
//!
//! Who owns whom: a [`KeptMappings`] owns its mappings and, for memory that nobody else registered, the registrations; it
//! shares the `AddressSpace` and the container. Nothing here opens a file or starts a thread.

mod attached;
mod container;
mod error;
mod kept;
#[cfg(feature = "openvmm")]
pub mod openvmm;
#[cfg(feature = "vfio-ioctls")]
pub mod vfio;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;

pub use attached::Attached;
pub use container::DmaContainer;
pub use error::KeptError;
pub use kept::{Gaps, KeptMapping, KeptMappings, KeptState, What};

/// The page on how VMMs are moved: its code is compiled as this crate's tests are.
#[cfg(all(doctest, feature = "vm-memory", feature = "vfio-ioctls", feature = "openvmm"))]
#[doc = include_str!("../../../docs/moving-a-vmm.md")]
mod moving_a_vmm {}
