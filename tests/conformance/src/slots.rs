//! The regions of a process without a container: slots of registrations and mappings.

use std::collections::BTreeMap;
use std::sync::Arc;

use prereg::{AddressSpace, HostAddr, Mapping, Registration, Translator, UserAddr};

/// Number of slots.
const SLOTS: i32 = 64;

/// A region in a slot.
pub(super) struct Slot {
    pub(super) mappings: Vec<Mapping>,
    /// Never empty.
    pub(super) registrations: Vec<Registration>,
    /// The host address of a device's memory.
    pub(super) device: Option<HostAddr>,
}

impl Slot {
    pub(super) fn new(registration: Registration, device: Option<HostAddr>) -> Self {
        Self { mappings: Vec::new(), registrations: vec![registration], device }
    }
}

/// The regions of a process.
pub(super) struct Regions {
    pub(super) space: Arc<AddressSpace>,
    pub(super) translator: Translator,
    pub(super) slots: BTreeMap<i32, Slot>,
    /// Regions without a slot, kept for the life of the process.
    pub(super) nameless: Vec<Slot>,
}

impl Regions {
    pub(super) fn new(space: Arc<AddressSpace>) -> Self {
        let translator = space.translator();
        Self { space, translator, slots: BTreeMap::new(), nameless: Vec::new() }
    }

    pub(super) fn put_in(&mut self, slot: i32, new: Slot) {
        let old = if (0..SLOTS).contains(&slot) { self.slots.insert(slot, new) } else { Some(new) };
        self.nameless.extend(old);
    }

    /// The lowest slot of the region at `ua`, and its name in transcripts.
    pub(super) fn name_of(&self, ua: UserAddr, bytes: u64) -> (Option<i32>, String) {
        let same = |slot: &&Slot| {
            slot.registrations.first().is_some_and(|held| held.ua() == ua && held.bytes() == bytes)
        };
        match self.slots.iter().find(|(_, slot)| same(slot)) {
            Some((&number, _)) => (Some(number), format!("slot={number}")),
            None => (None, "slot=-2".to_owned()),
        }
    }
}
