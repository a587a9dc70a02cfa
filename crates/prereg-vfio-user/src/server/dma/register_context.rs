//! The context of registrations: address space, policy, check of pins, and counts.

use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{AddressKind, AddressSpace};
use prereg_linux::{PageResidency, SharedError, SharedMemory};

use super::policy::MemoryPolicy;

/// The context of registrations, shared by all files of a store.
#[derive(Debug)]
pub(super) struct RegisterContext {
    pub(super) space: AddressSpace,
    pub(super) policy: MemoryPolicy,
    residency: PinCheck,
    pub(super) counts: Counts,
}

/// A check whether pinned pages are still the file's.
#[derive(Debug)]
enum PinCheck {
    PageMap(PageResidency),
    /// This process may not read its page map.
    Unavailable,
    /// Not needed: the back end pins no pages.
    NotNeeded,
}

/// A count for reports, and a hint whether visiting the files is worth it.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

// Relaxed: nothing is ordered by it.
impl Count {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn take(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Registrations made.
    pub(super) registrations: Count,
    /// DMA_MAPs of registered memory.
    pub(super) shared: Count,
    /// Ranges found stale.
    pub(super) stale: Count,
    /// Stale extents that are still mapped.
    pub(super) waiting: Count,
    /// DMA_MAPs refused for lack of room.
    pub(super) refused_maps: Count,
    /// Failed pins after the reply.
    pub(super) failed_pins: Count,
}

impl RegisterContext {
    pub(super) fn new(space: AddressSpace, policy: MemoryPolicy) -> Self {
        let residency = match space.address_kind() {
            AddressKind::Invented | AddressKind::Device => PinCheck::NotNeeded,
            _ => PageResidency::open().map_or(PinCheck::Unavailable, PinCheck::PageMap),
        };
        Self { space, policy, residency, counts: Counts::default() }
    }

    /// The shortest range that covers every page of `bytes` bytes at `offset` that is no longer the file's.
    pub(super) fn gone(
        &self,
        memory: &SharedMemory,
        offset: u64,
        bytes: u64,
    ) -> Result<Option<(u64, u64)>, SharedError> {
        match &self.residency {
            PinCheck::PageMap(residency) => residency.lost_range(memory, offset, bytes),
            PinCheck::Unavailable => Ok(Some((offset, bytes))),
            PinCheck::NotNeeded => Ok(None),
        }
    }

    /// Whether any extent is stale.
    pub(super) fn has_stale(&self) -> bool {
        self.counts.waiting.get() > 0
    }
}
