//! A guest-visible TCE table and the hardware tables attached to it.
//!
//! A [`TceTable`] owns the guest-visible values and shares any number of hardware tables with their other owners (the windows
//! of containers). An entry of the guest table stands for `2^(guest shift - hardware shift)` entries of a hardware table, its
//! subpages; they are mapped all or none.
//!
//! Hardware tables are changed before the guest-visible value. Two vCPUs at one entry may therefore leave the value of one
//! beside the mapping of the other, as in the kernel; counts stay exact and every mapping stays pinned.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use prereg::{
    Access, BusAddr, Errno, GuestAddr, MapError, Mapping, OutOfMemory, PageShift, Translator, UserAddr,
};

use crate::geometry::Geometry;
use crate::guest_table::{GuestTable, ValueSlot};
use crate::hw_table::{EntryError, HwTable};
use crate::sparse::TableError;
use crate::tce::Tce;

/// A logical bus number, by which a guest names a table: 32 bits. Wider register values name no table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct Liobn(u32);

impl Liobn {
    /// Wraps a number.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The number in a guest's register, or `None` if it is wider than 32 bits.
    #[must_use]
    #[inline]
    pub const fn from_register(register: u64) -> Option<Self> {
        if register > u32::MAX as u64 { None } else { Some(Self(register as u32)) }
    }
}

impl fmt::Display for Liobn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "liobn {:#x}", self.0)
    }
}

/// Errors of attaching a hardware table. Nothing changed. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Its pages are larger than the guest's, so one would expose neighbouring guest pages.
    #[error(
        "the hardware table has pages of {hardware}, the guest's table of {guest}; they may not be larger"
    )]
    PageTooLarge {
        /// The hardware's page size.
        hardware: PageShift,
        /// The guest's page size.
        guest: PageShift,
    },
    /// Its window starts at another address.
    #[error("the hardware window starts at {hardware}, the guest's at {guest}; they must be the same")]
    OtherStart {
        /// The hardware's start.
        hardware: BusAddr,
        /// The guest's start.
        guest: BusAddr,
    },
    /// Its window is smaller than the guest's.
    #[error("the hardware window has {hardware:#x} bytes, the guest's {guest:#x}; it may not be smaller")]
    TooSmall {
        /// The hardware's length in bytes.
        hardware: u64,
        /// The guest's length in bytes.
        guest: u64,
    },
    /// It maps another address space than the tables attached before.
    #[error("the hardware table maps another address space than those attached before")]
    OtherSpace,
}

prereg::debug_as_display!(AttachError);

impl AttachError {
    /// EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

/// The guest table's translation of a bus address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The guest page of the entry.
    pub page: GuestAddr,
    /// The page size.
    pub shift: PageShift,
    /// The access it allows; `None` if nothing is mapped.
    pub access: Option<Access>,
}

#[derive(Debug)]
struct Attached {
    table: Arc<HwTable>,
    /// Number of attaches, each reverted by one detach.
    times: u64,
    /// `log2` of its entries per guest entry.
    split: u32,
}

impl Attached {
    #[inline]
    fn first(&self, index: u64) -> u64 {
        index << self.split
    }

    #[inline]
    fn map(
        &self,
        translator: &mut Translator,
        index: u64,
        ua: UserAddr,
        access: Access,
    ) -> Result<(), EntryError> {
        if self.split == 0 {
            self.table.set(translator, index, ua, access).map(drop)
        } else {
            self.table.set_run(translator, self.first(index), 1 << self.split, ua, access)
        }
    }

    #[inline]
    fn unmap(&self, translator: &mut Translator, index: u64, count: u64) -> Result<(), EntryError> {
        if self.split == 0 && count == 1 {
            self.table.clear(translator, index).map(drop)
        } else {
            self.table.clear_range(translator, self.first(index), count << self.split).map(drop)
        }
    }
}

/// A guest-visible table and the hardware tables attached to it.
#[derive(Debug)]
pub struct TceTable {
    liobn: Liobn,
    geometry: Geometry,
    values: GuestTable,
    attached: Vec<Attached>,
}

impl TceTable {
    /// A table of zeros without hardware tables, as a purely emulated device has.
    ///
    /// # Errors
    /// [`OutOfMemory`] for its root.
    pub fn new(liobn: Liobn, geometry: Geometry) -> Result<Self, OutOfMemory> {
        Ok(Self { liobn, geometry, values: GuestTable::new(geometry.entries())?, attached: Vec::new() })
    }

    /// The logical bus number.
    #[must_use]
    pub const fn liobn(&self) -> Liobn {
        self.liobn
    }

    /// Start, page size and length of the window.
    #[must_use]
    #[inline]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The guest-visible value of entry `index`; zero if never written or outside the table.
    #[must_use]
    #[inline]
    pub fn value(&self, index: u64) -> Tce {
        self.values.load(index)
    }

    /// Attaches a hardware table, which follows the guest's writes from now on. Values written before are not mapped:
    /// attach while the guest table is empty, or write the values again.
    ///
    /// Returns how often this hardware table is attached now; it may be attached once for each group behind it.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach(&mut self, table: Arc<HwTable>) -> Result<u64, AttachError> {
        if let Some(known) = self.attached.iter_mut().find(|known| Arc::ptr_eq(&known.table, &table)) {
            known.times += 1;
            return Ok(known.times);
        }
        let (hardware, guest) = (*table.geometry(), self.geometry);
        let Some(split) = guest.shift().get().checked_sub(hardware.shift().get()) else {
            return Err(AttachError::PageTooLarge { hardware: hardware.shift(), guest: guest.shift() });
        };
        if hardware.start() != guest.start() {
            return Err(AttachError::OtherStart { hardware: hardware.start(), guest: guest.start() });
        }
        if hardware.bytes() < guest.bytes() {
            return Err(AttachError::TooSmall { hardware: hardware.bytes(), guest: guest.bytes() });
        }
        if self.attached.iter().any(|known| !Arc::ptr_eq(known.table.space(), table.space())) {
            return Err(AttachError::OtherSpace);
        }
        self.attached.push(Attached { table, times: 1, split });
        Ok(1)
    }

    /// Reverts one [`attach`](Self::attach). After the last one the guest's writes no longer reach the hardware table; its
    /// entries stay until its owner clears or drops it. Returns how often it is still attached, or `None` if it was not.
    pub fn detach(&mut self, table: &Arc<HwTable>) -> Option<u64> {
        let at = self.attached.iter().position(|known| Arc::ptr_eq(&known.table, table))?;
        let known = &mut self.attached[at];
        known.times -= 1;
        let left = known.times;
        if left == 0 {
            // Not `swap_remove`: a call that fails half way has changed the tables before the failing one, in order.
            self.attached.remove(at);
        }
        Some(left)
    }

    /// The hardware tables, in the order they are changed.
    pub fn hardware(&self) -> impl Iterator<Item = &Arc<HwTable>> {
        self.attached.iter().map(|attached| &attached.table)
    }

    /// The translation of `ioba` by the guest-visible values; `None` outside the window.
    #[must_use]
    #[inline]
    pub fn translate(&self, ioba: BusAddr) -> Option<Translation> {
        let shift = self.geometry.shift();
        let tce = self.values.load(self.geometry.index(ioba)?);
        Some(Translation { page: tce.page(shift), shift, access: tce.access() })
    }

    /// A counted mapping of the hardware page of `ioba`, for a device's access, from the first attached table that maps it.
    /// `None` if no table does.
    ///
    /// # Errors
    /// [`MapError::Closing`] if the region takes no new mappings, [`MapError::Foreign`] for a translator of another address
    /// space, [`MapError::Contended`] if another thread does not leave the entry.
    #[inline]
    pub fn hold_mapping(
        &self,
        translator: &mut Translator,
        ioba: BusAddr,
    ) -> Result<Option<(Mapping, Access)>, MapError> {
        for attached in &self.attached {
            let table = &attached.table;
            if let Some(index) = table.geometry().index(ioba) {
                if let Some(found) = retry_contended(
                    || table.hold_mapping(translator, index),
                    |error| *error == MapError::Contended,
                )? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    #[inline]
    pub(crate) fn has_hardware(&self) -> bool {
        !self.attached.is_empty()
    }

    /// Checks whether every hardware table after the first `skip` could map the page at `ua` (of a guest page: its first
    /// subpage, as in the kernel).
    #[inline]
    pub(crate) fn check(
        &self,
        translator: &mut Translator,
        ua: UserAddr,
        skip: usize,
    ) -> Result<(), MapError> {
        self.attached.iter().skip(skip).try_for_each(|attached| attached.table.check(translator, ua))
    }

    /// Prefetches what mapping the page at `ua` will read.
    #[inline]
    pub(crate) fn prefetch(&self, translator: &Translator, ua: UserAddr) {
        if self.has_hardware() {
            translator.prefetch(ua);
        }
    }

    /// The location for `tce`, allocated before the hardware tables are changed, so that the write after them cannot fail.
    #[inline]
    pub(crate) fn value_slot(&self, index: u64, tce: Tce) -> Result<ValueSlot<'_>, TableError> {
        self.values.value_slot(index, tce)
    }

    /// Allocates the values of `count` entries, so that filling them cannot fail; zeros need nothing.
    #[inline]
    pub(crate) fn prepare(&self, index: u64, count: u64, tce: Tce) -> Result<(), TableError> {
        if tce == Tce::NONE { Ok(()) } else { self.values.prepare(index, count) }
    }

    /// Maps entry `index` to the page at `ua` in every hardware table. On failure the failing table keeps its entry or has
    /// it cleared, tables before it have the new mapping (docs/specification.md 3.4 step 5), and no unit is lost.
    #[inline]
    pub(crate) fn map(
        &self,
        translator: &mut Translator,
        index: u64,
        ua: UserAddr,
        access: Access,
    ) -> Result<(), EntryError> {
        for (number, attached) in self.attached.iter().enumerate() {
            if let Err(refused) = attached.map(translator, index, ua, access) {
                if number > 0 {
                    attached.unmap(translator, index, 1)?;
                }
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Clears `count` entries from `index` on in every hardware table.
    #[inline]
    pub(crate) fn unmap(
        &self,
        translator: &mut Translator,
        index: u64,
        count: u64,
    ) -> Result<(), EntryError> {
        self.attached.iter().try_for_each(|attached| attached.unmap(translator, index, count))
    }

    /// Maps entry `index` in each hardware table that can and clears it in the others. Retries while another thread changes
    /// the entry.
    #[inline]
    pub(crate) fn sync_hw(
        &self,
        translator: &mut Translator,
        index: u64,
        target: Option<(UserAddr, Access)>,
    ) -> Result<(), EntryError> {
        for attached in &self.attached {
            if let Some((ua, access)) = target {
                match retry_contended(
                    || attached.map(translator, index, ua, access),
                    EntryError::is_contended,
                ) {
                    Ok(()) => continue,
                    Err(error) if error.is_refusal() => {}
                    Err(error) => return Err(error),
                }
            }
            retry_contended(|| attached.unmap(translator, index, 1), EntryError::is_contended)?;
        }
        Ok(())
    }

    /// Clears `count` entries from `index` on in every hardware table. Retries while another thread changes one of them.
    #[inline]
    pub(crate) fn clear_hw(
        &self,
        translator: &mut Translator,
        index: u64,
        count: u64,
    ) -> Result<(), EntryError> {
        self.attached.iter().try_for_each(|attached| {
            retry_contended(|| attached.unmap(translator, index, count), EntryError::is_contended)
        })
    }

    /// Writes one guest-visible value into `count` entries.
    #[inline]
    pub(crate) fn fill(&self, index: u64, count: u64, tce: Tce) -> Result<(), TableError> {
        self.values.fill(index, count, tce)
    }

    /// Bytes of memory that the guest-visible values take now.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.values.memory_bytes()
    }
}

/// Attempts at a contended entry: enough for a thread that was preempted in the middle of a change, and bounded, in case
/// the caller is a signal handler on top of that thread. (One attempt looks 256 times.)
const MAX_RETRIES: u32 = 1 << 14;

#[inline]
fn retry_contended<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_contended: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 0..MAX_RETRIES {
        match attempt() {
            Err(error) if is_contended(&error) => core::hint::spin_loop(),
            answer => return answer,
        }
    }
    attempt()
}
