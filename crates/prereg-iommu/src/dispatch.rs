//! The hypercalls of one guest: its tables by liobn, its memory slots, and its rule set.
//!
//! Any number of vCPU threads may call a [`Hypercalls`] concurrently, each with its own translator; calls contend only for the
//! same entry. Tables and slots are changed through `&mut`, between calls.

use alloc::vec::Vec;

use prereg::{Access, BusAddr, Errno, MapError, Mapping, OutOfMemory, Translator};

use crate::geometry::Geometry;
use crate::hypercall::{GuestRead, HReturn, Hypercall, Reply};
use crate::slots::MemorySlots;
use crate::table::{Liobn, TceTable, Translation};
use crate::{kvm, qemu};

/// The rule set of the hypercalls.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Rules {
    /// QEMU's user-space handlers, for every call.
    Qemu,
    /// KVM's handlers first; QEMU's for calls that they find too hard.
    Kvm,
}

/// Errors of creating a table. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The liobn is in use. EBUSY.
    #[error("{liobn} has a table already; remove it first")]
    Taken {
        /// The number.
        liobn: Liobn,
    },
    /// No memory for its root. ENOMEM.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
}

prereg::debug_as_display!(CreateError);

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

/// A device's access to a bus address.
#[derive(Debug)]
pub struct Lookup {
    /// The guest page and access of the guest-visible entry.
    pub guest: Translation,
    /// The mapping of the memory, valid as long as this lives; `None` if no hardware table maps it.
    pub host: Option<(Mapping, Access)>,
}

/// The TCE tables of a guest and the calls that change them.
#[derive(Debug)]
pub struct Hypercalls {
    rules: Rules,
    slots: MemorySlots,
    /// The liobns of `tables`, in the same ascending order: a binary search reads one or two cache lines.
    liobns: Vec<Liobn>,
    tables: Vec<TceTable>,
}

impl Hypercalls {
    /// A guest with memory and no tables.
    #[must_use]
    pub const fn new(rules: Rules, slots: MemorySlots) -> Self {
        Self { rules, slots, liobns: Vec::new(), tables: Vec::new() }
    }

    /// The rule set.
    #[must_use]
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// The memory slots.
    #[must_use]
    pub const fn slots(&self) -> &MemorySlots {
        &self.slots
    }

    /// Replaces the memory slots as a whole; returns the old ones. Existing entries keep their mappings.
    pub fn replace_slots(&mut self, slots: MemorySlots) -> MemorySlots {
        core::mem::replace(&mut self.slots, slots)
    }

    /// Creates an empty table.
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

    /// Removes a table. Hardware tables that are not shared release all their units when it is dropped.
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

    /// Performs a hypercall by the rule set. The result is final and may be returned to the guest.
    #[inline]
    pub fn call<G: GuestRead + ?Sized>(
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
                    Reply { fell_back_to_userspace: true, ..self.slow(translator, guest, call) }
                } else {
                    reply
                }
            }
        }
    }

    /// Performs a hypercall by KVM's rules, whatever the rule set; `TOO_HARD` where KVM leaves it to user space. Allocates
    /// only missing blocks of tables (taking a lock of the address space for hardware tables); otherwise it never blocks, also
    /// in a signal handler.
    #[inline]
    pub fn fast<G: GuestRead + ?Sized>(
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

    /// Performs a hypercall by QEMU's rules, whatever the rule set.
    #[inline]
    pub fn slow<G: GuestRead + ?Sized>(
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

    /// The access of a device behind `liobn` to `ioba`; `None` without such a table or outside its window.
    ///
    /// # Errors
    /// As [`TceTable::hold_mapping`].
    #[inline]
    pub fn lookup(
        &self,
        translator: &mut Translator,
        liobn: Liobn,
        ioba: BusAddr,
    ) -> Result<Option<Lookup>, MapError> {
        let Some(table) = self.table(liobn) else { return Ok(None) };
        let Some(guest) = table.translate(ioba) else { return Ok(None) };
        Ok(Some(Lookup { guest, host: table.hold_mapping(translator, ioba)? }))
    }
}
