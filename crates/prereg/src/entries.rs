//! What IOMMU tables are made of: blocks of entries, each of which may own one counted mapping.
//!
//! A live entry is two words: what the device would read (host address and permissions) and what remembers the unit it
//! owns (the region's slot and the user address), as the kernel keeps a user-address array beside a table. The second word is
//! also the entry's lock: whoever changes an entry first swaps BUSY into it. The lock is held for a few instructions and
//! never waited for without bound where a signal handler could be the waiter.
//!
//! Every unit is counted with the block's holder. A translator of that holder counts it in its own memory; another one hands
//! it over to the holder's house, which costs an atomic.

#![expect(unsafe_code, reason = "an entry remembers its region by slot; the unit it owns keeps the region")]

use alloc::sync::Arc;
use core::fmt;

use crate::addr::{PageShift, UserAddr};
use crate::engine::{Engine, OutOfMemory};
use crate::lookup::holder::{Holder, SharedHouse};
use crate::lookup::region::{MapError, Mapping, Region};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table_memory::owned::Slab;
use crate::translator::Translator;

/// What a device may do through an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// The device may read memory.
    Read,
    /// The device may write memory.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// From the permission bits of a TCE: bit 0 read, bit 1 write. `None` when neither is set.
    #[must_use]
    #[inline]
    pub const fn from_bits(bits: u64) -> Option<Self> {
        match bits & 3 {
            1 => Some(Self::Read),
            2 => Some(Self::Write),
            3 => Some(Self::ReadWrite),
            _ => None,
        }
    }

    /// The permission bits.
    #[must_use]
    #[inline]
    pub const fn bits(self) -> u64 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::ReadWrite => 3,
        }
    }

    /// Whether the device may write.
    #[must_use]
    #[inline]
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }

    /// Whether the device may read.
    #[must_use]
    #[inline]
    pub const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::ReadWrite)
    }
}

/// A live entry as it was at some moment, without the host address: that comes with a mapping, from [`EntryBlock::take`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EntryView {
    /// The user address it was made from.
    pub ua: UserAddr,
    /// What the device may do.
    pub access: Access,
}

/// The unit word while somebody changes the entry.
const BUSY: u64 = 1 << 63;
/// Bits of the unit word that hold the user address, in units of 4 KiB; the slot is above.
const PAGE_BITS: u32 = 44;
const PAGE_SHIFT: u32 = 12;
/// Past the user addresses that an entry can remember; no Linux gives out higher ones.
const UA_LIMIT: u64 = 1 << (PAGE_BITS + PAGE_SHIFT);
/// How often a change looks at an entry that another thread is changing before it gives up. A model looks
/// once: loom does not know that a failed look, which writes BUSY again, comes before the store that unlocks.
const LOOKS: u32 = if cfg!(loom) { 1 } else { 256 };

/// One entry. Empty: both words 0.
struct Cell {
    /// Host address, permissions in bits 0 and 1. Written under the entry's lock.
    host: AtomicU64,
    /// 0, BUSY, or the unit owned.
    unit: AtomicU64,
}

/// The unit word of a page at `ua` in `slot`.
#[inline]
fn unit_of(slot: u32, ua: UserAddr) -> u64 {
    (u64::from(slot) << PAGE_BITS) | (ua.raw() >> PAGE_SHIFT)
}

/// The slot of a unit word that is neither 0 nor BUSY.
#[inline]
fn slot_of(unit: u64) -> u32 {
    (unit >> PAGE_BITS) as u32
}

/// The user address of a unit word that is neither 0 nor BUSY.
#[inline]
fn ua_of(unit: u64) -> UserAddr {
    UserAddr::new((unit & ((1 << PAGE_BITS) - 1)) << PAGE_SHIFT)
}

/// A block of entries of one page size, for one address space. Dropping it gives every unit back.
///
/// All methods take `&self`; concurrent changes of one entry are serialised, entries are independent of each other.
pub struct EntryBlock {
    engine: Arc<Engine>,
    /// Where units go that are given back without a translator.
    house: SharedHouse,
    shift: PageShift,
    cells: Slab<Cell>,
}

impl EntryBlock {
    /// `len` empty entries of `2^shift` bytes for `space`, 16 bytes each. `holder` is whose mappings they are when the block
    /// itself gives them back; use translators of the same holder.
    ///
    /// # Errors
    /// [`OutOfMemory`]; also for a page below 4 KiB, which no table has.
    pub fn new(
        space: &crate::space::AddressSpace,
        shift: PageShift,
        len: usize,
        holder: Holder,
    ) -> Result<Self, OutOfMemory> {
        if shift.get() < PAGE_SHIFT {
            return Err(OutOfMemory);
        }
        let engine = space.engine().clone();
        let house = engine.house(holder)?;
        let cells =
            Slab::new(&engine.tables, len, || Cell { host: AtomicU64::new(0), unit: AtomicU64::new(0) });
        Ok(Self { engine, house, shift, cells: cells.ok_or(OutOfMemory)? })
    }

    /// How many entries.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The page size of its entries.
    #[must_use]
    #[inline]
    pub fn shift(&self) -> PageShift {
        self.shift
    }

    /// How many entries are live, as of some moment during the call.
    #[must_use]
    pub fn live(&self) -> u64 {
        // Relaxed: a number to show.
        self.cells.iter().filter(|cell| cell.unit.load(Ordering::Relaxed) != 0).count() as u64
    }

    /// What the device may do through entry `index`; `None` when it is empty or does not exist.
    #[must_use]
    pub fn access(&self, index: usize) -> Option<Access> {
        // Relaxed: a look that may be stale at once.
        Access::from_bits(self.cells.get(index)?.host.load(Ordering::Relaxed))
    }

    /// Locks the entry and returns its unit word. `None` after `LOOKS` tries.
    #[inline]
    fn lock(cell: &Cell) -> Option<u64> {
        for _ in 0..LOOKS {
            // Acquire pairs with the Release store of `unlock`: we see the entry as the last change left it.
            let unit = cell.unit.swap(BUSY, Ordering::Acquire);
            if unit != BUSY {
                return Some(unit);
            }
            core::hint::spin_loop();
        }
        None
    }

    #[inline]
    fn unlock(cell: &Cell, unit: u64) {
        // Release: see `lock`.
        cell.unit.store(unit, Ordering::Release);
    }

    /// Maps the page at `ua` at entry `index`: one unit is taken, the entry is replaced, the unit of what was there is given
    /// back and its page marked dirty if the device could write it. Returns what the device could do there before.
    ///
    /// # Errors
    /// [`MapError`]; the entry is as it was and nothing is counted. An `index` past the end is `Misaligned`.
    #[inline]
    pub fn set(
        &self,
        translator: &mut Translator,
        index: usize,
        ua: UserAddr,
        access: Access,
    ) -> Result<Option<Access>, MapError> {
        if !translator.belongs_to(&self.engine) {
            return Err(MapError::Foreign);
        }
        let Some(cell) = self.cells.get(index).filter(|_| ua.is_aligned(self.shift)) else {
            return Err(MapError::Misaligned { ua, shift: self.shift });
        };
        if ua.raw() >= UA_LIMIT {
            return Err(MapError::Unregistered { ua, shift: self.shift });
        }
        let Some((host, slot)) = translator.take(ua, self.shift) else { return Err(translator.failure()) };
        if !translator.counts_with(&self.house) {
            translator.hand_over(&self.house, slot);
        }
        let Some(old) = Self::lock(cell) else {
            self.give(translator, slot);
            return Err(MapError::Contended);
        };
        // Relaxed: ordered by the lock, which `view` and `take` take too.
        let before = Access::from_bits(cell.host.load(Ordering::Relaxed));
        cell.host.store(host | access.bits(), Ordering::Relaxed);
        Self::unlock(cell, unit_of(slot, ua));
        if old != 0 {
            self.give_back(translator, old, before);
        }
        Ok(before)
    }

    /// Empties entry `index`, as [`set`](Self::set) would replace it. Returns what the device could do there before.
    ///
    /// # Errors
    /// [`MapError::Contended`] or [`MapError::Foreign`]; nothing changed. An `index` past the end is empty.
    #[inline]
    pub fn clear(&self, translator: &mut Translator, index: usize) -> Result<Option<Access>, MapError> {
        if !translator.belongs_to(&self.engine) {
            return Err(MapError::Foreign);
        }
        let Some(cell) = self.cells.get(index) else { return Ok(None) };
        // Relaxed: empty as of some moment during the call is all that is promised.
        if cell.unit.load(Ordering::Relaxed) == 0 {
            return Ok(None);
        }
        let Some(old) = Self::lock(cell) else { return Err(MapError::Contended) };
        // Relaxed: ordered by the lock.
        let before = Access::from_bits(cell.host.load(Ordering::Relaxed));
        cell.host.store(0, Ordering::Relaxed);
        Self::unlock(cell, 0);
        if old != 0 {
            self.give_back(translator, old, before);
        }
        Ok(before)
    }

    /// Gives one unit of `slot` back that is counted with our holder.
    #[inline]
    fn give(&self, translator: &mut Translator, slot: u32) {
        if translator.counts_with(&self.house) {
            // SAFETY: this block's unit, of this address space, counted with this holder, and out of its entry.
            unsafe { translator.give(slot) };
        } else {
            translator.give_to(self.house.count(slot), slot);
        }
    }

    /// Gives the unit back that a word taken out of an entry owned.
    #[inline]
    fn give_back(&self, translator: &mut Translator, unit: u64, access: Option<Access>) {
        if access.is_some_and(Access::writes) {
            self.mark_written(unit);
        }
        self.give(translator, slot_of(unit));
    }

    /// The region of a unit word, while the unit is held.
    #[inline]
    fn region(&self, unit: u64) -> Option<&Region> {
        // SAFETY: the unit keeps it.
        self.engine.shown.region_in(slot_of(unit)).map(|region| unsafe { region.as_ref() })
    }

    /// What a device could write counts as written when its entry goes (docs/specification.md 1.9). The unit is still held.
    fn mark_written(&self, unit: u64) {
        let Some(region) = self.region(unit) else { return };
        let granule = self.engine.granule().bytes();
        let mut offset = 0;
        while offset < self.shift.bytes() {
            if let Some(ua) = ua_of(unit).checked_add(offset) {
                region.table.mark_dirty(ua);
            }
            offset += granule;
        }
    }

    /// The entry at `index`; `None` when it is empty or does not exist.
    ///
    /// Waits while another thread changes the entry, which takes a few instructions; not for signal handlers.
    #[must_use]
    pub fn view(&self, index: usize) -> Option<EntryView> {
        let cell = self.cells.get(index)?;
        // Relaxed: see `clear`.
        if cell.unit.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let unit = loop {
            if let Some(unit) = Self::lock(cell) {
                break unit;
            }
        };
        // Relaxed: ordered by the lock.
        let access = Access::from_bits(cell.host.load(Ordering::Relaxed));
        Self::unlock(cell, unit);
        // An empty entry has no permissions.
        access.map(|access| EntryView { ua: ua_of(unit), access })
    }

    /// One more mapping of what entry `index` maps: what a device's access through the entry holds while it lasts. `None`
    /// when the entry is empty.
    ///
    /// # Errors
    /// [`MapError::Contended`], [`MapError::Foreign`], or [`MapError::Closing`] when the region is draining.
    pub fn take(
        &self,
        translator: &mut Translator,
        index: usize,
    ) -> Result<Option<(Mapping, Access)>, MapError> {
        if !translator.belongs_to(&self.engine) {
            return Err(MapError::Foreign);
        }
        let Some(cell) = self.cells.get(index) else { return Ok(None) };
        let unit = Self::lock(cell).ok_or(MapError::Contended)?;
        let _locked = Locked { cell, unit };
        if unit == 0 {
            return Ok(None);
        }
        // Relaxed: ordered by the lock.
        let Some(access) = Access::from_bits(cell.host.load(Ordering::Relaxed)) else { return Ok(None) };
        translator.map(ua_of(unit), self.shift).map(|mapping| Some((mapping, access)))
    }

    /// Bytes of memory the entries take.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        size_of_val(&*self.cells) as u64
    }
}

/// An entry's lock, given back when dropped.
struct Locked<'a> {
    cell: &'a Cell,
    unit: u64,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        EntryBlock::unlock(self.cell, self.unit);
    }
}

impl Drop for EntryBlock {
    fn drop(&mut self) {
        for cell in self.cells.iter() {
            // Relaxed: exclusive access.
            let unit = cell.unit.load(Ordering::Relaxed);
            if unit == 0 {
                continue;
            }
            // Relaxed: exclusive access.
            if Access::from_bits(cell.host.load(Ordering::Relaxed)).is_some_and(Access::writes) {
                self.mark_written(unit);
            }
            if let Some(count) = self.house.count(slot_of(unit)) {
                // Whether it was the last one is looked at below, once for all.
                let _ = self.engine.door(slot_of(unit)).leave_shared(count);
            }
        }
        self.engine.reap();
    }
}

impl fmt::Debug for EntryBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryBlock")
            .field("shift", &self.shift)
            .field("len", &self.cells.len())
            .finish_non_exhaustive()
    }
}
