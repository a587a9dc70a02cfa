//! What an address space does: register, release, drain, clean up. The public handles are thin fronts of this.
//!
//! Order of every change: reserve the span under the lock, charge and pin without it, commit or give back under it. No
//! port is ever called with the lock held. Nothing half-made is visible: a region is published complete, and from then on
//! only the release path takes it away.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::ptr::{self, NonNull};

use crate::addr::{Granule, HostAddr, RangeError, UserAddr, UserRange};
use crate::books::{Books, Entry, Span, Station};
use crate::errno::Errno;
use crate::gate::{Drain, Gate, Inside};
use crate::lookup::Snapshot;
use crate::pages::{PageList, PageListError, PageTable};
use crate::port::{Charge, ChargeError, Pin, PinError, PinId};
use crate::publish::Published;
use crate::region::{Home, Region, SharedRegion};
use crate::slots::{CHUNK, Chunks};
use crate::state::{RegionState, SpaceState};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{Monitor, MonitorGuard};
use crate::tally::{Held, Holder, Tally};

/// Why memory could not be registered. Nothing is pinned, charged or listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Not a range of whole pages. EINVAL.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Intersects a region of another shape. EINVAL.
    #[error(
        "{range} overlaps the registered {with}; register exactly that range to share it, or unregister it first"
    )]
    Overlap {
        /// The range asked for.
        range: UserRange,
        /// The region in the way.
        with: UserRange,
    },
    /// This very range is registered, and a new region was asked for. EINVAL.
    #[error("{range} is registered already")]
    Exists {
        /// The range asked for.
        range: UserRange,
    },
    /// Over the locked-memory limit. ENOMEM.
    #[error("{range}: {error}")]
    Charge {
        /// The range asked for.
        range: UserRange,
        /// What the account said.
        error: ChargeError,
    },
    /// The pages could not be pinned. The back end's errno.
    #[error("{range}: {error}")]
    Pin {
        /// The range asked for.
        range: UserRange,
        /// What the back end said.
        error: PinError,
    },
    /// No memory for our own tables. ENOMEM.
    #[error("no memory for the tables that describe {range}")]
    OutOfMemory {
        /// The range asked for.
        range: UserRange,
    },
    /// Too many regions. ENOSPC.
    #[error(
        "the address space has 1048576 regions, or gone ones that an idle translator still lists; register larger ranges"
    )]
    TooManyRegions,
    /// The address space was dropped. ESRCH.
    #[error("the address space is gone")]
    Gone,
}

impl RegisterError {
    /// EINVAL, ENOMEM, ENOSPC, ESRCH or the back end's, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range(error) => error.errno(),
            Self::Overlap { .. } | Self::Exists { .. } => Errno::EINVAL,
            Self::Charge { error, .. } => error.errno(),
            Self::Pin { error, .. } => error.errno(),
            Self::OutOfMemory { .. } => Errno::ENOMEM,
            Self::TooManyRegions => Errno::ENOSPC,
            Self::Gone => Errno::ESRCH,
        }
    }
}

/// No memory for a table. ENOMEM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory for the table")]
pub struct OutOfMemory;

impl OutOfMemory {
    /// ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENOMEM
    }
}

/// Whether a region of the same range may be shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    ShareOrNew,
    New,
    Share,
}

/// What backs a new region.
pub(crate) enum Backing {
    Pinned(Option<Arc<dyn Any + Send + Sync>>),
    Device(HostAddr),
}

/// One registration in the books: enough to find it again, never enough to reach a gone region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub(crate) range: UserRange,
    pub(crate) id: u64,
    pub(crate) holder: Holder,
}

/// Why a claim could not be given up. Nothing changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    Busy { mapped: u64, holders: Vec<Held> },
    Gone,
}

/// What an address space is behind its handles. Lock order: `books` is the only lock.
pub(crate) struct Engine {
    pins: Box<dyn Pin>,
    charges: Box<dyn Charge>,
    granule: Granule,
    pub(crate) published: Published<Snapshot>,
    /// Regions by slot, for whoever holds a unit.
    slots: Chunks<[AtomicPtr<Region>; CHUNK]>,
    /// Closed and empty regions that wait to be released; pushed by readers, taken as a whole by `reap`.
    drained: AtomicPtr<Region>,
    books: Monitor<Books>,
    this: Weak<Engine>,
}

impl Engine {
    pub(crate) fn new(pins: Box<dyn Pin>, charges: Box<dyn Charge>) -> Arc<Self> {
        let granule = pins.granule();
        Arc::new_cyclic(|this| Self {
            pins,
            charges,
            granule,
            published: Published::new(Box::default()),
            slots: Chunks::new(),
            drained: AtomicPtr::new(ptr::null_mut()),
            books: Monitor::new(Books::default()),
            this: this.clone(),
        })
    }

    pub(crate) fn granule(&self) -> Granule {
        self.granule
    }

    pub(crate) fn pins(&self) -> &dyn Pin {
        &*self.pins
    }

    /// The region in `slot`, for a caller that holds a unit of it.
    #[inline]
    pub(crate) fn region_in(&self, slot: u32) -> Option<NonNull<Region>> {
        let (chunk, index) = self.slots.get(slot)?;
        // Relaxed: the caller holds a unit, so the pointer was stored before the region was published, and whatever
        // handed him the unit ordered that.
        NonNull::new(chunk[index].load(Ordering::Relaxed))
    }

    // ---- register -------------------------------------------------------------------------------------------------

    pub(crate) fn register(
        &self,
        ua: UserAddr,
        bytes: u64,
        wish: Wish,
        holder: Holder,
        backing: impl FnOnce() -> Backing,
    ) -> Result<Option<Claim>, RegisterError> {
        self.reap();
        let range = UserRange::new(ua, bytes, self.granule)?;
        if let Some(claim) = self.share_or_reserve(range, wish, holder)? {
            return Ok(Some(claim));
        }
        if wish == Wish::Share {
            return Ok(None);
        }
        let reservation = Reservation { engine: self, range };
        let claim = self.build(range, backing(), holder)?;
        core::mem::forget(reservation);
        self.books.notify_all();
        Ok(Some(claim))
    }

    /// A claim on the region of just this range, or `None` and the span is reserved (not for `Wish::Share`).
    fn share_or_reserve(
        &self,
        range: UserRange,
        wish: Wish,
        holder: Holder,
    ) -> Result<Option<Claim>, RegisterError> {
        let mut books = self.books.lock();
        loop {
            if books.closed {
                return Err(RegisterError::Gone);
            }
            match books.intersecting(range) {
                None => break,
                Some(Span::Going(_)) => {}
                Some(Span::Coming(other)) if *other == range && wish != Wish::New => {}
                Some(Span::Here(entry)) if entry.region.range == range && wish != Wish::New => {
                    // A draining region comes back to life if somebody still maps it; else its release is on the way.
                    if entry.used > 0 || entry.region.gate.reopen() {
                        entry.claim(holder);
                        let keepalive = entry.keepalive.take();
                        let claim = Claim { range, id: entry.region.id, holder };
                        drop(books);
                        drop(keepalive);
                        return Ok(Some(claim));
                    }
                }
                Some(_) if wish == Wish::Share => return Ok(None),
                Some(span) if span.range() == range => return Err(RegisterError::Exists { range }),
                Some(span) => return Err(RegisterError::Overlap { range, with: span.range() }),
            }
            books = self.books.wait(books);
            if !self.drained.load(Ordering::Relaxed).is_null() {
                drop(books);
                self.reap();
                books = self.books.lock();
            }
        }
        if wish != Wish::Share {
            books.spans.insert(range.first().raw(), Span::Coming(range));
        }
        Ok(None)
    }

    /// Charges, pins and commits a reserved span.
    fn build(&self, range: UserRange, backing: Backing, holder: Holder) -> Result<Claim, RegisterError> {
        match backing {
            Backing::Device(host) => {
                let table = PageTable::device(range, host, self.granule);
                self.commit(range, table, true, None, 0, None, holder)
            }
            Backing::Pinned(keep) => {
                let pages = range.pages(self.granule);
                self.charges.charge(pages).map_err(|error| RegisterError::Charge { range, error })?;
                let charge = Charged { engine: self, pages };
                let (pin, table) = self.pin(range)?;
                let pinned = Pinned { engine: self, pin, range };
                let claim = self.commit(range, table, false, Some(pin), pages, keep, holder)?;
                core::mem::forget(pinned);
                core::mem::forget(charge);
                Ok(claim)
            }
        }
    }

    fn pin(&self, range: UserRange) -> Result<(PinId, PageTable), RegisterError> {
        let mut pages = PageList::new(range, self.granule);
        let pin = self.pins.pin(range, &mut pages).map_err(|error| RegisterError::Pin { range, error })?;
        let pinned = Pinned { engine: self, pin, range };
        match pages.finish() {
            Ok(Some(table)) => {
                core::mem::forget(pinned);
                Ok((pin, table))
            }
            Ok(None) => {
                let why =
                    "the back end named fewer pages than the range has; this is a defect of the back end";
                Err(RegisterError::Pin { range, error: PinError::Fault { ua: range.first(), why } })
            }
            Err(PageListError::OutOfMemory | PageListError::TooMany { .. }) => {
                Err(RegisterError::OutOfMemory { range })
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one entry, from two callers")]
    fn commit(
        &self,
        range: UserRange,
        table: PageTable,
        device: bool,
        pin: Option<PinId>,
        charged: u64,
        keep: Option<Arc<dyn Any + Send + Sync>>,
        holder: Holder,
    ) -> Result<Claim, RegisterError> {
        let mut books = self.books.lock();
        if books.closed {
            return Err(RegisterError::Gone);
        }
        let slot = match books.take_slot() {
            Some(slot) => slot,
            None => {
                // A snapshot that only a sleeping translator names may hold slots that are otherwise free.
                self.reclaim(&mut books);
                books.take_slot().ok_or(RegisterError::TooManyRegions)?
            }
        };
        let id = books.next_id();
        let home: Weak<dyn Home> = self.this.clone();
        let next_drained = AtomicPtr::new(ptr::null_mut());
        let region =
            Arc::new(Region { id, slot, range, gate: Gate::new(), table, device, home, next_drained });
        let pointer = Arc::as_ptr(&region).cast_mut();
        if !self.set_slot(&books, slot, pointer) {
            books.give_slot(slot);
            return Err(RegisterError::OutOfMemory { range });
        }
        let mut entry = Entry { region, pin, charged, used: 0, claims: Vec::new(), keep, keepalive: None };
        entry.claim(holder);
        books.spans.insert(range.first().raw(), Span::Here(entry));
        if self.publish(&mut books).is_err() {
            // Never published: no reader knows it, and the reservation takes the span away.
            books.spans.insert(range.first().raw(), Span::Coming(range));
            books.give_slot(slot);
            return Err(RegisterError::OutOfMemory { range });
        }
        if pin.is_some() {
            books.pins += 1;
            books.pinned_pages += charged;
            books.charged_pages += charged;
        }
        Ok(Claim { range, id, holder })
    }

    fn set_slot(&self, books: &Books, slot: u32, region: *mut Region) -> bool {
        let made = self.slots.grow(books.slots, || {
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(CHUNK).ok()?;
            chunk.resize_with(CHUNK, || AtomicPtr::new(ptr::null_mut()));
            Box::<[AtomicPtr<Region>]>::try_into(chunk.into_boxed_slice()).ok()
        });
        let Some((chunk, index)) = self.slots.get(slot).filter(|_| made) else { return false };
        // Relaxed: read only by holders of a unit, after the region was published with Release.
        chunk[index].store(region, Ordering::Relaxed);
        true
    }

    // ---- publish --------------------------------------------------------------------------------------------------

    /// Publishes what is here. Without memory nothing changes.
    fn publish(&self, books: &mut Books) -> Result<(), OutOfMemory> {
        let here = |span: &Span| match span {
            Span::Here(entry) => Some(entry.region.clone()),
            _ => None,
        };
        let snapshot =
            Snapshot::new(books.spans.len(), books.spans.values().filter_map(here)).ok_or(OutOfMemory)?;
        self.published.replace(Box::new(snapshot), &mut books.retired);
        self.reclaim(books);
        Ok(())
    }

    /// Frees what no translator names any more.
    fn reclaim(&self, books: &mut Books) {
        let Books { retired, stations, .. } = books;
        reclaim_seats(&self.published, retired, stations);
        books.sweep();
    }

    // ---- release --------------------------------------------------------------------------------------------------

    /// Gives a registration up; the last one only if nothing is mapped.
    pub(crate) fn release(&self, claim: Claim) -> Result<(), Kept> {
        self.reap();
        let mut books = self.books.lock();
        let Some(entry) = books.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0)
        else {
            return Err(Kept::Gone);
        };
        if entry.used > 1 {
            entry.disclaim(claim.holder);
            return Ok(());
        }
        if let Err(Inside(mapped)) = entry.region.gate.try_close() {
            let slot = entry.region.slot;
            return Err(Kept::Busy { mapped, holders: books.holders(slot) });
        }
        self.finish(books, claim.range, claim.id);
        Ok(())
    }

    /// Gives a registration up; if it was the last one, closes the region for new mappings and leaves the release to the
    /// last of the old ones. `true` when the release is done or another registration lives.
    pub(crate) fn release_when_idle(&self, claim: Claim) -> bool {
        self.reap();
        let mut books = self.books.lock();
        let Some(entry) = books.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0)
        else {
            return true;
        };
        entry.disclaim(claim.holder);
        if entry.used > 0 {
            return true;
        }
        match entry.region.gate.close_and_drain() {
            Drain::Empty => {
                self.finish(books, claim.range, claim.id);
                true
            }
            Drain::Waiting(_) | Drain::Already => {
                entry.keepalive = self.this.upgrade().map(|this| this as Arc<dyn Home>);
                false
            }
        }
    }

    /// Whether a region given up by `release_when_idle` is still there without registrations.
    pub(crate) fn is_draining(&self, claim: Claim) -> bool {
        self.reap();
        Self::draining(&mut self.books.lock(), claim)
    }

    fn draining(books: &mut Books, claim: Claim) -> bool {
        books.entry(claim.range.first().raw(), claim.id).is_some_and(|entry| entry.used == 0)
    }

    /// Waits until the region is released or somebody registers its range again.
    pub(crate) fn wait_idle(&self, claim: Claim) {
        loop {
            self.reap();
            let mut books = self.books.lock();
            if !Self::draining(&mut books, claim) {
                break;
            }
            drop(self.books.wait(books));
        }
    }

    /// Takes a region whose gate this caller closed empty out of the books, and unpins it without the lock.
    fn finish(&self, mut books: MonitorGuard<'_, Books>, range: UserRange, id: u64) {
        let Some(entry) = books.take(range.first().raw(), id) else { return };
        // Without memory for a new snapshot the old one stays: readers find the region with its gate closed.
        let _ = self.publish(&mut books);
        drop(books);
        let Entry { region, pin, charged, keep, keepalive, .. } = entry;
        if let Some(pin) = pin {
            self.pins.unpin(pin, range, region.table.dirty());
            self.charges.uncharge(charged);
        }
        drop(region);
        drop(keep);
        let mut books = self.books.lock();
        books.spans.remove(&range.first().raw());
        books.sweep();
        if pin.is_some() {
            books.unpins += 1;
            books.pinned_pages -= charged;
            books.charged_pages -= charged;
        }
        drop(books);
        self.books.notify_all();
        drop(keepalive);
    }

    /// The owner goes: every registration is given up, whoever holds it; what nobody maps is released now.
    pub(crate) fn close(&self) {
        self.reap();
        self.books.lock().closed = true;
        loop {
            let mut books = self.books.lock();
            let registered = |span: &mut Span| match span {
                Span::Here(entry) if entry.used > 0 => {
                    entry.used = 0;
                    entry.claims.clear();
                    let idle = entry.region.gate.close_and_drain() == Drain::Empty;
                    if !idle {
                        entry.keepalive = self.this.upgrade().map(|this| this as Arc<dyn Home>);
                    }
                    Some((idle, entry.region.range, entry.region.id))
                }
                _ => None,
            };
            match books.spans.values_mut().find_map(registered) {
                Some((true, range, id)) => self.finish(books, range, id),
                Some((false, ..)) => {}
                None => break,
            }
        }
    }

    // ---- translators ----------------------------------------------------------------------------------------------

    pub(crate) fn station(&self, holder: Holder) -> Result<Arc<Station>, OutOfMemory> {
        self.reap();
        let mut books = self.books.lock();
        let tally = Tally::new(holder);
        books.stations.try_reserve(1).map_err(|_| OutOfMemory)?;
        let house = books.house(holder).filter(|_| tally.grow(books.slots)).ok_or(OutOfMemory)?;
        let station = Arc::new(Station { seat: Default::default(), tally, house });
        books.stations.push(station.clone());
        Ok(station)
    }

    pub(crate) fn leave_station(&self, station: &Arc<Station>) {
        let mut books = self.books.lock();
        station.seat.leave();
        books.stations.retain(|other| !Arc::ptr_eq(other, station));
        station.tally.fold_into(&station.house);
        self.reclaim(&mut books);
    }

    pub(crate) fn house(&self, holder: Holder) -> Result<Arc<Tally>, OutOfMemory> {
        self.books.lock().house(holder).ok_or(OutOfMemory)
    }

    // ---- watching -------------------------------------------------------------------------------------------------

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
            mapped: region.gate.inside() + 1,
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
        }
    }

    /// How many of the `bytes` at `host` the device region that holds `host` covers.
    pub(crate) fn device_at(&self, host: HostAddr, bytes: u64) -> Option<u64> {
        let books = self.books.lock();
        books.spans.values().find_map(|span| {
            let Span::Here(Entry { region, .. }) = span else { return None };
            let offset = host.offset_from(region.table.host(region.range.first()))?;
            (region.device && offset < region.range.bytes()).then(|| bytes.min(region.range.bytes() - offset))
        })
    }

    /// Whether any region is registered.
    pub(crate) fn is_preregistered(&self) -> bool {
        self.books.lock().spans.values().any(|span| matches!(span, Span::Here(entry) if entry.used > 0))
    }
}

#[expect(unsafe_code, reason = "the queue of drained regions is linked through their headers")]
mod drained {
    use super::{Engine, Home, NonNull, Ordering, Published, Region, Snapshot, Station, ptr};
    use crate::publish::Retired;
    use alloc::sync::Arc;

    /// Frees the retired snapshots that no station's seat names.
    pub(super) fn reclaim_seats(
        published: &Published<Snapshot>,
        retired: &mut Retired<Snapshot>,
        stations: &[Arc<Station>],
    ) {
        let seats = stations.iter().map(|station| &station.seat);
        // SAFETY: the stations are all there are; each translator's is listed until its translator is dropped.
        unsafe { published.reclaim(retired, seats) };
    }

    impl Home for Engine {
        fn queue_drained(&self, region: NonNull<Region>) {
            // SAFETY: the caller was told to be the last one out of the closed gate, so the header stays until `reap` takes
            // it from the queue.
            let next = unsafe { &region.as_ref().next_drained };
            // Relaxed: a first guess.
            let mut head = self.drained.load(Ordering::Relaxed);
            loop {
                // Relaxed: published by the exchange below.
                next.store(head, Ordering::Relaxed);
                // Release pairs with the Acquire swap in `reap`. The queue is only ever taken as a whole, so a head that
                // comes back (ABA) is still the right one to link to.
                match self.drained.compare_exchange_weak(
                    head,
                    region.as_ptr(),
                    Ordering::Release,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return,
                    Err(now) => head = now,
                }
            }
        }

        fn reap(&self) {
            // Relaxed: a hint, so that the usual case costs one load.
            if self.drained.load(Ordering::Relaxed).is_null() {
                return;
            }
            // Acquire pairs with the Release in `queue_drained`.
            let mut next = self.drained.swap(ptr::null_mut(), Ordering::Acquire);
            // SAFETY: each was queued once, by the last one out, and its header stays until it is finished below.
            while let Some(region) = unsafe { next.as_ref() } {
                // Relaxed: ordered by the swap.
                next = region.next_drained.load(Ordering::Relaxed);
                let (range, id) = (region.range, region.id);
                self.finish(self.books.lock(), range, id);
            }
        }
    }
}
use drained::reclaim_seats;

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("granule", &self.granule).finish_non_exhaustive()
    }
}

/// A span that is coming; dropped (by an error, or a port that panics) it is free again.
struct Reservation<'a> {
    engine: &'a Engine,
    range: UserRange,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut books = self.engine.books.lock();
        books.spans.remove(&self.range.first().raw());
        drop(books);
        self.engine.books.notify_all();
    }
}

/// A charge to be given back unless the registration is committed.
struct Charged<'a> {
    engine: &'a Engine,
    pages: u64,
}

impl Drop for Charged<'_> {
    fn drop(&mut self) {
        self.engine.charges.uncharge(self.pages);
    }
}

/// A pin to be given back unless the registration is committed.
struct Pinned<'a> {
    engine: &'a Engine,
    pin: PinId,
    range: UserRange,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.engine.pins.unpin(self.pin, self.range, crate::pages::DirtyPages::none());
    }
}
