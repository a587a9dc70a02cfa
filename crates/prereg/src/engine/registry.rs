//! The registry of an address space: spans, readers, holders and slots. All of it is under the writers' lock.
//!
//! A span is *reserved* while its pages are charged and pinned (without the lock), *live* once published, and *unpinning*
//! while they are unpinned. A caller that asks for exactly a reserved range, or for an unpinning one, waits; any other
//! intersection is refused. So no page is pinned twice by two callers that race.
//!
//! A released region stays in `retired_regions`, with its slot, as long as a snapshot in use may name it. A snapshot names
//! the regions that were live when it was made and, as long as the current one has the same index, those that are added to
//! the index. So a region is named only by snapshots from its `first_generation` (that of the index it was added to) to its
//! `last_generation`.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use crate::addr::UserRange;
use crate::engine::reader::Reader;
use crate::lookup::holder::{Holder, HolderCounts, HolderTotal, ReleaseHook, SharedHolderCounts};
use crate::lookup::region::SharedRegion;
use crate::lookup::snapshot::Snapshot;
use crate::port::PinId;
use crate::sync::ThreadToken;
use crate::sync::hazard::Retired;
use crate::table_memory::SharedTableMemory;
use crate::table_memory::chunked::MAX_SLOTS;
use crate::table_memory::owned::TableBox;

/// A part of the address space that is in use.
pub(crate) enum Span {
    /// Being charged and pinned, by this thread.
    Reserved(UserRange, ThreadToken),
    /// Published; perhaps draining.
    Live(RegionEntry),
    /// Being unpinned, by this thread.
    Unpinning(UserRange, ThreadToken),
}

impl Span {
    /// A span that the calling thread charges and pins.
    pub(crate) fn reserved(range: UserRange) -> Self {
        Self::Reserved(range, ThreadToken::this())
    }

    pub(crate) fn range(&self) -> UserRange {
        match self {
            Self::Reserved(range, _) | Self::Unpinning(range, _) => *range,
            Self::Live(entry) => entry.region.range,
        }
    }

    pub(crate) fn live(&self) -> Option<&RegionEntry> {
        match self {
            Self::Live(entry) => Some(entry),
            _ => None,
        }
    }
}

/// The registry's entry of one live region.
pub(crate) struct RegionEntry {
    pub(crate) region: SharedRegion,
    /// `None` for device memory.
    pub(crate) pin: Option<PinId>,
    pub(crate) charged: u64,
    /// Registrations. 0 only while draining.
    pub(crate) used: u64,
    /// The registrations by holder.
    pub(crate) claims: Vec<HolderTotal>,
    /// Keeps the memory mapped.
    pub(crate) keep: Option<Arc<dyn Any + Send + Sync>>,
    /// Set when the address space is dropped: a region that is still mapped keeps the engine alive, so that the last unmap
    /// can release it.
    pub(crate) keepalive: Option<Arc<dyn ReleaseHook>>,
    /// The generation of the first snapshot that names it.
    pub(crate) first_generation: u64,
    /// While it drains: called when that ends.
    pub(crate) on_done: Vec<OnDone>,
}

/// A callback, called when it is dropped: without the lock. One that panics does not stop the others of its list.
pub(crate) struct OnDone(Option<Box<dyn FnOnce() + Send>>);

impl OnDone {
    pub(crate) fn new(callback: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(callback)))
    }
}

impl Drop for OnDone {
    fn drop(&mut self) {
        if let Some(callback) = self.0.take() {
            callback();
        }
    }
}

impl RegionEntry {
    pub(crate) fn claim(&mut self, holder: Holder) {
        self.used += 1;
        match self.claims.iter_mut().find(|held| held.holder == holder) {
            Some(held) => held.count += 1,
            None => self.claims.push(HolderTotal { holder, count: 1 }),
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

/// A released region that a snapshot in use may name.
struct RetiredRegion {
    region: SharedRegion,
    first_generation: u64,
    last_generation: u64,
}

/// Slots for which every reader has counters from the beginning. A power of two, as every later number.
const FIRST_CAPACITY: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    16
} else {
    256
};

/// The state of an address space under the writers' lock.
pub(crate) struct Registry {
    /// Disjoint, by start address.
    pub(crate) spans: BTreeMap<u64, Span>,
    pub(crate) readers: Vec<Arc<Reader>>,
    /// One for each holder.
    holder_counts: BTreeMap<Holder, SharedHolderCounts>,
    pub(crate) retired_snapshots: Retired<Snapshot, TableBox<Snapshot>>,
    /// The current snapshot's.
    pub(crate) generation: u64,
    /// The current snapshot does not list the live regions: there was no reader when they changed.
    pub(crate) snapshot_stale: bool,
    retired_regions: Vec<RetiredRegion>,
    free_slots: Vec<u32>,
    /// Slots allocated so far, including slot 0, which no region has: it is the value of an empty index entry.
    slots: usize,
    /// Slots for which every reader has counters.
    pub(crate) capacity: usize,
    last_id: u64,
    /// Regions without registrations.
    pub(crate) draining: u64,
    /// A thread looks for the end of drains that have callbacks.
    #[cfg(all(feature = "std", not(loom)))]
    pub(crate) is_watched: bool,
    pub(crate) pinned_pages: u64,
    pub(crate) charged_pages: u64,
    pub(crate) pins: u64,
    pub(crate) unpins: u64,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            spans: BTreeMap::new(),
            readers: Vec::new(),
            holder_counts: BTreeMap::new(),
            retired_snapshots: Retired::default(),
            generation: 0,
            snapshot_stale: false,
            retired_regions: Vec::new(),
            free_slots: Vec::new(),
            slots: 1,
            capacity: FIRST_CAPACITY,
            last_id: 0,
            draining: 0,
            #[cfg(all(feature = "std", not(loom)))]
            is_watched: false,
            pinned_pages: 0,
            charged_pages: 0,
            pins: 0,
            unpins: 0,
        }
    }
}

impl Registry {
    /// A span that shares a byte with `range`. Spans are disjoint and sorted, so if the last one that starts at or
    /// before the end of `range` shares none with it, no span does.
    pub(crate) fn intersecting(&mut self, range: UserRange) -> Option<&mut Span> {
        let (_, span) = self.spans.range_mut(..=range.last().raw()).next_back()?;
        span.range().intersects(range).then_some(span)
    }

    /// The entry of region `id` that starts at `first`.
    pub(crate) fn entry(&mut self, first: u64, id: u64) -> Option<&mut RegionEntry> {
        match self.spans.get_mut(&first) {
            Some(Span::Live(entry)) if entry.region.id == id => Some(entry),
            _ => None,
        }
    }

    /// Takes the entry of region `id` out and marks its span as unpinning.
    pub(crate) fn start_unpinning(&mut self, first: u64, id: u64) -> Option<RegionEntry> {
        let span = self.spans.get_mut(&first)?;
        if span.live()?.region.id != id {
            return None;
        }
        let unpinning = Span::Unpinning(span.range(), ThreadToken::this());
        let Span::Live(entry) = core::mem::replace(span, unpinning) else { return None };
        if entry.used == 0 {
            self.draining -= 1;
        }
        Some(entry)
    }

    /// The live entries, by start address.
    pub(crate) fn live(&self) -> impl Iterator<Item = &RegionEntry> + Clone {
        self.spans.values().filter_map(Span::live)
    }

    /// The number of a new region.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A slot that no snapshot in use names, with counters for it in every reader and holder. `None` without a free
    /// slot or without memory.
    pub(crate) fn allocate_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free_slots.pop() {
            return Some(slot);
        }
        if self.slots == MAX_SLOTS {
            return None;
        }
        let slots = self.slots + 1;
        // So that freeing a slot and retiring a region never allocate.
        self.free_slots.try_reserve(slots - self.free_slots.len()).ok()?;
        self.retired_regions.try_reserve(slots - self.retired_regions.len()).ok()?;
        if slots > self.capacity {
            let capacity = (self.capacity * 2).min(MAX_SLOTS);
            if !self.readers.iter().all(|reader| reader.grow(capacity)) {
                return None;
            }
            // A translator that was not refreshed since has shorter arrays, so it must not find the new slot in the
            // snapshot it uses.
            self.capacity = capacity;
            self.snapshot_stale = true;
        }
        if !self.holder_counts.values().all(|counts| counts.grow(slots)) {
            return None;
        }
        self.slots = slots;
        u32::try_from(slots - 1).ok()
    }

    pub(crate) fn free_slot(&mut self, slot: u32) {
        self.free_slots.push(slot);
    }

    /// Slots allocated so far.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Keeps a region that left the spans until no reader can know it.
    pub(crate) fn retire(&mut self, region: SharedRegion, first_generation: u64) {
        self.retired_regions.push(RetiredRegion {
            region,
            first_generation,
            last_generation: self.generation,
        });
    }

    /// The number of regions retired since the current snapshot was published.
    pub(crate) fn newly_retired(&self) -> usize {
        self.retired_regions
            .iter()
            .rev()
            .take_while(|retired| retired.last_generation == self.generation)
            .count()
    }

    /// Frees the slots and headers of retired regions that no snapshot in use names.
    pub(crate) fn reclaim(&mut self) {
        let Self {
            retired_regions, free_slots, retired_snapshots, generation, snapshot_stale, readers, ..
        } = self;
        // Without readers the current snapshot is unused until the next one is made.
        let current = (!(*snapshot_stale && readers.is_empty())).then_some(*generation);
        retired_regions.retain(|retired| {
            let names =
                |generation: u64| (retired.first_generation..=retired.last_generation).contains(&generation);
            let named = current.is_some_and(names)
                || retired_snapshots.iter().any(|snapshot| names(snapshot.generation));
            if !named {
                free_slots.push(retired.region.slot);
            }
            named
        });
    }

    /// The number of retired regions that were published in generation `first_generation` or later.
    pub(crate) fn retired_since(&self, first_generation: u64) -> usize {
        self.retired_regions.iter().filter(|retired| retired.first_generation >= first_generation).count()
    }

    /// The number of retired regions that the translators of each holder keep; `generation` returns that of a reader's
    /// snapshot.
    pub(crate) fn retained(&self, generation: impl Fn(&Arc<Reader>) -> Option<u64>) -> Vec<HolderTotal> {
        let mut seen: BTreeMap<Holder, Vec<u64>> = BTreeMap::new();
        for reader in &self.readers {
            seen.entry(reader.holder_counts.holder).or_default().extend(generation(reader));
        }
        let kept = |generations: Vec<u64>| {
            let named = |retired: &&RetiredRegion| {
                generations.iter().any(|at| (retired.first_generation..=retired.last_generation).contains(at))
            };
            self.retired_regions.iter().filter(named).count() as u64
        };
        let held =
            seen.into_iter().map(|(holder, generations)| HolderTotal { holder, count: kept(generations) });
        held.filter(|held| held.count > 0).collect()
    }

    /// Retired regions that cannot be freed yet.
    pub(crate) fn unreclaimed(&self) -> usize {
        self.retired_regions.len()
    }

    /// The counters of `holder`, created on first use. `None` without memory.
    pub(crate) fn counts_of(
        &mut self,
        memory: &SharedTableMemory,
        holder: Holder,
        release_hook: impl FnOnce() -> alloc::sync::Weak<dyn ReleaseHook>,
    ) -> Option<SharedHolderCounts> {
        if let Some(counts) = self.holder_counts.get(&holder) {
            return Some(counts.clone());
        }
        let counts = HolderCounts::new(memory, holder, release_hook())?;
        if !counts.grow(self.slots) {
            return None;
        }
        // Unused counters without units are dropped here: else they would pile up as containers come and go.
        self.holder_counts.retain(|_, counts| Arc::strong_count(counts) > 1 || !counts.is_empty());
        self.holder_counts.insert(holder, counts.clone());
        Some(counts)
    }

    /// The live mappings of the region in `slot`: the sum of all counters.
    pub(crate) fn mapped(&self, slot: u32) -> i64 {
        let readers = self.readers.iter().map(|reader| reader.sum(slot));
        let counts = self.holder_counts.values().map(|counts| counts.value(slot));
        readers.chain(counts).fold(0, i64::wrapping_add)
    }

    /// The live mappings by holder.
    pub(crate) fn holders(&self, slot: u32) -> Vec<HolderTotal> {
        let mut sums: BTreeMap<Holder, i64> = BTreeMap::new();
        for counts in self.holder_counts.values() {
            *sums.entry(counts.holder).or_default() += counts.value(slot);
        }
        for reader in &self.readers {
            *sums.entry(reader.holder_counts.holder).or_default() += reader.sum(slot);
        }
        let positive = |(holder, sum)| {
            u64::try_from(sum).ok().filter(|&count| count > 0).map(|count| HolderTotal { holder, count })
        };
        sums.into_iter().filter_map(positive).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::sync::Weak;

    use super::*;
    use crate::addr::{Granule, HostAddr, UserAddr};
    use crate::engine::Engine;
    use crate::lookup::pages::PageTable;
    use crate::lookup::region::Region;
    use crate::table_memory::HeapTables;

    fn heap() -> SharedTableMemory {
        Arc::new(HeapTables::new())
    }

    fn region(id: u64, slot: u32) -> SharedRegion {
        let range =
            UserRange::new(UserAddr::new(0x4000_0000 + (id << 12)), 0x1000, Granule::K4).expect("a page");
        let table = PageTable::device(range, HostAddr::new(0), Granule::K4);
        Arc::new(
            TableBox::new(&heap(), Region { id, slot, range, table, device: true, on_demand: false })
                .expect("memory"),
        )
    }

    fn counts_of(registry: &mut Registry, container: u64) -> SharedHolderCounts {
        let holder = Holder { container, ..Holder::default() };
        registry.counts_of(&heap(), holder, || Weak::<Engine>::new()).expect("memory")
    }

    #[test]
    fn slots_are_handed_out_again_and_counts_doubled_before_they_run_out() {
        let mut registry = Registry::default();
        assert_eq!((registry.allocate_slot(), registry.allocate_slot()), (Some(1), Some(2)));
        registry.free_slot(1);
        assert_eq!((registry.allocate_slot(), registry.allocate_slot()), (Some(1), Some(3)));
        while registry.slots() < FIRST_CAPACITY {
            assert!(registry.allocate_slot().is_some());
        }
        assert_eq!((registry.capacity, registry.snapshot_stale), (FIRST_CAPACITY, false));
        assert_eq!(registry.allocate_slot(), Some(FIRST_CAPACITY as u32));
        assert_eq!((registry.capacity, registry.snapshot_stale), (2 * FIRST_CAPACITY, true));
    }

    #[test]
    fn retired_regions_are_counted_by_when_their_regions_came_and_went() {
        let mut registry = Registry { generation: 5, ..Registry::default() };
        registry.retire(region(1, 1), 3);
        registry.retire(region(2, 2), 5);
        assert_eq!(registry.newly_retired(), 2);
        registry.generation = 6;
        assert_eq!(registry.newly_retired(), 0);
        registry.retire(region(3, 3), 6);
        assert_eq!(registry.newly_retired(), 1);
        assert_eq!(
            [3, 4, 5, 6, 7].map(|first_generation| registry.retired_since(first_generation)),
            [3, 2, 2, 1, 0]
        );
    }

    #[test]
    fn what_the_current_snapshot_names_is_kept_while_a_translator_may_look_at_it() {
        for (snapshot_stale, translator) in [(true, true), (false, true), (false, false), (true, false)] {
            let mut registry = Registry { generation: 1, snapshot_stale, ..Registry::default() };
            if translator {
                let counts = counts_of(&mut registry, 1);
                registry.readers.push(Arc::new(Reader::new(&heap(), counts, 4).unwrap()));
            }
            registry.retire(region(1, 9), 1);
            registry.reclaim();
            assert_eq!(registry.unreclaimed(), usize::from(!snapshot_stale || translator));
        }
    }

    #[test]
    fn holder_counts_go_when_their_holders_are_gone_and_hold_nothing() {
        let mut registry = Registry::default();
        let slot = registry.allocate_slot().unwrap();
        drop(counts_of(&mut registry, 1));
        counts_of(&mut registry, 2).add(slot, 1);
        let third = counts_of(&mut registry, 3);
        let left = |registry: &Registry| {
            registry.holder_counts.keys().map(|holder| holder.container).collect::<Vec<_>>()
        };
        assert_eq!(left(&registry), [2, 3]);
        counts_of(&mut registry, 2).add(slot, -1);
        drop(counts_of(&mut registry, 4));
        assert_eq!(left(&registry), [3, 4]);
        assert!(Arc::ptr_eq(&third, &counts_of(&mut registry, 3)));
    }
}
