//! The translator: a thread's own reader handle. This is real mode.
//!
//! Everything here but making and dropping one works without a lock, an allocation, a system call or a page fault, and so
//! in a signal handler (which has a translator of its own: `&mut self` keeps two from sharing one). A translator sits on a
//! snapshot and looks for a newer one only when it misses or meets a closed gate.

#![expect(unsafe_code, reason = "a translator reads the snapshot that its seat keeps")]

use alloc::sync::Arc;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crate::addr::{PageShift, UserAddr};
use crate::books::Station;
use crate::engine::Engine;
use crate::gate::Left;
use crate::lookup::Snapshot;
use crate::region::{Home, MapError, Mapping, Region};
use crate::tally::{Holder, HouseRef};

/// A thread's reader handle on an address space: looks pages up and counts their mappings.
pub struct Translator {
    engine: Arc<Engine>,
    station: Arc<Station>,
    /// What the station's seat names; null before the first refresh.
    snapshot: *const Snapshot,
    /// Where the last region was found.
    hint: usize,
    /// One thread at a time: the counts are written with plain stores.
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: the snapshot pointer stays valid on any thread while the seat names it, and one thread at a time uses the handle.
unsafe impl Send for Translator {}

impl Translator {
    pub(crate) fn new(engine: Arc<Engine>, station: Arc<Station>) -> Self {
        let mut this = Self { engine, station, snapshot: ptr::null(), hint: 0, not_sync: PhantomData };
        this.refresh();
        this
    }

    /// Whose mappings this handle counts.
    #[must_use]
    pub fn holder(&self) -> Holder {
        self.station.tally.holder
    }

    /// Sits on the newest snapshot. Never needed for correctness; an idle translator that refreshes lets old tables go.
    pub fn refresh(&mut self) {
        // SAFETY: 1. the station is listed in the books until `drop`, and every reclaim is given all listed seats;
        // 2. `&mut self`, and the station is this translator's alone.
        self.snapshot = unsafe { self.engine.published.refresh(&self.station.seat) };
    }

    #[inline]
    fn snapshot(&self) -> &Snapshot {
        // SAFETY: the seat has named it since the last `refresh`, so no writer frees it.
        unsafe { &*self.snapshot }
    }

    /// The region that holds the byte at `ua` in the snapshot at hand.
    #[inline]
    fn find(&mut self, ua: UserAddr) -> Option<NonNull<Region>> {
        if let Some(region) = self.snapshot().at(self.hint, ua) {
            return Some(NonNull::from(region));
        }
        let (index, region) = self.snapshot().find(ua)?;
        let region = NonNull::from(region);
        self.hint = index;
        Some(region)
    }

    /// Takes one unit of the region that holds the page of `shift` around `ua`.
    #[inline]
    fn enter(&mut self, ua: UserAddr, shift: PageShift) -> Result<NonNull<Region>, MapError> {
        if let Some(found) = self.find(ua) {
            // SAFETY: listed by the snapshot that our seat keeps.
            let region = unsafe { found.as_ref() };
            if region.admits(ua, shift).is_ok() && region.gate.enter().is_ok() {
                self.station.tally.add_own(region.slot, 1);
                return Ok(found);
            }
        }
        self.enter_newest(ua, shift)
    }

    /// The same in the newest snapshot: the old one missed, or its region is going.
    #[cold]
    #[inline(never)]
    fn enter_newest(&mut self, ua: UserAddr, shift: PageShift) -> Result<NonNull<Region>, MapError> {
        let was_there = self.find(ua).is_some();
        self.refresh();
        let Some(found) = self.find(ua) else {
            return Err(if was_there {
                MapError::Closing { ua }
            } else {
                MapError::Unregistered { ua, shift }
            });
        };
        // SAFETY: listed by the snapshot that our seat keeps.
        let region = unsafe { found.as_ref() };
        region.admits(ua, shift)?;
        region.gate.enter().map_err(|_| MapError::Closing { ua })?;
        self.station.tally.add_own(region.slot, 1);
        Ok(found)
    }

    /// Maps the page of `2^shift` bytes that holds `ua`: finds its region, counts one unit, and yields the address. The
    /// page is the aligned one around `ua`; [`Mapping::hpa`] is the address of the byte at `ua` itself.
    ///
    /// # Errors
    /// - [`MapError::Unregistered`] (EFAULT): no one region holds the whole page;
    /// - [`MapError::TooLarge`] (EFAULT): the region's memory is not contiguous enough;
    /// - [`MapError::Closing`] (ENXIO): the region is being unregistered.
    #[inline]
    pub fn map(&mut self, ua: UserAddr, shift: PageShift) -> Result<Mapping, MapError> {
        let region = self.enter(ua, shift)?;
        // SAFETY: the unit just taken keeps the region.
        let region = unsafe { region.as_ref() };
        Ok(Mapping::new(region, HouseRef::new(&self.station.house), ua, shift))
    }

    /// Whether [`map`](Self::map) would succeed at this moment. Nothing is counted and no address leaves.
    ///
    /// # Errors
    /// As `map`.
    #[inline]
    pub fn check(&mut self, ua: UserAddr, shift: PageShift) -> Result<(), MapError> {
        let admits = |region: NonNull<Region>| {
            // SAFETY: listed by the snapshot that our seat keeps.
            let region = unsafe { region.as_ref() };
            if region.gate.is_closed() { Err(MapError::Closing { ua }) } else { region.admits(ua, shift) }
        };
        if self.find(ua).is_some_and(|region| admits(region).is_ok()) {
            return Ok(());
        }
        self.refresh();
        admits(self.find(ua).ok_or(MapError::Unregistered { ua, shift })?)
    }

    /// Gives a mapping back without a lock or a system call. If it was the last one of a region whose registrations are
    /// gone, the region is queued, and released by the next register, unregister or
    /// [`reap`](crate::AddressSpace::reap).
    ///
    /// A mapping of another address space is dropped in the ordinary way.
    #[inline]
    pub fn unmap(&mut self, mapping: Mapping) {
        let ours = ptr::addr_eq(mapping.region().home.as_ptr(), Arc::as_ptr(&self.engine));
        if !ours {
            return drop(mapping);
        }
        let region = mapping.into_region();
        // SAFETY: the unit that the mapping held is ours to give back now.
        unsafe { self.give_back(region) };
    }

    /// Marks the system page at `ua` as written by a device. Nothing happens where nothing is registered, and for device
    /// memory (specification 1.4, scenario 51).
    pub fn mark_dirty(&mut self, ua: UserAddr) {
        if let Some(region) = self.find(ua) {
            // SAFETY: listed by the snapshot that our seat keeps.
            unsafe { region.as_ref() }.table.mark_dirty(ua);
        }
    }

    // ---- for tables -----------------------------------------------------------------------------------------------

    /// Whether this handle belongs to `engine`.
    #[inline]
    pub(crate) fn belongs_to(&self, engine: &Arc<Engine>) -> bool {
        Arc::ptr_eq(&self.engine, engine)
    }

    /// Takes one unit, for a table entry that will keep it.
    #[inline]
    pub(crate) fn take_unit(&mut self, ua: UserAddr, shift: PageShift) -> Result<NonNull<Region>, MapError> {
        self.enter(ua, shift)
    }

    /// One more unit of a region that the caller holds a unit of, as a mapping.
    pub(crate) fn map_more(
        &mut self,
        region: &Region,
        ua: UserAddr,
        shift: PageShift,
    ) -> Result<Mapping, MapError> {
        region.gate.enter().map_err(|_| MapError::Closing { ua })?;
        self.station.tally.add_own(region.slot, 1);
        Ok(Mapping::new(region, HouseRef::new(&self.station.house), ua, shift))
    }

    /// Gives back one unit of `region`.
    ///
    /// # Safety
    /// The caller holds that unit, of a region of this address space, and does not use the region any more.
    #[inline]
    pub(crate) unsafe fn give_back(&mut self, region: NonNull<Region>) {
        // SAFETY: the unit keeps it.
        let header = unsafe { region.as_ref() };
        self.station.tally.add_own(header.slot, -1);
        if header.gate.leave() == Ok(Left::Last) {
            // Alone with the region now: see `region`.
            self.engine.queue_drained(region);
        }
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.engine.leave_station(&self.station);
    }
}

impl fmt::Debug for Translator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translator").field("holder", &self.holder()).finish_non_exhaustive()
    }
}
