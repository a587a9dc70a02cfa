//! The translator: a thread's own reader handle. The kernel calls such code real mode.
//!
//! Everything here except creating and dropping one works without a lock, an allocation, a system call or a page fault,
//! and so in a signal handler (which has a translator of its own: `&mut self` keeps two threads from sharing one). A
//! translator uses one snapshot and looks for a newer one only when it misses or meets a closed percpu ref.
//!
//! The usual case, a page no larger than the system page in a region that the page index covers, is inlined and touches
//! the index entry, the thread's own counter, the percpu ref and the page's address: nothing that another thread
//! writes.

#![expect(unsafe_code, reason = "a translator reads the snapshot that its hazard slot names")]

pub(crate) mod burst;
mod fast_path;
pub(crate) mod list;
pub(crate) mod range_mapping;
mod ranges;

use alloc::sync::Arc;
use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};

use crate::addr::{HostAddr, PageShift, UserAddr};
use crate::engine::reader::{Reader, ReaderShared};
use crate::engine::{Engine, ReaderView};
use crate::lookup::holder::{Holder, HolderCounts, HolderCountsRef};
use crate::lookup::index_entry::slot_of;
use crate::lookup::region::{MapError, Mapping, Region};
use crate::lookup::snapshot::Snapshot;
use crate::sync::atomic::AtomicI64;
use crate::sync::percpu_ref::{EnterResult, FenceMode, PercpuRef};
use crate::translator::fast_path::{FastPath, FastResult};

/// A thread's reader handle on an address space: looks pages up and counts their mappings.
pub struct Translator {
    /// The part that the inlined path reads.
    pub(crate) path: FastPath,
    /// The number of counters.
    capacity: usize,
    mode: FenceMode,
    /// The reference that mappings carry: changes with `capacity`.
    holder_counts: HolderCountsRef,
    /// The reason why the last `acquire` failed.
    failure: MapError,
    /// The parts of the engine and of the reader that this handle touches.
    reader_view: NonNull<ReaderView>,
    shared: NonNull<ReaderShared>,
    engine: Arc<Engine>,
    reader: Arc<Reader>,
    /// The snapshot that the reader's hazard slot names.
    snapshot: *const Snapshot,
    /// One thread at a time: the counters are written with plain stores.
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: the pointers are valid as long as the engine, the reader and the hazard slot, on any thread, and one thread
// at a time uses the handle.
unsafe impl Send for Translator {}

/// A unit: the host address of the byte asked for, and the slot. Two words, so that it is returned in registers.
type Acquired = (u64, usize);

impl Translator {
    pub(crate) fn new(engine: Arc<Engine>, reader: Arc<Reader>) -> Self {
        let mut this = Self {
            path: FastPath::new(engine.refs().as_ptr(), engine.granule().shift()),
            capacity: 0,
            mode: engine.fence_mode(),
            holder_counts: HolderCountsRef::new(&reader.holder_counts),
            failure: MapError::Foreign,
            reader_view: engine.reader_view.as_ptr(),
            shared: reader.shared.as_ptr(),
            engine,
            reader,
            snapshot: ptr::null(),
            not_sync: PhantomData,
        };
        this.refresh();
        this
    }

    /// The holder whose mappings this handle counts.
    #[must_use]
    pub fn holder(&self) -> Holder {
        self.reader.holder_counts.holder
    }

    /// Switches to the newest snapshot. Never needed for correctness; an idle translator that is refreshed lets old
    /// tables be freed.
    pub fn refresh(&mut self) {
        // SAFETY: 1. the reader is listed in the registry until `drop`, and every reclaim looks at all listed slots;
        // 2. `&mut self`, and the reader is this translator's alone.
        self.snapshot = unsafe { self.reader_view().published.protect(&self.shared().hazard) };
        let index = self.snapshot().view;
        // After the snapshot: counters for all its slots existed before it was published.
        let (counts, capacity) = self.shared().newest().raw();
        self.path.switch(index, counts, self.mode);
        self.capacity = capacity;
        self.holder_counts = self.holder_counts.with_capacity_hint(self.capacity);
    }

    #[inline]
    fn reader_view(&self) -> &ReaderView {
        // SAFETY: lives as long as the engine.
        unsafe { self.reader_view.as_ref() }
    }

    #[inline]
    fn shared(&self) -> &ReaderShared {
        // SAFETY: lives as long as the reader.
        unsafe { self.shared.as_ref() }
    }

    #[inline]
    fn snapshot(&self) -> &Snapshot {
        // SAFETY: the hazard slot has named it since the last `refresh`, so no writer frees it.
        unsafe { &*self.snapshot }
    }

    #[inline]
    fn count(&self, slot: usize) -> &AtomicI64 {
        debug_assert!(slot < self.capacity);
        // SAFETY: the callers' slots are named by the snapshot or below `capacity`; counters live as long as the
        // reader.
        unsafe { &*self.path.arrays.count(slot) }
    }

    #[inline]
    fn percpu_ref(&self, slot: usize) -> &PercpuRef {
        // SAFETY: there is a ref for every slot, and they live as long as the engine.
        unsafe { &*self.path.arrays.percpu_ref(slot) }
    }

    /// The reference that mappings of this translator carry.
    #[inline]
    pub(crate) fn holder_counts(&self) -> HolderCountsRef {
        self.holder_counts
    }

    /// The system page.
    #[inline]
    pub(crate) fn system_page(&self) -> PageShift {
        self.path.granule
    }

    // ---- acquiring and releasing units ----------------------------------------------------------------------------------

    /// Enters the region that holds the page of `shift` around `ua`. `None`: no unit is held, and `failure` returns the
    /// reason.
    #[inline]
    pub(crate) fn acquire(&mut self, ua: UserAddr, shift: PageShift) -> Option<Acquired> {
        // The cold paths end the function, so the path of an open ref keeps nothing for them in registers.
        let (host, slot) = match self.path.enter(self.path.arrays, ua, shift) {
            FastResult::Entered(host, slot) => return Some((host, slot)),
            FastResult::Counted(slot) => self.acquire_counted(ua, shift, slot),
            FastResult::Missed => self.acquire_cold(ua, shift),
        };
        // No region has slot 0. Two words are returned in registers, an option of them on the stack.
        // That it has 32 bits saves the caller an instruction.
        if slot == 0 { None } else { Some((host, slot as u32 as usize)) }
    }

    /// `acquire` for a page whose entry was loaded from the current snapshot; null when the index does not cover it.
    /// `None`: a unit of the entry's slot is counted, and the caller must call
    /// [`acquire_missed`](Self::acquire_missed).
    #[inline]
    pub(crate) fn acquire_loaded(&mut self, entry: *mut u32, ua: UserAddr) -> Option<Acquired> {
        let slot = slot_of(entry);
        // Slot 0 for an empty entry or none; its ref is never open.
        let open = self.percpu_ref(slot).enter_open(self.count(slot), FenceMode::Asymmetric);
        // SAFETY: entered after the entry was loaded.
        open.then(|| (unsafe { self.path.host_of(entry, ua) }, slot))
    }

    /// The slow half of `acquire_loaded`. May switch to a newer snapshot: then entries loaded before are invalid.
    #[cold]
    pub(crate) fn acquire_missed(
        &mut self,
        entry: *mut u32,
        ua: UserAddr,
        shift: PageShift,
    ) -> Option<Acquired> {
        let acquired = self.acquire_counted(ua, shift, slot_of(entry));
        if acquired.1 == 0 { None } else { Some(acquired) }
    }

    /// The generation of the current snapshot. When it changes, nothing loaded before may be used.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.snapshot().generation
    }

    /// The rest of `acquire` when a unit of `slot` is counted and its ref was not open.
    #[cold]
    #[inline(never)]
    fn acquire_counted(&mut self, ua: UserAddr, shift: PageShift, slot: usize) -> Acquired {
        match self.reader_view().region_in(slot as u32) {
            Some(region) if self.percpu_ref(slot).enter_closing(self.count(slot)) == EnterResult::Entered => {
                // SAFETY: the unit keeps it, and one of its index entries covers the page.
                (unsafe { region.as_ref() }.table.host(ua).raw(), slot)
            }
            _ => self.acquire_cold(ua, shift),
        }
    }

    /// The rest of `acquire`: a region outside of the index, a large page, a newer snapshot, a host where every map
    /// passes a fence. Slot 0 when no unit is held.
    #[cold]
    #[inline(never)]
    fn acquire_cold(&mut self, ua: UserAddr, shift: PageShift) -> Acquired {
        if self.mode == FenceMode::Full {
            if let Some(acquired) = self.acquire_fenced(ua, shift) {
                return acquired;
            }
        }
        if let Ok(acquired) = self.acquire_by_header(ua, shift) {
            return acquired;
        }
        // An old snapshot may name released regions: only the newest one gives the right reason.
        self.refresh();
        self.acquire_by_header(ua, shift).unwrap_or_else(|error| {
            self.failure = error;
            (0, 0)
        })
    }

    /// `acquire` by the page index, with a fence.
    fn acquire_fenced(&self, ua: UserAddr, shift: PageShift) -> Option<Acquired> {
        let entry = self.path.load_entry(ua).filter(|_| shift <= self.system_page())?;
        let slot = slot_of(entry);
        if self.percpu_ref(slot).enter(self.count(slot), FenceMode::Full) != EnterResult::Entered {
            return None;
        }
        // SAFETY: entered after the entry was loaded.
        Some((unsafe { self.path.host_of(entry, ua) }, slot))
    }

    fn acquire_by_header(&mut self, ua: UserAddr, shift: PageShift) -> Result<Acquired, MapError> {
        let found = self.find(ua).ok_or(MapError::Unregistered { ua, shift })?;
        // SAFETY: named by the current snapshot.
        let region = unsafe { found.as_ref() };
        region.admits(ua, shift)?;
        let slot = region.slot as usize;
        match self.percpu_ref(slot).enter(self.count(slot), self.mode) {
            EnterResult::Entered => Ok((region.table.host(ua).raw(), slot)),
            EnterResult::Closed => Err(MapError::Closing { ua }),
        }
    }

    /// The region that holds the byte at `ua` in the current snapshot.
    #[inline]
    fn find(&self, ua: UserAddr) -> Option<NonNull<Region>> {
        if let Some(entry) = self.path.load_entry(ua) {
            let slot = slot_of(entry);
            if slot != 0 {
                return self.reader_view().region_in(slot as u32);
            }
        }
        self.snapshot().search(ua).map(NonNull::from)
    }

    /// Releases one unit of `slot`.
    ///
    /// # Safety
    /// The caller holds that unit, of this address space and counted with this translator's holder, and does not use
    /// the address any more.
    #[inline]
    pub(crate) unsafe fn release(&mut self, slot: u32) {
        if slot as usize >= self.capacity {
            self.grow();
        }
        PercpuRef::leave(self.count(slot as usize));
    }

    /// Gets the longer counters that the translator which entered the unit had.
    #[cold]
    #[inline(never)]
    fn grow(&mut self) {
        self.refresh();
    }

    /// Releases one unit of `slot` that is counted in `count`, another holder's.
    ///
    /// Takes the counter, not the holder's counters: once the count is lowered another thread may free them, and a
    /// reference passed as an argument must stay valid until the call returns. That rule does not apply to a reference
    /// to an atomic.
    pub(crate) fn release_to(&mut self, count: Option<&AtomicI64>, slot: u32) {
        if let Some(count) = count {
            // A drain that waits for it polls.
            let _ = self.percpu_ref(slot as usize).leave_shared(count);
        }
    }

    /// Counts a unit of `slot`, just entered, with another holder from now on.
    pub(crate) fn transfer(&mut self, counts: &HolderCounts, slot: u32) {
        counts.add(slot, 1);
        // The other counter has the unit already, so every sum contains it, and the unit stays held.
        PercpuRef::leave(self.count(slot as usize));
    }

    /// The reason why the last `acquire` failed.
    pub(crate) fn failure(&self) -> MapError {
        self.failure
    }

    /// Whether this handle belongs to `engine`.
    #[inline]
    pub(crate) fn belongs_to(&self, engine: &Arc<Engine>) -> bool {
        Arc::ptr_eq(&self.engine, engine)
    }

    /// Whether this handle counts with `counts`.
    #[inline]
    pub(crate) fn counts_with(&self, counts: &HolderCounts) -> bool {
        self.holder_counts.points_to(counts)
    }

    // ---- the public interface ------------------------------------------------------------------------------------------

    /// Maps the page of `2^shift` bytes that holds `ua`: finds its region, counts one unit, and returns the address.
    /// The page is the aligned one around `ua`; [`Mapping::hpa`] is the address of the byte at `ua` itself.
    ///
    /// # Errors
    /// - [`MapError::Unregistered`] (EFAULT): no one region holds the whole page;
    /// - [`MapError::TooLarge`] (EFAULT): the region's memory is not contiguous enough;
    /// - [`MapError::Closing`] (ENXIO): the region is being unregistered.
    #[inline]
    pub fn map(&mut self, ua: UserAddr, shift: PageShift) -> Result<Mapping, MapError> {
        let Some((host, slot)) = self.acquire(ua, shift) else { return Err(self.failure) };
        Ok(Mapping::new(HostAddr::new(host), ua, shift, slot as u32, self.holder_counts))
    }

    /// Whether [`map`](Self::map) would succeed at this moment. Nothing is counted and no address is returned.
    ///
    /// # Errors
    /// As `map`.
    #[inline]
    pub fn check(&mut self, ua: UserAddr, shift: PageShift) -> Result<(), MapError> {
        if let Some(entry) = self.path.load_entry(ua) {
            let small = shift == PageShift::K4 || shift <= self.system_page();
            if small && self.percpu_ref(slot_of(entry)).is_open() {
                return Ok(());
            }
        }
        self.check_cold(ua, shift)
    }

    #[cold]
    #[inline(never)]
    fn check_cold(&mut self, ua: UserAddr, shift: PageShift) -> Result<(), MapError> {
        let look = |this: &Self| {
            let found = this.find(ua).ok_or(MapError::Unregistered { ua, shift })?;
            // SAFETY: named by the current snapshot.
            let region = unsafe { found.as_ref() };
            region.admits(ua, shift)?;
            if this.percpu_ref(region.slot as usize).is_open() {
                Ok(())
            } else {
                Err(MapError::Closing { ua })
            }
        };
        if look(self).is_ok() {
            return Ok(());
        }
        self.refresh();
        look(self)
    }

    /// Releases a mapping without a lock or a system call. If it was the last one of a region without registrations,
    /// the next register, unregister or [`reap`](crate::AddressSpace::reap) releases the region.
    ///
    /// A mapping of another address space is dropped in the ordinary way.
    #[inline]
    pub fn unmap(&mut self, mapping: Mapping) {
        if mapping.counts() == self.holder_counts {
            // Acquired by a translator with this many counters, so the slot is one of them.
            let (slot, _) = mapping.into_unit();
            PercpuRef::leave(self.count(slot as usize));
        } else {
            self.unmap_other(mapping);
        }
    }

    #[cold]
    #[inline(never)]
    fn unmap_other(&mut self, mapping: Mapping) {
        // SAFETY: the mapping's unit keeps its counts.
        let counts = unsafe { mapping.counts().get() };
        if !counts.belongs_to(&self.engine) {
            return drop(mapping);
        }
        let (slot, _) = mapping.into_unit();
        if self.counts_with(counts) {
            // SAFETY: the mapping held it, counted with our holder in our address space.
            unsafe { self.release(slot) };
        } else {
            self.release_to(counts.count(slot), slot);
        }
    }

    /// Marks the system page at `ua` as written by a device. Does nothing for unregistered and for device memory
    /// (docs/specification.md 1.4, scenario 51). The unpin is sure to report the mark if the caller holds a mapping of
    /// the page meanwhile.
    pub fn mark_dirty(&mut self, ua: UserAddr) {
        if !self.mark_found(ua) {
            self.refresh();
            self.mark_found(ua);
        }
    }

    /// Marks the page in its region of the current snapshot, unless that region was released.
    fn mark_found(&self, ua: UserAddr) -> bool {
        let Some(found) = self.find(ua) else { return false };
        // SAFETY: named by the current snapshot.
        let region = unsafe { found.as_ref() };
        let released = self.percpu_ref(region.slot as usize).is_closed();
        if !released {
            region.table.mark_dirty(ua);
        }
        !released
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.engine.remove_reader(&self.reader);
    }
}

impl fmt::Debug for Translator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translator").field("holder", &self.holder()).finish_non_exhaustive()
    }
}
