//! The books of an address space: which spans are taken, by what, and who sits where. All under the writers' lock.
//!
//! A span is *coming* while its pages are charged and pinned (without the lock), *here* once published, *going* while they
//! are unpinned. Whoever wants a span that is coming in just his shape, or one that is going, waits; any other intersection
//! is refused. So no page is ever pinned twice by two callers that race.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use crate::addr::UserRange;
use crate::lookup::Snapshot;
use crate::port::PinId;
use crate::publish::{Retired, Seat};
use crate::region::{Home, SharedRegion};
use crate::slots::MAX_SLOTS;
use crate::tally::{Held, Holder, Tally};

/// What a span is taken by.
pub(crate) enum Span {
    /// Being charged and pinned.
    Coming(UserRange),
    /// Published; perhaps draining.
    Here(Entry),
    /// Being unpinned.
    Going(UserRange),
}

impl Span {
    pub(crate) fn range(&self) -> UserRange {
        match self {
            Self::Coming(range) | Self::Going(range) => *range,
            Self::Here(entry) => entry.region.range,
        }
    }
}

/// What the books say of one region.
pub(crate) struct Entry {
    pub(crate) region: SharedRegion,
    /// `None` for device memory.
    pub(crate) pin: Option<PinId>,
    pub(crate) charged: u64,
    /// Registrations. 0 only while draining.
    pub(crate) used: u64,
    /// The registrations by holder.
    pub(crate) claims: Vec<Held>,
    /// Keeps the memory mapped.
    pub(crate) keep: Option<Arc<dyn Any + Send + Sync>>,
    /// A draining region keeps its address space's insides alive, so that the last mapping finds somebody to release it.
    pub(crate) keepalive: Option<Arc<dyn Home>>,
}

impl Entry {
    pub(crate) fn claim(&mut self, holder: Holder) {
        self.used += 1;
        match self.claims.iter_mut().find(|held| held.holder == holder) {
            Some(held) => held.count += 1,
            None => self.claims.push(Held { holder, count: 1 }),
        }
    }

    pub(crate) fn disclaim(&mut self, holder: Holder) {
        self.used -= 1;
        if let Some(index) = self.claims.iter().position(|held| held.holder == holder) {
            self.claims[index].count -= 1;
            if self.claims[index].count == 0 {
                self.claims.swap_remove(index);
            }
        }
    }
}

/// A translator's place: the snapshot it uses and what it holds.
pub(crate) struct Station {
    pub(crate) seat: Seat<Snapshot>,
    pub(crate) tally: Tally,
    pub(crate) house: Arc<Tally>,
}

/// The books.
#[derive(Default)]
pub(crate) struct Books {
    /// Disjoint, by start address.
    pub(crate) spans: BTreeMap<u64, Span>,
    pub(crate) stations: Vec<Arc<Station>>,
    /// One tally a holder for units that are given back without a translator.
    houses: BTreeMap<Holder, Arc<Tally>>,
    pub(crate) retired: Retired<Snapshot>,
    /// Regions that are gone from the books and may still be listed by a snapshot.
    graveyard: Vec<SharedRegion>,
    free_slots: Vec<u32>,
    /// Slots ever handed out.
    pub(crate) slots: usize,
    last_id: u64,
    /// The owner is gone: nothing is registered any more.
    pub(crate) closed: bool,
    pub(crate) pinned_pages: u64,
    pub(crate) charged_pages: u64,
    pub(crate) pins: u64,
    pub(crate) unpins: u64,
}

impl Books {
    /// The span that shares a byte with `range`. Spans are disjoint, so only the last one that starts at or before the end
    /// of `range` can be the one nearest to it.
    pub(crate) fn intersecting(&mut self, range: UserRange) -> Option<&mut Span> {
        let (_, span) = self.spans.range_mut(..=range.last().raw()).next_back()?;
        span.range().intersects(range).then_some(span)
    }

    /// The entry of region `id` that starts at `first`.
    pub(crate) fn entry(&mut self, first: u64, id: u64) -> Option<&mut Entry> {
        match self.spans.get_mut(&first) {
            Some(Span::Here(entry)) if entry.region.id == id => Some(entry),
            _ => None,
        }
    }

    /// Takes the entry of region `id` out and leaves its span going.
    pub(crate) fn take(&mut self, first: u64, id: u64) -> Option<Entry> {
        let span = self.spans.get_mut(&first)?;
        match span {
            Span::Here(entry) if entry.region.id == id => {}
            _ => return None,
        }
        let going = Span::Going(span.range());
        let Span::Here(entry) = core::mem::replace(span, going) else { return None };
        self.graveyard.push(entry.region.clone());
        Some(entry)
    }

    /// A new region's number.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A slot that no snapshot names, and room for it everywhere. `None` when there is none or no memory for it.
    pub(crate) fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free_slots.pop() {
            return Some(slot);
        }
        if self.slots == MAX_SLOTS {
            return None;
        }
        let slots = self.slots + 1;
        // So that giving a slot back never allocates.
        self.free_slots.try_reserve(slots).ok()?;
        let grown = self.stations.iter().all(|station| station.tally.grow(slots))
            && self.houses.values().all(|house| house.grow(slots));
        if !grown {
            return None;
        }
        self.slots = slots;
        u32::try_from(slots - 1).ok()
    }

    pub(crate) fn give_slot(&mut self, slot: u32) {
        self.free_slots.push(slot);
    }

    /// Frees the slots of gone regions that no snapshot lists any more. Only snapshots and this list own a gone region, and
    /// snapshots are made and freed under the same lock, so a count of one is ours for good.
    pub(crate) fn sweep(&mut self) {
        let free_slots = &mut self.free_slots;
        self.graveyard.retain(|region| {
            let listed = Arc::strong_count(region) > 1;
            if !listed {
                free_slots.push(region.slot);
            }
            listed
        });
    }

    /// Old snapshots and gone regions that cannot be freed yet.
    pub(crate) fn unreclaimed(&self) -> usize {
        self.graveyard.len()
    }

    /// The house tally of `holder`, made if need be. `None` without memory.
    pub(crate) fn house(&mut self, holder: Holder) -> Option<Arc<Tally>> {
        if let Some(house) = self.houses.get(&holder) {
            return Some(house.clone());
        }
        let house = Arc::new(Tally::new(holder));
        if !house.grow(self.slots) {
            return None;
        }
        // Houses of holders that are gone and hold nothing would pile up as containers come and go.
        self.houses.retain(|_, house| Arc::strong_count(house) > 1 || !house.is_empty());
        self.houses.insert(holder, house.clone());
        Some(house)
    }

    /// Who holds mappings of the region in `slot`.
    pub(crate) fn holders(&self, slot: u32) -> Vec<Held> {
        let mut sums: BTreeMap<Holder, i64> = BTreeMap::new();
        for house in self.houses.values() {
            *sums.entry(house.holder).or_default() += house.value(slot);
        }
        for station in &self.stations {
            *sums.entry(station.tally.holder).or_default() += station.tally.value(slot);
        }
        sums.into_iter()
            .filter_map(|(holder, sum)| {
                u64::try_from(sum).ok().filter(|&count| count > 0).map(|count| Held { holder, count })
            })
            .collect()
    }
}
