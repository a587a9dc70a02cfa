//! The translator: a thread's own reader handle. This is real mode.
//!
//! Everything here but making and dropping one works without a lock, an allocation, a system call or a page fault, and so
//! in a signal handler (which has a translator of its own: `&mut self` keeps two from sharing one). A translator sits on a
//! snapshot and looks for a newer one only when it misses or meets a closed door.
//!
//! The usual case, a page no larger than the system's in a region that the cells cover, is inlined and touches the cell, the
//! thread's own count, the door, and the page's address: nothing that another thread writes.

#![expect(unsafe_code, reason = "a translator reads what the snapshot in its seat names")]

pub(crate) mod list;
pub(crate) mod range_mapping;
mod ranges;

use alloc::sync::Arc;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crate::addr::{HostAddr, PageShift, UserAddr};
use crate::engine::reader::{Place, Station};
use crate::engine::{Engine, Shown};
use crate::lookup::holder::{Holder, House, HouseRef};
use crate::lookup::index::View;
use crate::lookup::index_entry::{SystemPage, host_of, slot_of};
use crate::lookup::region::{MapError, Mapping, Region};
use crate::lookup::snapshot::Snapshot;
use crate::sync::atomic::AtomicI64;
use crate::sync::percpu_ref::{Door, Entered, FenceMode};

/// A thread's reader handle on an address space: looks pages up and counts their mappings.
pub struct Translator {
    /// The cells of the snapshot at hand.
    view: View,
    /// Bytes of the view that the inlined path serves: none in [`FenceMode::Full`].
    fast: u64,
    /// The station's newest counts when the snapshot was taken: at least one for every slot the snapshot names.
    counts: *const AtomicI64,
    /// The engine's doors.
    doors: *const Door,
    /// How many counts there are.
    capacity: usize,
    granule: u32,
    /// The bits of an address inside a system page.
    mask: u64,
    mode: FenceMode,
    /// What mappings carry: changes with `capacity`.
    house: HouseRef,
    /// Why the last `take` failed.
    failure: MapError,
    /// What readers touch of the engine and of the station.
    shown: NonNull<Shown>,
    place: NonNull<Place>,
    engine: Arc<Engine>,
    station: Arc<Station>,
    /// What the station's seat names.
    snapshot: *const Snapshot,
    /// One thread at a time: the counts are written with plain stores.
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: what the pointers reach lives as long as the engine, the station and the seat, on any thread, and one thread at a
// time uses the handle.
unsafe impl Send for Translator {}

/// A unit taken: where the device finds the byte asked for, and the slot. Two words, so that it comes back in registers.
type Taken = (u64, u32);

impl Translator {
    pub(crate) fn new(engine: Arc<Engine>, station: Arc<Station>) -> Self {
        let mut this = Self {
            view: View::EMPTY,
            fast: 0,
            counts: ptr::null(),
            doors: engine.doors().as_ptr(),
            capacity: 0,
            granule: engine.granule().shift().get(),
            mask: engine.granule().shift().mask(),
            mode: engine.fence_mode(),
            house: HouseRef::new(&station.house),
            failure: MapError::Foreign,
            shown: engine.shown.as_ptr(),
            place: station.place.as_ptr(),
            engine,
            station,
            snapshot: ptr::null(),
            not_sync: PhantomData,
        };
        this.refresh();
        this
    }

    /// Whose mappings this handle counts.
    #[must_use]
    pub fn holder(&self) -> Holder {
        self.station.house.holder
    }

    /// Sits on the newest snapshot. Never needed for correctness; an idle translator that refreshes lets old tables go.
    pub fn refresh(&mut self) {
        // SAFETY: 1. the station is listed in the books until `drop`, and every reclaim is given all listed seats;
        // 2. `&mut self`, and the station is this translator's alone.
        self.snapshot = unsafe { self.shown().published.refresh(&self.place().seat) };
        self.view = self.snapshot().view;
        self.fast = if self.mode == FenceMode::Asymmetric { self.view.span } else { 0 };
        // After the snapshot: counts for all its slots were there before it was published.
        (self.counts, self.capacity) = self.place().newest().raw();
        self.house = self.house.knowing(self.capacity);
    }

    #[inline]
    fn shown(&self) -> &Shown {
        // SAFETY: lives as long as the engine.
        unsafe { self.shown.as_ref() }
    }

    #[inline]
    fn place(&self) -> &Place {
        // SAFETY: lives as long as the station.
        unsafe { self.place.as_ref() }
    }

    #[inline]
    fn snapshot(&self) -> &Snapshot {
        // SAFETY: the seat has named it since the last `refresh`, so no writer frees it.
        unsafe { &*self.snapshot }
    }

    #[inline]
    fn count(&self, slot: usize) -> &AtomicI64 {
        debug_assert!(slot < self.capacity);
        // SAFETY: the callers' slots are named by the snapshot or below `capacity`; counts live as long as the station.
        unsafe { &*self.counts.wrapping_add(slot) }
    }

    #[inline]
    fn door(&self, slot: usize) -> &Door {
        // SAFETY: there is a door for every slot, and they live as long as the engine.
        unsafe { &*self.doors.wrapping_add(slot) }
    }

    /// The cell of the byte at `ua`, and the byte's offset in the array of cells.
    #[inline]
    pub(crate) fn look(&self, ua: UserAddr) -> Option<(*mut u32, u64)> {
        self.look_within(ua, self.view.span)
    }

    /// The same, where mapping passes no fence: what `take_word` takes.
    #[inline]
    pub(crate) fn look_fast(&self, ua: UserAddr) -> Option<(*mut u32, u64)> {
        self.look_within(ua, self.fast)
    }

    #[inline(always)]
    fn look_within(&self, ua: UserAddr, span: u64) -> Option<(*mut u32, u64)> {
        let offset = self.offset(ua);
        // SAFETY: inside the cells of the snapshot at hand: no caller's `span` is larger than theirs.
        (offset < span).then(|| (unsafe { self.view.load(offset) }, offset))
    }

    /// Where `ua` lies in the array of cells, if it does.
    #[inline]
    pub(crate) fn offset(&self, ua: UserAddr) -> u64 {
        ua.raw().wrapping_sub(self.view.base)
    }

    /// What mappings carry that can be counted back here.
    #[inline]
    pub(crate) fn house(&self) -> HouseRef {
        self.house
    }

    /// The system page.
    #[inline]
    pub(crate) fn system_page(&self) -> PageShift {
        // The engine's granule was one.
        PageShift::new(self.granule).unwrap_or(PageShift::K4)
    }

    // ---- taking and giving units ----------------------------------------------------------------------------------

    /// Takes one unit of the region that holds the page of `shift` around `ua`. `None`: nothing was taken, and `failure` says
    /// why.
    #[inline]
    pub(crate) fn take(&mut self, ua: UserAddr, shift: PageShift) -> Option<Taken> {
        let offset = self.offset(ua);
        // No system page is smaller than 4 KiB, so a caller that always asks for that pays for no comparison.
        let taken = if offset < self.fast && (shift == PageShift::K4 || shift.get() <= self.granule) {
            // SAFETY: inside the cells of the snapshot at hand.
            let word = unsafe { self.view.load(offset) };
            // An empty cell says slot 0, whose door is never open.
            let slot = slot_of(word);
            if self.door(slot).enter_open(self.count(slot), FenceMode::Asymmetric) {
                // SAFETY: entered after the cell was loaded.
                return Some((unsafe { host_of(word, offset, self) }, slot as u32));
            }
            // Nothing comes back from here into the way of those who found it open.
            self.take_counted(ua, shift, slot)
        } else {
            self.take_slowly(ua, shift)
        };
        // No region has slot 0: two words come back in registers, an option of them through the stack.
        if taken.1 == 0 { None } else { Some(taken) }
    }

    /// `take` for a page whose cell was loaded from the snapshot at hand; null when it is in none. `None`: a unit of the
    /// word's slot is counted, and the caller calls [`take_missed`](Self::take_missed).
    #[inline]
    pub(crate) fn take_word(&mut self, word: *mut u32, ua: UserAddr) -> Option<Taken> {
        let slot = slot_of(word);
        // Slot 0: an empty cell or none, whose door is never open.
        let open = self.door(slot).enter_open(self.count(slot), FenceMode::Asymmetric);
        // SAFETY: entered after the cell was loaded.
        open.then(|| (unsafe { host_of(word, self.offset(ua), self) }, slot as u32))
    }

    /// What `take_word` could not do. May leave the snapshot at hand for a newer one: then words loaded before are void.
    #[cold]
    pub(crate) fn take_missed(&mut self, word: *mut u32, ua: UserAddr, shift: PageShift) -> Option<Taken> {
        let taken = self.take_counted(ua, shift, slot_of(word));
        if taken.1 == 0 { None } else { Some(taken) }
    }

    /// Which snapshot is at hand. While it stays the same, nothing that was loaded from it is used again.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.snapshot().generation
    }

    /// What `take` could not do: a unit of `slot` is counted, and its door was not open.
    #[cold]
    #[inline(never)]
    fn take_counted(&mut self, ua: UserAddr, shift: PageShift, slot: usize) -> Taken {
        match self.shown().region_in(slot as u32) {
            Some(region) if self.door(slot).enter_closing(self.count(slot)) == Entered::In => {
                // SAFETY: the unit keeps it, and a cell of its own said that it holds the page.
                (unsafe { region.as_ref() }.table.host(ua).raw(), slot as u32)
            }
            _ => self.take_slowly(ua, shift),
        }
    }

    /// What `take` could not do: a region that is not in the cells, a large page, a newer snapshot, a host where every map
    /// passes a fence. Slot 0 when nothing was taken.
    #[cold]
    #[inline(never)]
    fn take_slowly(&mut self, ua: UserAddr, shift: PageShift) -> Taken {
        if self.mode == FenceMode::Full {
            if let Some(taken) = self.take_fenced(ua, shift) {
                return taken;
            }
        }
        if let Ok(taken) = self.take_by_header(ua, shift) {
            return taken;
        }
        // An old snapshot may name regions that are gone: only the newest one says why there is none.
        self.refresh();
        self.take_by_header(ua, shift).unwrap_or_else(|error| {
            self.failure = error;
            (0, 0)
        })
    }

    /// `take` from the cells, with a fence.
    fn take_fenced(&self, ua: UserAddr, shift: PageShift) -> Option<Taken> {
        let (word, offset) = self.look(ua).filter(|_| shift.get() <= self.granule)?;
        let slot = slot_of(word);
        if self.door(slot).enter(self.count(slot), FenceMode::Full) != Entered::In {
            return None;
        }
        // SAFETY: entered after the cell was loaded.
        Some((unsafe { host_of(word, offset, self) }, slot as u32))
    }

    fn take_by_header(&mut self, ua: UserAddr, shift: PageShift) -> Result<Taken, MapError> {
        let found = self.find(ua).ok_or(MapError::Unregistered { ua, shift })?;
        // SAFETY: named by the snapshot at hand.
        let region = unsafe { found.as_ref() };
        region.admits(ua, shift)?;
        let slot = region.slot as usize;
        match self.door(slot).enter(self.count(slot), self.mode) {
            Entered::In => Ok((region.table.host(ua).raw(), region.slot)),
            Entered::Closed => Err(MapError::Closing { ua }),
        }
    }

    /// The region that holds the byte at `ua` in the snapshot at hand.
    #[inline]
    fn find(&self, ua: UserAddr) -> Option<NonNull<Region>> {
        if let Some((word, _)) = self.look(ua) {
            let slot = slot_of(word);
            if slot != 0 {
                return self.shown().region_in(slot as u32);
            }
        }
        self.snapshot().search(ua).map(NonNull::from)
    }

    /// Gives one unit of `slot` back.
    ///
    /// # Safety
    /// The caller holds that unit, of this address space and counted with this translator's holder, and does not use the
    /// address any more.
    #[inline]
    pub(crate) unsafe fn give(&mut self, slot: u32) {
        if slot as usize >= self.capacity {
            self.lengthen();
        }
        Door::leave(self.count(slot as usize));
    }

    /// Gets the counts of a unit that was taken by a translator which knows longer ones.
    #[cold]
    #[inline(never)]
    fn lengthen(&mut self) {
        self.refresh();
    }

    /// Releases one unit of `slot` that is counted in `count`, another holder's.
    ///
    /// Takes the count and not the house: from the moment the count goes down another thread may free the house, and a
    /// reference that is an argument must stay valid until the call returns. For an atomic alone that rule does not hold.
    pub(crate) fn give_to(&mut self, count: Option<&AtomicI64>, slot: u32) {
        if let Some(count) = count {
            // A drain that waits for it looks again by itself.
            let _ = self.door(slot as usize).leave_shared(count);
        }
    }

    /// Counts a unit of `slot`, just taken, with another holder from now on.
    pub(crate) fn hand_over(&mut self, house: &House, slot: u32) {
        house.add(slot, 1);
        // The other count has it already, so no sum misses it; and the unit is not given back.
        Door::leave(self.count(slot as usize));
    }

    /// Why the last `take` took nothing.
    pub(crate) fn failure(&self) -> MapError {
        self.failure
    }

    /// Whether this handle belongs to `engine`.
    #[inline]
    pub(crate) fn belongs_to(&self, engine: &Arc<Engine>) -> bool {
        Arc::ptr_eq(&self.engine, engine)
    }

    /// Whether this handle counts with `house`.
    #[inline]
    pub(crate) fn counts_with(&self, house: &House) -> bool {
        self.house.is(house)
    }

    // ---- the public face ------------------------------------------------------------------------------------------

    /// Maps the page of `2^shift` bytes that holds `ua`: finds its region, counts one unit, and yields the address. The
    /// page is the aligned one around `ua`; [`Mapping::hpa`] is the address of the byte at `ua` itself.
    ///
    /// # Errors
    /// - [`MapError::Unregistered`] (EFAULT): no one region holds the whole page;
    /// - [`MapError::TooLarge`] (EFAULT): the region's memory is not contiguous enough;
    /// - [`MapError::Closing`] (ENXIO): the region is being unregistered.
    #[inline]
    pub fn map(&mut self, ua: UserAddr, shift: PageShift) -> Result<Mapping, MapError> {
        let Some((host, slot)) = self.take(ua, shift) else { return Err(self.failure) };
        Ok(Mapping::new(HostAddr::new(host), ua, shift, slot, self.house))
    }

    /// Whether [`map`](Self::map) would succeed at this moment. Nothing is counted and no address leaves.
    ///
    /// # Errors
    /// As `map`.
    #[inline]
    pub fn check(&mut self, ua: UserAddr, shift: PageShift) -> Result<(), MapError> {
        if let Some((word, _)) = self.look(ua) {
            let small = shift == PageShift::K4 || shift.get() <= self.granule;
            if small && self.door(slot_of(word)).is_open() {
                return Ok(());
            }
        }
        self.check_searching(ua, shift)
    }

    #[cold]
    #[inline(never)]
    fn check_searching(&mut self, ua: UserAddr, shift: PageShift) -> Result<(), MapError> {
        let look = |this: &Self| {
            let found = this.find(ua).ok_or(MapError::Unregistered { ua, shift })?;
            // SAFETY: named by the snapshot at hand.
            let region = unsafe { found.as_ref() };
            region.admits(ua, shift)?;
            if this.door(region.slot as usize).is_open() { Ok(()) } else { Err(MapError::Closing { ua }) }
        };
        if look(self).is_ok() {
            return Ok(());
        }
        self.refresh();
        look(self)
    }

    /// Gives a mapping back without a lock or a system call. If it was the last one of a region whose registrations are
    /// gone, the region is released by the next register, unregister or [`reap`](crate::AddressSpace::reap).
    ///
    /// A mapping of another address space is dropped in the ordinary way.
    #[inline]
    pub fn unmap(&mut self, mapping: Mapping) {
        if mapping.house() == self.house {
            // Taken by a translator with as many counts, so the slot is one of them.
            let (slot, _) = mapping.into_unit();
            Door::leave(self.count(slot as usize));
        } else {
            self.unmap_other(mapping);
        }
    }

    #[cold]
    #[inline(never)]
    fn unmap_other(&mut self, mapping: Mapping) {
        // SAFETY: the mapping's unit keeps its house.
        let house = unsafe { mapping.house().get() };
        if !house.is_of(&self.engine) {
            return drop(mapping);
        }
        let (slot, _) = mapping.into_unit();
        if self.counts_with(house) {
            // SAFETY: the mapping held it, counted with our holder in our address space.
            unsafe { self.give(slot) };
        } else {
            self.give_to(house.count(slot), slot);
        }
    }

    /// Marks the system page at `ua` as written by a device. Nothing happens where nothing is registered, and for device
    /// memory (docs/specification.md 1.4, scenario 51). The mark is sure to be told at the unpin when the caller holds a mapping of
    /// the page meanwhile.
    pub fn mark_dirty(&mut self, ua: UserAddr) {
        if !self.mark_found(ua) {
            self.refresh();
            self.mark_found(ua);
        }
    }

    /// Marks the page in the region of the snapshot at hand, unless that region is gone.
    fn mark_found(&self, ua: UserAddr) -> bool {
        let Some(found) = self.find(ua) else { return false };
        // SAFETY: named by the snapshot at hand.
        let region = unsafe { found.as_ref() };
        let gone = self.door(region.slot as usize).is_closed();
        if !gone {
            region.table.mark_dirty(ua);
        }
        !gone
    }
}

impl SystemPage for Translator {
    #[inline]
    fn shift(&self) -> u32 {
        self.granule
    }

    #[inline]
    fn mask(&self) -> u64 {
        self.mask
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
