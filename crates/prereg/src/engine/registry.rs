//! The books of an address space: which spans are taken, by what, and who sits where. All under the writers' lock.
//!
//! A span is *coming* while its pages are charged and pinned (without the lock), *here* once published, *going* while they
//! are unpinned. Whoever wants a span that is coming in just his shape, or one that is going, waits; any other intersection
//! is refused. So no page is ever pinned twice by two callers that race.
//!
//! A region that is gone stays in the graveyard, with its slot, as long as a snapshot in use may name it. A snapshot names
//! what was here when it was made and, as long as the current one has the same cells, what comes into those. So a region is
//! named by no snapshot but those from the generation it was born in (that of the cells it came into) to the one it died in.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use crate::addr::UserRange;
use crate::engine::reader::Station;
use crate::lookup::holder::{Held, Holder, Home, House, SharedHouse};
use crate::lookup::region::SharedRegion;
use crate::lookup::snapshot::Snapshot;
use crate::port::PinId;
use crate::sync::ThreadToken;
use crate::sync::hazard::Retired;
use crate::table_memory::Tables;
use crate::table_memory::chunked::MAX_SLOTS;
use crate::table_memory::owned::Placed;

/// What a span is taken by.
pub(crate) enum Span {
    /// Being charged and pinned, by this thread.
    Coming(UserRange, ThreadToken),
    /// Published; perhaps draining.
    Here(Entry),
    /// Being unpinned, by this thread.
    Going(UserRange, ThreadToken),
}

impl Span {
    /// A span that the calling thread charges and pins.
    pub(crate) fn coming(range: UserRange) -> Self {
        Self::Coming(range, ThreadToken::this())
    }

    pub(crate) fn range(&self) -> UserRange {
        match self {
            Self::Coming(range, _) | Self::Going(range, _) => *range,
            Self::Here(entry) => entry.region.range,
        }
    }

    pub(crate) fn here(&self) -> Option<&Entry> {
        match self {
            Self::Here(entry) => Some(entry),
            _ => None,
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
    /// Set when the address space is dropped: a region that is still mapped keeps the engine, so that the last unmap can
    /// release it.
    pub(crate) keepalive: Option<Arc<dyn Home>>,
    /// The generation of the first snapshot that names it.
    pub(crate) born: u64,
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

/// A region that is gone but may still be named.
struct Grave {
    region: SharedRegion,
    born: u64,
    died: u64,
}

/// Slots for which every station has counts from the beginning. A power of two, as every later number is.
const FIRST_CAPACITY: usize = if cfg!(loom) {
    2
} else if cfg!(miri) {
    16
} else {
    256
};

/// The books.
pub(crate) struct Books {
    /// Disjoint, by start address.
    pub(crate) spans: BTreeMap<u64, Span>,
    pub(crate) stations: Vec<Arc<Station>>,
    /// One for each holder.
    houses: BTreeMap<Holder, SharedHouse>,
    pub(crate) retired: Retired<Snapshot, Placed<Snapshot>>,
    /// Of the current snapshot.
    pub(crate) generation: u64,
    /// The current snapshot does not show what is here: there was no translator to look at it.
    pub(crate) unpublished: bool,
    graveyard: Vec<Grave>,
    free_slots: Vec<u32>,
    /// Slots handed out so far, and slot 0, which no region has: it is what an empty cell says.
    slots: usize,
    /// Slots for which every station has counts.
    pub(crate) capacity: usize,
    last_id: u64,
    /// Entries without registrations.
    pub(crate) draining: u64,
    pub(crate) pinned_pages: u64,
    pub(crate) charged_pages: u64,
    pub(crate) pins: u64,
    pub(crate) unpins: u64,
}

impl Default for Books {
    fn default() -> Self {
        Self {
            spans: BTreeMap::new(),
            stations: Vec::new(),
            houses: BTreeMap::new(),
            retired: Retired::default(),
            generation: 0,
            unpublished: false,
            graveyard: Vec::new(),
            free_slots: Vec::new(),
            slots: 1,
            capacity: FIRST_CAPACITY,
            last_id: 0,
            draining: 0,
            pinned_pages: 0,
            charged_pages: 0,
            pins: 0,
            unpins: 0,
        }
    }
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
        if span.here()?.region.id != id {
            return None;
        }
        let going = Span::Going(span.range(), ThreadToken::this());
        let Span::Here(entry) = core::mem::replace(span, going) else { return None };
        if entry.used == 0 {
            self.draining -= 1;
        }
        Some(entry)
    }

    /// The entries that are here, by start address.
    pub(crate) fn here(&self) -> impl Iterator<Item = &Entry> + Clone {
        self.spans.values().filter_map(Span::here)
    }

    /// A new region's number.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// A slot that no snapshot in use names, and room for it in every house and station. `None` when there is none or no
    /// memory for it.
    pub(crate) fn take_slot(&mut self) -> Option<u32> {
        if let Some(slot) = self.free_slots.pop() {
            return Some(slot);
        }
        if self.slots == MAX_SLOTS {
            return None;
        }
        let slots = self.slots + 1;
        // So that giving a slot back, and burying a region, never allocate.
        self.free_slots.try_reserve(slots - self.free_slots.len()).ok()?;
        self.graveyard.try_reserve(slots - self.graveyard.len()).ok()?;
        if slots > self.capacity {
            let capacity = (self.capacity * 2).min(MAX_SLOTS);
            if !self.stations.iter().all(|station| station.grow(capacity)) {
                return None;
            }
            // A translator that has not looked since knows shorter counts, so it must not find the new slot in the
            // snapshot it sits on.
            self.capacity = capacity;
            self.unpublished = true;
        }
        if !self.houses.values().all(|house| house.grow(slots)) {
            return None;
        }
        self.slots = slots;
        u32::try_from(slots - 1).ok()
    }

    pub(crate) fn give_slot(&mut self, slot: u32) {
        self.free_slots.push(slot);
    }

    /// Slots handed out so far.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// Keeps a region that left the spans until nobody can know it any more.
    pub(crate) fn bury(&mut self, region: SharedRegion, born: u64) {
        self.graveyard.push(Grave { region, born, died: self.generation });
    }

    /// How many graves wait for the current snapshot to be replaced.
    pub(crate) fn fresh_graves(&self) -> usize {
        self.graveyard.iter().rev().take_while(|grave| grave.died == self.generation).count()
    }

    /// Frees the graves that no snapshot in use names.
    pub(crate) fn sweep(&mut self) {
        let Self { graveyard, free_slots, retired, generation, unpublished, stations, .. } = self;
        // Without translators nobody looks at the current snapshot before the next one is made.
        let current = (!(*unpublished && stations.is_empty())).then_some(*generation);
        graveyard.retain(|grave| {
            let names = |generation: u64| (grave.born..=grave.died).contains(&generation);
            let named =
                current.is_some_and(names) || retired.iter().any(|snapshot| names(snapshot.generation));
            if !named {
                free_slots.push(grave.region.slot);
            }
            named
        });
    }

    /// How many graves are of regions that came and went since generation `born`.
    pub(crate) fn graves_since(&self, born: u64) -> usize {
        self.graveyard.iter().filter(|grave| grave.born >= born).count()
    }

    /// How many graves the translators of each holder keep; `generation` is that of a translator's snapshot.
    pub(crate) fn retained(&self, generation: impl Fn(&Arc<Station>) -> Option<u64>) -> Vec<Held> {
        let mut seen: BTreeMap<Holder, Vec<u64>> = BTreeMap::new();
        for station in &self.stations {
            seen.entry(station.house.holder).or_default().extend(generation(station));
        }
        let kept = |generations: Vec<u64>| {
            let named = |grave: &&Grave| generations.iter().any(|at| (grave.born..=grave.died).contains(at));
            self.graveyard.iter().filter(named).count() as u64
        };
        let held = seen.into_iter().map(|(holder, generations)| Held { holder, count: kept(generations) });
        held.filter(|held| held.count > 0).collect()
    }

    /// Gone regions that cannot be freed yet.
    pub(crate) fn unreclaimed(&self) -> usize {
        self.graveyard.len()
    }

    /// The house of `holder`, made if need be. `None` without memory.
    pub(crate) fn house(
        &mut self,
        memory: &Tables,
        holder: Holder,
        home: impl FnOnce() -> alloc::sync::Weak<dyn Home>,
    ) -> Option<SharedHouse> {
        if let Some(house) = self.houses.get(&holder) {
            return Some(house.clone());
        }
        let house = House::new(memory, holder, home())?;
        if !house.grow(self.slots) {
            return None;
        }
        // Houses of holders that are gone and hold nothing would pile up as containers come and go.
        self.houses.retain(|_, house| Arc::strong_count(house) > 1 || !house.is_empty());
        self.houses.insert(holder, house.clone());
        Some(house)
    }

    /// The live mappings of the region in `slot`: the sum of all counts.
    pub(crate) fn mapped(&self, slot: u32) -> i64 {
        let stations = self.stations.iter().map(|station| station.value(slot));
        let houses = self.houses.values().map(|house| house.value(slot));
        stations.chain(houses).fold(0, i64::wrapping_add)
    }

    /// The same by holder.
    pub(crate) fn holders(&self, slot: u32) -> Vec<Held> {
        let mut sums: BTreeMap<Holder, i64> = BTreeMap::new();
        for house in self.houses.values() {
            *sums.entry(house.holder).or_default() += house.value(slot);
        }
        for station in &self.stations {
            *sums.entry(station.house.holder).or_default() += station.value(slot);
        }
        let positive = |(holder, sum)| {
            u64::try_from(sum).ok().filter(|&count| count > 0).map(|count| Held { holder, count })
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

    fn heap() -> Tables {
        Arc::new(HeapTables::new())
    }

    fn region(id: u64, slot: u32) -> SharedRegion {
        let range =
            UserRange::new(UserAddr::new(0x4000_0000 + (id << 12)), 0x1000, Granule::K4).expect("a page");
        let table = PageTable::device(range, HostAddr::new(0), Granule::K4);
        Arc::new(Placed::new(&heap(), Region { id, slot, range, table, device: true }).expect("memory"))
    }

    fn house(books: &mut Books, container: u64) -> SharedHouse {
        let holder = Holder { container, ..Holder::default() };
        books.house(&heap(), holder, || Weak::<Engine>::new()).expect("memory")
    }

    #[test]
    fn slots_are_handed_out_again_and_counts_doubled_before_they_run_out() {
        let mut books = Books::default();
        assert_eq!((books.take_slot(), books.take_slot()), (Some(1), Some(2)));
        books.give_slot(1);
        assert_eq!((books.take_slot(), books.take_slot()), (Some(1), Some(3)));
        while books.slots() < FIRST_CAPACITY {
            assert!(books.take_slot().is_some());
        }
        assert_eq!((books.capacity, books.unpublished), (FIRST_CAPACITY, false));
        assert_eq!(books.take_slot(), Some(FIRST_CAPACITY as u32));
        assert_eq!((books.capacity, books.unpublished), (2 * FIRST_CAPACITY, true));
    }

    #[test]
    fn graves_are_counted_by_when_their_regions_came_and_went() {
        let mut books = Books { generation: 5, ..Books::default() };
        books.bury(region(1, 1), 3);
        books.bury(region(2, 2), 5);
        assert_eq!(books.fresh_graves(), 2);
        books.generation = 6;
        assert_eq!(books.fresh_graves(), 0);
        books.bury(region(3, 3), 6);
        assert_eq!(books.fresh_graves(), 1);
        assert_eq!([3, 4, 5, 6, 7].map(|born| books.graves_since(born)), [3, 2, 2, 1, 0]);
    }

    #[test]
    fn what_the_current_snapshot_names_is_kept_while_a_translator_may_look_at_it() {
        for (unpublished, translator) in [(true, true), (false, true), (false, false), (true, false)] {
            let mut books = Books { generation: 1, unpublished, ..Books::default() };
            if translator {
                let house = house(&mut books, 1);
                books.stations.push(Arc::new(Station::new(&heap(), house, 4).unwrap()));
            }
            books.bury(region(1, 9), 1);
            books.sweep();
            assert_eq!(books.unreclaimed(), usize::from(!unpublished || translator));
        }
    }

    #[test]
    fn houses_go_when_their_holders_are_gone_and_hold_nothing() {
        let mut books = Books::default();
        let slot = books.take_slot().unwrap();
        drop(house(&mut books, 1));
        house(&mut books, 2).add(slot, 1);
        let third = house(&mut books, 3);
        let left = |books: &Books| books.houses.keys().map(|holder| holder.container).collect::<Vec<_>>();
        assert_eq!(left(&books), [2, 3]);
        house(&mut books, 2).add(slot, -1);
        drop(house(&mut books, 4));
        assert_eq!(left(&books), [3, 4]);
        assert!(Arc::ptr_eq(&third, &house(&mut books, 3)));
    }
}
