//! What registering takes: the address space, the policy, the question whether pins still hold, and the counts of it all.

use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{AddressKind, AddressSpace};
use prereg_linux::{PageResidency, SharedError, SharedMemory};

use super::notes::Notes;
use super::policy::MemoryPolicy;

/// What registering takes; shared by all files of a store.
#[derive(Debug)]
pub(super) struct Registrar {
    pub(super) space: AddressSpace,
    pub(super) policy: MemoryPolicy,
    presence: Asked,
    pub(super) counts: Counts,
    pub(super) notes: Notes,
}

/// Whether pins still hold.
#[derive(Debug)]
enum Asked {
    Of(PageResidency),
    /// It cannot be known: there is no page map.
    Nobody,
    /// Nothing is pinned by this back end, so nothing can stop to hold.
    Nothing,
}

/// A number for reports, and a hint whether a look at the files is worth it.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

// Relaxed, all: nothing is ordered by it.
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
    /// DMA_MAPs that found all their memory registered.
    pub(super) shared: Count,
    /// Stretches found stale.
    pub(super) stale: Count,
    /// Stale pieces that wait for their mappings to go.
    pub(super) waiting: Count,
    /// DMA_MAPs refused for want of room.
    pub(super) refused_maps: Count,
    /// Pins after the reply that failed.
    pub(super) failed_pins: Count,
}

impl Registrar {
    pub(super) fn new(space: AddressSpace, policy: MemoryPolicy) -> Self {
        let presence = match space.address_kind() {
            AddressKind::Invented | AddressKind::Device => Asked::Nothing,
            _ => PageResidency::open().map_or(Asked::Nobody, Asked::Of),
        };
        Self { space, policy, presence, counts: Counts::default(), notes: Notes::default() }
    }

    /// The shortest stretch of `memory` that has every page of the `bytes` bytes from `offset` on that is not the file's any
    /// more.
    pub(super) fn gone(
        &self,
        memory: &SharedMemory,
        offset: u64,
        bytes: u64,
    ) -> Result<Option<(u64, u64)>, SharedError> {
        match &self.presence {
            Asked::Of(presence) => presence.lost_range(memory, offset, bytes),
            Asked::Nobody => Ok(Some((offset, bytes))),
            Asked::Nothing => Ok(None),
        }
    }

    /// Whether anything is waiting to be released that nothing shows of any more.
    pub(super) fn has_stale(&self) -> bool {
        self.counts.waiting.get() > 0
    }
}
