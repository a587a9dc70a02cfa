//! A TCE table as a guest sees it, joined to the hardware tables that act on it.
//!
//! A [`TceTable`] owns the guest-visible values and shares any number of hardware tables, each of which another owner (a
//! container's window) may share too. An entry of the guest table stands for `2^(guest shift - hardware shift)` entries of
//! a hardware table, its sub-pages; they are mapped all or none.
//!
//! The two halves are changed one after the other, hardware first. Two vCPUs at the same entry may therefore leave the
//! value of one beside the mapping of the other, as in the kernel; counts stay exact and every mapping stays a pinned one.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use prereg::{
    Access, BusAddr, Errno, GuestAddr, MapError, Mapping, OutOfMemory, PageShift, Translator, UserAddr,
};

use crate::geometry::Geometry;
use crate::guest_table::{GuestTable, Place};
use crate::hw_table::{EntryError, HwTable};
use crate::sparse::TableError;
use crate::tce::Tce;

/// A logical bus number: how a guest names a table. 32 bits; a register holds 64, and what is wider names nothing.
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

    /// The number in a guest's register, or `None` if it cannot be one.
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

/// Why a hardware table cannot serve a guest table. Nothing changed. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// Its pages are larger than the guest's, so one of them would show the guest's neighbours.
    #[error(
        "the hardware table has pages of {hardware}, the guest's table of {guest}; they may not be larger"
    )]
    PageTooLarge {
        /// The hardware's page size.
        hardware: PageShift,
        /// The guest's page size.
        guest: PageShift,
    },
    /// Its window starts elsewhere.
    #[error("the hardware window starts at {hardware}, the guest's at {guest}; they must be the same")]
    OtherStart {
        /// The hardware's start.
        hardware: BusAddr,
        /// The guest's start.
        guest: BusAddr,
    },
    /// Its window ends before the guest's.
    #[error("the hardware window has {hardware:#x} bytes, the guest's {guest:#x}; it may not be smaller")]
    TooSmall {
        /// The hardware's length in bytes.
        hardware: u64,
        /// The guest's length in bytes.
        guest: u64,
    },
    /// It maps the memory of another address space than the tables attached before.
    #[error("the hardware table maps another address space than those attached before")]
    OtherSpace,
}

impl AttachError {
    /// EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

/// What the guest table says about a bus address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The guest page the entry names.
    pub page: GuestAddr,
    /// Its size.
    pub shift: PageShift,
    /// What a device may do there; `None` if nothing.
    pub access: Option<Access>,
}

#[derive(Debug)]
struct Attached {
    table: Arc<HwTable>,
    /// How often it was attached: each attach is taken back by one detach.
    times: u64,
    /// `log2` of its entries in one guest entry.
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
    /// A table of zeros with no hardware table: what a purely emulated device has.
    ///
    /// # Errors
    /// [`OutOfMemory`] for its root.
    pub fn new(liobn: Liobn, geometry: Geometry) -> Result<Self, OutOfMemory> {
        Ok(Self { liobn, geometry, values: GuestTable::new(geometry.entries())?, attached: Vec::new() })
    }

    /// The number the guest calls it by.
    #[must_use]
    pub const fn liobn(&self) -> Liobn {
        self.liobn
    }

    /// Where the window is, its page size and its length.
    #[must_use]
    #[inline]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The guest-visible values.
    #[must_use]
    pub const fn values(&self) -> &GuestTable {
        &self.values
    }

    /// Lets `table` act on what the guest writes from now on. Values written before are not mapped after the fact: a guest
    /// table is attached while it is empty, or its owner writes the values again.
    ///
    /// Returns how often this table is attached now: the same one may be attached once for each group behind it.
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

    /// Takes one [`attach`](Self::attach) of `table` back; after the last one the guest's writes no longer reach it. What
    /// it maps stays until its owner clears or drops it. Returns how often it is still attached, or `None` if it was not.
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

    /// What the guest wrote for the page that holds `ioba`; `None` outside the window.
    #[must_use]
    #[inline]
    pub fn translate(&self, ioba: BusAddr) -> Option<Translation> {
        let shift = self.geometry.shift();
        let tce = self.values.load(self.geometry.index(ioba)?);
        Some(Translation { page: tce.page(shift), shift, access: tce.access() })
    }

    /// A counted mapping of the hardware page that holds `ioba`, from the first attached table that has one: what a device's
    /// access holds until it is done. `None` if no table maps it.
    ///
    /// # Errors
    /// [`MapError::Closing`] if the region takes no new mappings, [`MapError::Foreign`] for a translator of another address
    /// space, [`MapError::Contended`] if another thread does not leave the entry.
    #[inline]
    pub fn take(
        &self,
        translator: &mut Translator,
        ioba: BusAddr,
    ) -> Result<Option<(Mapping, Access)>, MapError> {
        for attached in &self.attached {
            let table = &attached.table;
            if let Some(index) = table.geometry().index(ioba) {
                if let Some(found) =
                    patiently(|| table.take(translator, index), |error| *error == MapError::Contended)?
                {
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

    /// Whether every hardware table could map the page at `ua` (of a guest page: its first sub-page, as in the kernel).
    /// Skips `skip` tables, which the caller is about to try for good.
    #[inline]
    pub(crate) fn check(
        &self,
        translator: &mut Translator,
        ua: UserAddr,
        skip: usize,
    ) -> Result<(), MapError> {
        self.attached.iter().skip(skip).try_for_each(|attached| attached.table.check(translator, ua))
    }

    /// Asks for what mapping the page at `ua` will read.
    #[inline]
    pub(crate) fn prefetch(&self, translator: &Translator, ua: UserAddr) {
        if self.has_hardware() {
            translator.prefetch(ua);
        }
    }

    /// Where `tce` goes in the guest's half. Asked for before the hardware's half is changed, so that nothing can fail after.
    #[inline]
    pub(crate) fn place(&self, index: u64, tce: Tce) -> Result<Place<'_>, TableError> {
        self.values.place(index, tce)
    }

    /// The same for `count` entries at once; zeros need nothing.
    #[inline]
    pub(crate) fn prepare(&self, index: u64, count: u64, tce: Tce) -> Result<(), TableError> {
        if tce == Tce::NONE { Ok(()) } else { self.values.prepare(index, count) }
    }

    /// Maps entry `index` to the page at `ua` in every hardware table. On failure the failing table has this entry as it was
    /// or cleared, tables before it have the new mapping (docs/specification.md 3.4 step 5), and every unit is accounted for.
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

    /// Maps entry `index` in each hardware table that can and clears it in each that cannot. Waits for another thread at the
    /// same entry.
    #[inline]
    pub(crate) fn settle(
        &self,
        translator: &mut Translator,
        index: u64,
        target: Option<(UserAddr, Access)>,
    ) -> Result<(), EntryError> {
        for attached in &self.attached {
            if let Some((ua, access)) = target {
                match patiently(|| attached.map(translator, index, ua, access), EntryError::is_contended) {
                    Ok(()) => continue,
                    Err(error) if error.is_refusal() => {}
                    Err(error) => return Err(error),
                }
            }
            patiently(|| attached.unmap(translator, index, 1), EntryError::is_contended)?;
        }
        Ok(())
    }

    /// Clears `count` entries from `index` on in every hardware table, waiting where another thread is at one of them.
    #[inline]
    pub(crate) fn settle_none(
        &self,
        translator: &mut Translator,
        index: u64,
        count: u64,
    ) -> Result<(), EntryError> {
        self.attached.iter().try_for_each(|attached| {
            patiently(|| attached.unmap(translator, index, count), EntryError::is_contended)
        })
    }

    /// Writes one guest-visible value into `count` entries.
    #[inline]
    pub(crate) fn fill(&self, index: u64, count: u64, tce: Tce) -> Result<(), TableError> {
        self.values.fill(index, count, tce)
    }

    /// Bytes of memory the guest-visible half takes now.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.values.memory_bytes()
    }
}

/// How often a contended entry is tried again: long enough for a thread that lost its processor in the middle of a change,
/// and not for ever, in case the caller is a signal handler on top of that very thread. (One try looks 256 times.)
const PATIENCE: u32 = 1 << 14;

#[inline]
fn patiently<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_contended: impl Fn(&E) -> bool,
) -> Result<T, E> {
    for _ in 0..PATIENCE {
        match attempt() {
            Err(error) if is_contended(&error) => core::hint::spin_loop(),
            answer => return answer,
        }
    }
    attempt()
}
