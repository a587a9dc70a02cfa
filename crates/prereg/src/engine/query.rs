//! Who sits in an address space, and what can be seen of it.

use alloc::sync::{Arc, Weak};

use crate::addr::{HostAddr, UserAddr};
use crate::engine::reader::Station;
use crate::engine::registry::{Books, Entry, Span};
use crate::engine::release::Claim;
use crate::engine::{Engine, OutOfMemory};
use crate::lookup::holder::{Holder, Home, SharedHouse};
use crate::lookup::region::SharedRegion;
use crate::state::{RegionState, SpaceState};

impl Engine {
    pub(crate) fn station(&self, holder: Holder) -> Result<Arc<Station>, OutOfMemory> {
        self.reap();
        let mut books = self.books.lock();
        books.stations.try_reserve(1).map_err(|_| OutOfMemory)?;
        let house = books.house(&self.tables, holder, || self.home()).ok_or(OutOfMemory)?;
        let station = Arc::new(Station::new(&self.tables, house, books.capacity).ok_or(OutOfMemory)?);
        if books.unpublished {
            self.publish(&mut books)?;
        }
        books.stations.push(station.clone());
        Ok(station)
    }

    fn home(&self) -> Weak<dyn Home> {
        let home: Weak<dyn Home> = self.this.clone();
        home
    }

    pub(crate) fn leave_station(&self, station: &Arc<Station>) {
        let mut books = self.books.lock();
        station.place.seat.leave();
        books.stations.retain(|other| !Arc::ptr_eq(other, station));
        station.fold();
        if books.stations.is_empty() && books.unreclaimed() > 0 {
            // Nobody is left to look at the current snapshot, so what it names may go.
            books.unpublished = true;
        }
        self.reclaim(&mut books);
        drop(books);
        self.reap();
    }

    pub(crate) fn house(&self, holder: Holder) -> Result<SharedHouse, OutOfMemory> {
        self.books.lock().house(&self.tables, holder, || self.home()).ok_or(OutOfMemory)
    }

    pub(crate) fn find(&self, ua: UserAddr, bytes: u64) -> Option<RegionState> {
        let books = self.books.lock();
        let (_, span) = books.spans.range(..=ua.raw()).next_back()?;
        match span {
            Span::Here(entry) if entry.region.range.holds(ua, bytes) => Some(self.state_of(&books, entry)),
            _ => None,
        }
    }

    pub(crate) fn claim_state(&self, claim: Claim) -> Option<RegionState> {
        let mut books = self.books.lock();
        books.entry(claim.range.first().raw(), claim.id)?;
        match books.spans.get(&claim.range.first().raw()) {
            Some(Span::Here(entry)) => Some(self.state_of(&books, entry)),
            _ => None,
        }
    }

    fn state_of(&self, books: &Books, entry: &Entry) -> RegionState {
        let region = &entry.region;
        RegionState {
            ua: region.range.first(),
            bytes: region.range.bytes(),
            pages: region.range.pages(self.granule),
            used: entry.used,
            mapped: u64::try_from(books.mapped(region.slot)).unwrap_or(0) + 1,
            largest_page: region.table.largest_page(),
            device: region.device,
            draining: entry.used == 0,
            registrations: entry.claims.clone(),
            mappings: books.holders(region.slot),
            metadata_bytes: region.table.metadata_bytes(),
        }
    }

    /// The region of a claim, to look at its page table under no lock.
    pub(crate) fn claim_region(&self, claim: Claim) -> Option<SharedRegion> {
        self.books.lock().entry(claim.range.first().raw(), claim.id).map(|entry| entry.region.clone())
    }

    pub(crate) fn snapshot(&self) -> SpaceState {
        self.reap();
        let books = self.books.lock();
        let here = |span: &Span| match span {
            Span::Here(entry) => Some(self.state_of(&books, entry)),
            _ => None,
        };
        SpaceState {
            regions: books.spans.values().filter_map(here).collect(),
            pinned_pages: books.pinned_pages,
            charged_pages: books.charged_pages,
            pins: books.pins,
            unpins: books.unpins,
            translators: books.stations.len() as u64,
            unreclaimed: books.unreclaimed() as u64,
            retained_by: self.retained(&books),
            tables: self.tables.state(),
        }
    }

    /// How many of the `bytes` at `host` the device region that holds `host` covers.
    pub(crate) fn device_at(&self, host: HostAddr, bytes: u64) -> Option<u64> {
        let books = self.books.lock();
        let covered = |region: &SharedRegion| {
            let offset = host.offset_from(region.table.host(region.range.first()))?;
            (region.device && offset < region.range.bytes())
                .then(|| (region.id, bytes.min(region.range.bytes() - offset)))
        };
        // Several may show one host address; the newest answers, as in the kernel.
        books.here().filter_map(|entry| covered(&entry.region)).max().map(|(_, bytes)| bytes)
    }

    /// Whether any region is registered.
    pub(crate) fn is_preregistered(&self) -> bool {
        self.books.lock().spans.values().any(|span| matches!(span, Span::Here(entry) if entry.used > 0))
    }
}
