//! The state of an address space as plain data, for reports.

use alloc::vec::Vec;

use crate::addr::{PageShift, UserAddr};
use crate::lookup::holder::HolderTotal;
use crate::table_memory::TableMemoryState;

/// One region as it was at some moment.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct RegionState {
    /// The first byte.
    pub ua: UserAddr,
    /// The length in bytes.
    pub bytes: u64,
    /// The length in system pages.
    pub pages: u64,
    /// Registrations.
    pub used: u64,
    /// Live mappings.
    pub mapped: u64,
    /// The largest page it can be mapped with.
    pub largest_page: PageShift,
    /// Device memory: not pinned, not charged.
    pub device: bool,
    /// First registered by a holder of [`HolderKind::OnDemand`](crate::HolderKind::OnDemand).
    pub on_demand: bool,
    /// No registration is left: no new mappings, released with the last one.
    pub draining: bool,
    /// Registrations by holder.
    pub registrations: Vec<HolderTotal>,
    /// Mappings by holder. Exact when no thread maps or unmaps meanwhile.
    pub mappings: Vec<HolderTotal>,
    /// Memory that describes the region's pages, in bytes.
    pub metadata_bytes: u64,
}

impl RegionState {
    /// The kernel's counter of the same name: live mappings + 1, so that 1 means registered and not mapped, and 0 released
    /// (docs/specification.md 1.3).
    #[must_use]
    pub const fn kernel_mapped(&self) -> u64 {
        self.mapped.saturating_add(1)
    }
}

/// An address space as it was at some moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SpaceState {
    /// The regions by start address.
    pub regions: Vec<RegionState>,
    /// System pages pinned for the regions.
    pub pinned_pages: u64,
    /// System pages charged for the regions.
    pub charged_pages: u64,
    /// Ranges pinned since the beginning.
    pub pins: u64,
    /// Ranges unpinned since the beginning.
    pub unpins: u64,
    /// Live translators.
    pub translators: u64,
    /// Released regions whose headers and page tables are kept because a translator may still use them.
    pub unreclaimed: u64,
    /// The number of `unreclaimed` regions that the translators of each holder keep; one that two holders keep counts
    /// for both. A translator stops keeping them when it is [refreshed](crate::Translator::refresh) or dropped.
    pub retained_by: Vec<HolderTotal>,
    /// Memory of the tables that translators touch, and how far it is locked.
    pub tables: TableMemoryState,
}
