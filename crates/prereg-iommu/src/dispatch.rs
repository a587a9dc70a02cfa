//! The hypercalls of one guest: its tables by liobn, its memory slots, and the rules they follow.
//!
//! A [`Hypercalls`] is read by any number of vCPU threads at once, each with its own translator; calls meet only where they
//! change the same entry. Tables and slots are changed through `&mut`, between calls. Three parties: the guest's registers ([`Hypercall`]), guest
//! memory ([`GuestList`]), and the address space behind the translator.

use alloc::vec::Vec;

use prereg::{Access, BusAddr, Errno, MapError, Mapping, OutOfMemory, Translator};

use crate::geometry::Geometry;
use crate::hypercall::{GuestList, HReturn, Hypercall, Reply};
use crate::slots::MemorySlots;
use crate::table::{Liobn, TceTable, Translation};
use crate::{kvm, qemu};

/// Whose answers a guest gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Rules {
    /// QEMU's in user space, for every call.
    Qemu,
    /// KVM's handlers first; a call they find too hard is done by QEMU's rules on the same table.
    Kvm,
}

/// Why a table was not created. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// There is a table of that number. EBUSY.
    #[error("{liobn} has a table already; remove it first")]
    Taken {
        /// The number.
        liobn: Liobn,
    },
    /// No memory for its root. ENOMEM.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

impl CreateError {
    /// EBUSY or ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Taken { .. } => Errno::EBUSY,
            Self::OutOfMemory(error) => error.errno(),
        }
    }
}

/// What a device's access to a bus address finds.
#[derive(Debug)]
pub struct Lookup {
    /// The guest page and the permission of the guest-visible entry.
    pub guest: Translation,
    /// The memory itself, held for as long as this lives; `None` if no hardware table maps it.
    pub host: Option<(Mapping, Access)>,
}

/// The TCE tables of a guest and the calls that change them.
///
/// # Examples
/// ```
/// use prereg::{AddressSpace, BusAddr, Granule, GuestAddr, PageShift};
/// use prereg_iommu::{Geometry, HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Rules, Tce};
/// use prereg_sim::SimHost;
/// use std::sync::Arc;
///
/// // 1 MiB of guest memory, registered once.
/// let host = SimHost::new(Granule::K4);
/// let space = Arc::new(AddressSpace::builder(host.clone()).build()?);
/// let ram = space.register(&host.memory(0x7000_0000, 1 << 20))?;
/// let mut slots = MemorySlots::new();
/// slots.insert(GuestAddr::new(0), ram.ua(), ram.bytes())?;
///
/// // A window of 16 pages that a device goes through.
/// let mut calls = Hypercalls::new(Rules::Kvm, slots);
/// let window = Geometry::for_guest(BusAddr::new(0), PageShift::K4, 16)?;
/// let hardware = Arc::new(HwTable::new(space.clone(), window, 0)?);
/// calls.create(Liobn::new(0x8000_0000), window)?.attach(hardware)?;
///
/// // The guest maps its page 2 at bus address 0x1000.
/// let mut translator = space.translator();
/// let no_lists = |_: GuestAddr, _: &mut [u64]| Err(NotRam);
/// let put = Hypercall::Put { liobn: 0x8000_0000, ioba: BusAddr::new(0x1000), tce: Tce::new(0x2003) };
/// assert_eq!(calls.call(&mut translator, &no_lists, put).code, HReturn::SUCCESS);
///
/// // One mapping lives, so the memory stays.
/// assert!(ram.unregister().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Hypercalls {
    rules: Rules,
    slots: MemorySlots,
    /// The numbers of `tables`, in the same, ascending order: a search touches one cache line of these.
    liobns: Vec<Liobn>,
    tables: Vec<TceTable>,
}

impl Hypercalls {
    /// A guest with this memory and no tables.
    #[must_use]
    pub const fn new(rules: Rules, slots: MemorySlots) -> Self {
        Self { rules, slots, liobns: Vec::new(), tables: Vec::new() }
    }

    /// The rules in force.
    #[must_use]
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// The guest's memory.
    #[must_use]
    pub const fn slots(&self) -> &MemorySlots {
        &self.slots
    }

    /// Replaces the guest's memory as a whole; returns what was there. Entries written before keep what they map.
    pub fn replace_slots(&mut self, slots: MemorySlots) -> MemorySlots {
        core::mem::replace(&mut self.slots, slots)
    }

    /// Makes an empty table.
    ///
    /// # Errors
    /// [`CreateError`].
    pub fn create(&mut self, liobn: Liobn, geometry: Geometry) -> Result<&mut TceTable, CreateError> {
        let Err(at) = self.liobns.binary_search(&liobn) else { return Err(CreateError::Taken { liobn }) };
        let table = TceTable::new(liobn, geometry)?;
        self.liobns.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.tables.try_reserve(1).map_err(|_| OutOfMemory)?;
        self.liobns.insert(at, liobn);
        self.tables.insert(at, table);
        Ok(&mut self.tables[at])
    }

    /// Takes a table away. Hardware tables that nobody else shares give all their units back when it is dropped.
    pub fn remove(&mut self, liobn: Liobn) -> Option<TceTable> {
        let at = self.liobns.binary_search(&liobn).ok()?;
        self.liobns.remove(at);
        Some(self.tables.remove(at))
    }

    /// The table of that number.
    #[must_use]
    #[inline]
    pub fn table(&self, liobn: Liobn) -> Option<&TceTable> {
        self.liobns.binary_search(&liobn).ok().map(|at| &self.tables[at])
    }

    /// The table of that number, to attach and detach hardware tables.
    #[must_use]
    pub fn table_mut(&mut self, liobn: Liobn) -> Option<&mut TceTable> {
        self.liobns.binary_search(&liobn).ok().map(|at| &mut self.tables[at])
    }

    /// The tables by ascending number.
    pub fn tables(&self) -> impl Iterator<Item = &TceTable> {
        self.tables.iter()
    }

    #[inline]
    fn named(&self, register: u64) -> Option<&TceTable> {
        self.table(Liobn::from_register(register)?)
    }

    /// Does a hypercall by the rules in force. The answer is final: a guest may see it.
    #[inline]
    pub fn call<G: GuestList + ?Sized>(
        &self,
        translator: &mut Translator,
        guest: &G,
        call: Hypercall,
    ) -> Reply {
        match self.rules {
            Rules::Qemu => self.slow(translator, guest, call),
            Rules::Kvm => {
                let reply = self.fast(translator, guest, call);
                if reply.code == HReturn::TOO_HARD {
                    Reply { handed_over: true, ..self.slow(translator, guest, call) }
                } else {
                    reply
                }
            }
        }
    }

    /// Does a hypercall as KVM's handlers do, whatever the rules in force; `TOO_HARD` where they leave it to user space.
    /// Allocates only parts of tables that do not exist yet (and takes a lock of the address space for those of a hardware
    /// table); on parts that exist it never waits, in a signal handler either.
    #[inline]
    pub fn fast<G: GuestList + ?Sized>(
        &self,
        translator: &mut Translator,
        guest: &G,
        call: Hypercall,
    ) -> Reply {
        let Some(table) = self.named(call.liobn()) else { return Reply::plain(HReturn::TOO_HARD) };
        let slots = &self.slots;
        match call {
            Hypercall::Get { ioba, .. } => Reply::of_read(kvm::get(table, ioba)),
            Hypercall::Put { ioba, tce, .. } => {
                Reply::of_write(kvm::put(table, slots, translator, ioba, tce))
            }
            Hypercall::PutIndirect { ioba, list, pages, .. } => {
                Reply::of_write(kvm::put_indirect(table, slots, translator, guest, ioba, list, pages))
            }
            Hypercall::Stuff { ioba, tce, pages, .. } => {
                Reply::of_write(kvm::stuff(table, translator, ioba, tce, pages))
            }
        }
    }

    /// Does a hypercall as QEMU does in user space, whatever the rules in force.
    #[inline]
    pub fn slow<G: GuestList + ?Sized>(
        &self,
        translator: &mut Translator,
        guest: &G,
        call: Hypercall,
    ) -> Reply {
        let Some(table) = self.named(call.liobn()) else { return Reply::plain(HReturn::PARAMETER) };
        let slots = &self.slots;
        match call {
            Hypercall::Get { ioba, .. } => Reply::of_read(qemu::get(table, ioba)),
            Hypercall::Put { ioba, tce, .. } => {
                Reply::of_write(qemu::put(table, slots, translator, ioba, tce))
            }
            Hypercall::PutIndirect { ioba, list, pages, .. } => {
                Reply::of_write(qemu::put_indirect(table, slots, translator, guest, ioba, list, pages))
            }
            Hypercall::Stuff { ioba, tce, pages, .. } => {
                Reply::of_write(qemu::stuff(table, slots, translator, ioba, tce, pages))
            }
        }
    }

    /// What a device behind `liobn` finds at `ioba`; `None` if there is no such table or the address is outside its window.
    ///
    /// # Errors
    /// As [`TceTable::take`].
    #[inline]
    pub fn lookup(
        &self,
        translator: &mut Translator,
        liobn: Liobn,
        ioba: BusAddr,
    ) -> Result<Option<Lookup>, MapError> {
        let Some(table) = self.table(liobn) else { return Ok(None) };
        let Some(guest) = table.translate(ioba) else { return Ok(None) };
        Ok(Some(Lookup { guest, host: table.take(translator, ioba)? }))
    }
}
