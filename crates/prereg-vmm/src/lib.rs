//! Adapters that put prereg into existing VMMs. Each is a feature, off by default.
//!
//! - `vm-memory`: `vm_memory::RegisteredRam` registers a `GuestMemoryMmap` region by region. `vm_memory::PinnedIommu` and
//!   `vm_memory::PinnedIotlb` are `Iommu`s for an `IommuMemory`; what they translate stays pinned and is waited for by an
//!   unmap. `vm_memory::HeldMemory` holds every translation made through it, for virtio-queue's `Reader` and `Writer`.
//! - `vfio-ioctls`: `vfio::PinnedVfio` is a `VfioOps` around another one. A VMM that takes `Arc<dyn VfioOps>` uses it in
//!   that one's place; pins and mappings then outlast the devices. `vfio-cdev` adds `VfioIommufd`.
//! - `openvmm`: `openvmm::PinnedTarget` is a `DmaTarget` in the shape of openvmm's.
//!
//! The last two are built on [`PersistentMappings`], which needs no feature: the mappings of one device address space, each
//! holding its memory pinned, made in a [`DmaContainer`] and made again when that lost them.
//!
//! Ownership: a [`PersistentMappings`] owns its mappings and the registrations it made for them; it shares the `AddressSpace`
//! and the container. Nothing here opens a file or starts a thread.

mod attached;
mod container;
mod dma_mapping;
mod error;
mod mapping_table;
#[cfg(feature = "openvmm")]
pub mod openvmm;
mod persistent_mappings;
mod pins;
#[cfg(feature = "vfio-ioctls")]
pub mod vfio;
#[cfg(feature = "vm-memory")]
pub mod vm_memory;

pub use attached::Attached;
pub use container::DmaContainer;
pub use dma_mapping::{DmaMapping, MappedMemory, MemoryKind};
pub use error::DmaMapError;
pub use persistent_mappings::{MappingsState, PersistentMappings};

/// The guide to moving a VMM: its code is compiled with this crate's tests.
#[cfg(all(doctest, feature = "vm-memory", feature = "vfio-ioctls", feature = "openvmm"))]
#[doc = include_str!("../../../docs/moving-a-vmm.md")]
mod moving_a_vmm {}
