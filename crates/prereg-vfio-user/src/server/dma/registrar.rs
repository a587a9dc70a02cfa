//! What registering takes: the address space, the policy, the question whether pins still hold, and the counts of it all.

use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{AddressKind, AddressSpace};
use prereg_linux::{Presence, SharedError, SharedMemory};

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
    Of(Presence),
    /// It cannot be known: there is no page map.
    Nobody,
    /// Nothing is pinned by this back end, so nothing can stop to hold.
    Nothing,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Registrations made.
    registrations: AtomicU64,
    /// DMA_MAPs that found all their memory registered.
    shared: AtomicU64,
    /// Stretches found stale.
    stale: AtomicU64,
    /// Stale pieces that wait for their mappings to go.
    waiting: AtomicU64,
    /// DMA_MAPs refused for want of room.
    refused: AtomicU64,
    /// Pins after the answer that failed.
    failed: AtomicU64,
}

impl Registrar {
    pub(super) fn new(space: AddressSpace, policy: MemoryPolicy) -> Self {
        let presence = match space.address_kind() {
            AddressKind::Invented | AddressKind::Device => Asked::Nothing,
            _ => Presence::open().map_or(Asked::Nobody, Asked::Of),
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
            Asked::Of(presence) => presence.gone(memory, offset, bytes),
            Asked::Nobody => Ok(Some((offset, bytes))),
            Asked::Nothing => Ok(None),
        }
    }

    /// Whether anything is waiting to be released that nothing shows of any more.
    pub(super) fn has_stale(&self) -> bool {
        self.counts.waiting() > 0
    }
}

// Relaxed, all: numbers for reports, and a hint whether a look at the files is worth it.
impl Counts {
    pub(super) fn registered(&self) {
        self.registrations.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Relaxed)
    }
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn maps_refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
    pub(super) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn pins_failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
    pub(super) fn found_registered(&self) {
        self.shared.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn shared(&self) -> u64 {
        self.shared.load(Ordering::Relaxed)
    }
    pub(super) fn found_stale(&self) {
        self.stale.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn stale(&self) -> u64 {
        self.stale.load(Ordering::Relaxed)
    }
    pub(super) fn waits(&self) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn waits_no_more(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
    pub(super) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}
