//! Blocks of IOMMU table entries, each of which may own one counted mapping.
//!
//! A live entry is two words: the one that the device reads (host address and permissions), and the unit it owns (the
//! region's slot and the user address), as the kernel keeps a user-address array beside a table. The second word is also
//! the entry's lock: a thread that changes an entry first swaps BUSY into it. The lock is held for a few instructions, and
//! a waiter that could be a signal handler makes a bounded number of attempts.
//!
//! Every unit is counted with the block's holder. A translator of that holder counts it in its own memory; another one
//! transfers it to the holder's counters, which costs an atomic operation.

#![expect(unsafe_code, reason = "an entry remembers its region by slot; the unit it owns keeps the region")]

use alloc::sync::Arc;
use core::fmt;

use crate::addr::{PageShift, UserAddr};
use crate::engine::{Engine, OutOfMemory};
use crate::errno::Errno;
use crate::lookup::holder::{Holder, SharedHolderCounts};
use crate::lookup::region::{MapError, Mapping, Region};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::table_memory::owned::TableArray;
use crate::translator::Translator;

/// The accesses that an entry permits to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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

/// A live entry as it was at some moment, without the host address, which needs a mapping:
/// [`EntryBlock::hold_mapping`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EntryView {
    /// The user address that it maps.
    pub ua: UserAddr,
    /// The permitted accesses.
    pub access: Access,
}

/// The unit word while a thread changes the entry.
const BUSY: u64 = 1 << 63;
/// Bits of the unit word that hold the user address, in units of 4 KiB; the slot is above.
const PAGE_BITS: u32 = 44;
const PAGE_SHIFT: u32 = 12;
/// The end of the user addresses that an entry can hold; Linux has no higher ones.
const UA_LIMIT: u64 = 1 << (PAGE_BITS + PAGE_SHIFT);
/// Attempts to lock an entry before a change fails. A model makes one: loom does not know that a failed attempt,
/// which writes BUSY again, comes before the store that unlocks.
const LOCK_ATTEMPTS: u32 = if cfg!(loom) { 1 } else { 256 };

/// One entry. Empty: both words 0.
struct TableEntry {
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

/// The reason why a block of entries could not be made. ENOMEM.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryBlockError {
    /// No memory for the entries.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// No IOMMU table has pages below 4 KiB.
    #[error(
        "entries of {shift} cannot be made: the smallest page of a table is 4 KiB; use 4 KiB or a larger page"
    )]
    PageTooSmall {
        /// The page asked for.
        shift: PageShift,
    },
}

crate::debug_as_display!(EntryBlockError);

impl EntryBlockError {
    /// ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENOMEM
    }
}

/// A block of entries of one page size, for one address space. Dropping it releases every unit.
///
/// All methods take `&self`; concurrent changes of one entry are serialised, entries are independent of each other.
pub struct EntryBlock {
    engine: Arc<Engine>,
    /// The counters for units that are released without a translator.
    counts: SharedHolderCounts,
    shift: PageShift,
    entries: TableArray<TableEntry>,
}

impl EntryBlock {
    /// `len` empty entries of `2^shift` bytes for `space`, 16 bytes each. `holder` is the holder of their mappings; use
    /// translators of this holder.
    ///
    /// # Errors
    /// [`EntryBlockError`].
    pub fn new(
        space: &crate::space::AddressSpace,
        shift: PageShift,
        len: usize,
        holder: Holder,
    ) -> Result<Self, EntryBlockError> {
        if shift.get() < PAGE_SHIFT {
            return Err(EntryBlockError::PageTooSmall { shift });
        }
        let engine = space.engine().clone();
        let counts = engine.holder_counts(holder)?;
        let entries = TableArray::new(&engine.tables, len, || TableEntry {
            host: AtomicU64::new(0),
            unit: AtomicU64::new(0),
        });
        Ok(Self { engine, counts, shift, entries: entries.ok_or(OutOfMemory)? })
    }

    /// The number of entries.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the block has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The page size of its entries.
    #[must_use]
    #[inline]
    pub fn shift(&self) -> PageShift {
        self.shift
    }

    /// The number of live entries, as of some moment during the call.
    #[must_use]
    pub fn live(&self) -> u64 {
        // Relaxed: for reports only.
        self.entries.iter().filter(|entry| entry.unit.load(Ordering::Relaxed) != 0).count() as u64
    }

    /// The accesses that entry `index` permits; `None` when it is empty or does not exist.
    #[must_use]
    pub fn access(&self, index: usize) -> Option<Access> {
        // Relaxed: the result may be outdated on return.
        Access::from_bits(self.entries.get(index)?.host.load(Ordering::Relaxed))
    }

    /// Locks the entry and returns its unit word. `None` after `LOCK_ATTEMPTS` attempts.
    #[inline]
    fn lock(entry: &TableEntry) -> Option<u64> {
        for _ in 0..LOCK_ATTEMPTS {
            // Acquire pairs with the Release store of `unlock`: the entry is seen as the last change left it.
            let unit = entry.unit.swap(BUSY, Ordering::Acquire);
            if unit != BUSY {
                return Some(unit);
            }
            core::hint::spin_loop();
        }
        None
    }

    #[inline]
    fn unlock(entry: &TableEntry, unit: u64) {
        // Release: see `lock`.
        entry.unit.store(unit, Ordering::Release);
    }

    /// Maps the page at `ua` in entry `index`: enters one unit, replaces the entry, releases the unit of its old
    /// mapping, and marks the old page dirty if the device could write it. Returns the accesses it permitted before.
    ///
    /// # Errors
    /// [`MapError`]; the entry is unchanged and nothing is counted.
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
        let Some(entry) = self.entries.get(index) else {
            return Err(MapError::NoEntry { index, len: self.entries.len() });
        };
        if !ua.is_aligned(self.shift) {
            return Err(MapError::Misaligned { ua, shift: self.shift });
        }
        if ua.raw() >= UA_LIMIT {
            return Err(MapError::Unregistered { ua, shift: self.shift });
        }
        let Some((host, slot)) = translator.acquire(ua, self.shift) else { return Err(translator.failure()) };
        // Slots fit an entry's word.
        let slot = slot as u32;
        if !translator.counts_with(&self.counts) {
            translator.transfer(&self.counts, slot);
        }
        let Some(old) = Self::lock(entry) else {
            self.release(translator, slot);
            return Err(MapError::Contended);
        };
        // Relaxed: ordered by the lock, which `view` and `hold_mapping` take too.
        let before = Access::from_bits(entry.host.load(Ordering::Relaxed));
        entry.host.store(host | access.bits(), Ordering::Relaxed);
        Self::unlock(entry, unit_of(slot, ua));
        if old != 0 {
            self.release_taken(translator, old, before);
        }
        Ok(before)
    }

    /// Clears entry `index`, as [`set`](Self::set) would replace it. Returns the accesses it permitted before.
    ///
    /// # Errors
    /// [`MapError::Contended`] or [`MapError::Foreign`]; nothing changed. An `index` past the end is empty.
    #[inline]
    pub fn clear(&self, translator: &mut Translator, index: usize) -> Result<Option<Access>, MapError> {
        if !translator.belongs_to(&self.engine) {
            return Err(MapError::Foreign);
        }
        let Some(entry) = self.entries.get(index) else { return Ok(None) };
        // Relaxed: the entry was empty at some moment during the call, which is all that is promised.
        if entry.unit.load(Ordering::Relaxed) == 0 {
            return Ok(None);
        }
        let Some(old) = Self::lock(entry) else { return Err(MapError::Contended) };
        // Relaxed: ordered by the lock.
        let before = Access::from_bits(entry.host.load(Ordering::Relaxed));
        entry.host.store(0, Ordering::Relaxed);
        Self::unlock(entry, 0);
        if old != 0 {
            self.release_taken(translator, old, before);
        }
        Ok(before)
    }

    /// Releases one unit of `slot` that is counted with this block's holder.
    #[inline]
    fn release(&self, translator: &mut Translator, slot: u32) {
        if translator.counts_with(&self.counts) {
            // SAFETY: this block's unit, of this address space, counted with this holder, and no longer in an entry.
            unsafe { translator.release(slot) };
        } else {
            translator.release_to(self.counts.count(slot), slot);
        }
    }

    /// Releases the unit of a word that was taken out of an entry.
    #[inline]
    fn release_taken(&self, translator: &mut Translator, unit: u64, access: Option<Access>) {
        if access.is_some_and(Access::writes) {
            self.mark_written(unit);
        }
        self.release(translator, slot_of(unit));
    }

    /// The region of a unit word whose unit is held.
    #[inline]
    fn region(&self, unit: u64) -> Option<&Region> {
        // SAFETY: the unit keeps it.
        self.engine.reader_view.region_in(slot_of(unit)).map(|region| unsafe { region.as_ref() })
    }

    /// Marks every page that a device could write through the entry as dirty when the entry is cleared
    /// (docs/specification.md 1.9). The unit is still held.
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
        let entry = self.entries.get(index)?;
        // Relaxed: see `clear`.
        if entry.unit.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let unit = loop {
            if let Some(unit) = Self::lock(entry) {
                break unit;
            }
        };
        // Relaxed: ordered by the lock.
        let access = Access::from_bits(entry.host.load(Ordering::Relaxed));
        Self::unlock(entry, unit);
        // An empty entry has no permissions.
        access.map(|access| EntryView { ua: ua_of(unit), access })
    }

    /// One more mapping of the page that entry `index` maps, for the time of a device's access through it. `None` when
    /// the entry is empty.
    ///
    /// # Errors
    /// [`MapError::Contended`], [`MapError::Foreign`], or [`MapError::Closing`] when the region is draining.
    pub fn hold_mapping(
        &self,
        translator: &mut Translator,
        index: usize,
    ) -> Result<Option<(Mapping, Access)>, MapError> {
        if !translator.belongs_to(&self.engine) {
            return Err(MapError::Foreign);
        }
        let Some(entry) = self.entries.get(index) else { return Ok(None) };
        let unit = Self::lock(entry).ok_or(MapError::Contended)?;
        let _locked = EntryGuard { entry, unit };
        if unit == 0 {
            return Ok(None);
        }
        // Relaxed: ordered by the lock.
        let Some(access) = Access::from_bits(entry.host.load(Ordering::Relaxed)) else { return Ok(None) };
        translator.map(ua_of(unit), self.shift).map(|mapping| Some((mapping, access)))
    }

    /// The memory of the entries in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        size_of_val(&*self.entries) as u64
    }
}

/// The lock of an entry, released when dropped.
struct EntryGuard<'a> {
    entry: &'a TableEntry,
    unit: u64,
}

impl Drop for EntryGuard<'_> {
    fn drop(&mut self) {
        EntryBlock::unlock(self.entry, self.unit);
    }
}

impl Drop for EntryBlock {
    fn drop(&mut self) {
        for entry in self.entries.iter() {
            // Relaxed: exclusive access.
            let unit = entry.unit.load(Ordering::Relaxed);
            if unit == 0 {
                continue;
            }
            // Relaxed: exclusive access.
            if Access::from_bits(entry.host.load(Ordering::Relaxed)).is_some_and(Access::writes) {
                self.mark_written(unit);
            }
            if let Some(count) = self.counts.count(slot_of(unit)) {
                // `reap` checks once, below, whether it was the last unit.
                let _ = self.engine.percpu_ref(slot_of(unit)).leave_shared(count);
            }
        }
        self.engine.reap();
    }
}

impl fmt::Debug for EntryBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntryBlock")
            .field("shift", &self.shift)
            .field("len", &self.entries.len())
            .finish_non_exhaustive()
    }
}
