//! The guest of a trace: its memory slots and tables, and one virtual processor that repeats its calls.
//!
//! A [`Machine`] owns tables and a translator, and borrows guest RAM; dropping it clears every entry. Lists are written
//! into guest RAM where the guest had them and read back from there, so that the list call does its whole work.

use std::sync::Arc;

use prereg::{AddressSpace, Granule, GuestAddr, Holder, HolderKind, PageShift, Translator, UserAddr};
use prereg_iommu::Tce;
use prereg_iommu::{
    Geometry, GuestRead, HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Reply, Rules,
    TceTable,
};
use prereg_linux::GuestMemory;

use crate::failure::Failure;
use crate::trace::record::{List, Record, Trace, Window};

/// Guest RAM, from guest-physical 0 on.
#[derive(Clone, Copy, Debug)]
pub struct Ram<'a>(pub &'a GuestMemory);

/// The most entries that a list has.
const LIST: usize = Hypercall::MAX_LIST;

impl Ram<'_> {
    /// What the guest does before a list call: writes the list, big-endian. Addresses outside of RAM take nothing.
    #[inline]
    pub fn write_list(self, at: GuestAddr, values: &[u64]) {
        let mut bytes = [0; LIST * 8];
        let bytes = &mut bytes[..values.len().min(LIST) * 8];
        for (bytes, value) in bytes.chunks_exact_mut(8).zip(values) {
            bytes.copy_from_slice(&value.to_be_bytes());
        }
        // A list outside of RAM was never written by the guest either.
        let _ = self.0.write(at.raw(), bytes);
    }

    /// The user address behind a guest address.
    #[must_use]
    pub fn ua(self, gpa: GuestAddr) -> Option<UserAddr> {
        if gpa.raw() < self.0.bytes() { self.0.ua().checked_add(gpa.raw()) } else { None }
    }
}

impl GuestRead for Ram<'_> {
    #[inline]
    fn read_list(&self, at: GuestAddr, values: &mut [u64]) -> Result<(), NotRam> {
        let mut bytes = [0; LIST * 8];
        let bytes = bytes.get_mut(..values.len() * 8).ok_or(NotRam)?;
        self.0.read(at.raw(), bytes).map_err(|_| NotRam)?;
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(8)) {
            *value = bytes.try_into().map_or(0, u64::from_be_bytes);
        }
        Ok(())
    }
}

/// A guest with its tables.
#[derive(Debug)]
pub struct Machine<'a> {
    trace: &'a Trace,
    ram: Ram<'a>,
    space: Arc<AddressSpace>,
    /// The largest page that guest RAM can be mapped with.
    largest_page: PageShift,
    /// The tables, and the calls on them.
    pub calls: Hypercalls,
    /// The one processor's handle.
    pub translator: Translator,
}

/// Who the mappings are reported as held by: there is one guest.
const GUEST: u64 = 0;

impl<'a> Machine<'a> {
    /// A guest without tables, over registered RAM.
    ///
    /// # Errors
    /// [`Failure::Host`] when its RAM cannot be a memory slot.
    pub fn new(
        trace: &'a Trace,
        memory: &'a GuestMemory,
        space: &Arc<AddressSpace>,
        largest_page: PageShift,
        rules: Rules,
    ) -> Result<Self, Failure> {
        let mut slots = MemorySlots::new();
        slots
            .insert(GuestAddr::new(0), memory.ua(), memory.bytes())
            .map_err(|error| Failure::host("making guest RAM a memory slot", error))?;
        Ok(Self {
            trace,
            ram: Ram(memory),
            space: Arc::clone(space),
            largest_page,
            calls: Hypercalls::new(rules, slots),
            translator: space.translator_for(Holder { container: GUEST, kind: HolderKind::TableEntry }),
        })
    }

    /// Guest RAM.
    #[must_use]
    pub const fn ram(&self) -> Ram<'a> {
        self.ram
    }

    /// The system page.
    #[must_use]
    pub fn granule(&self) -> Granule {
        self.space.granule()
    }

    /// Makes the table of `window`, with a hardware table behind it. Where guest RAM is not contiguous enough for the
    /// window's pages, one of its entries is many of the hardware's.
    ///
    /// # Errors
    /// In words, when there is no memory for it.
    pub fn create(&mut self, window: &Window) -> Result<(), String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let liobn = Liobn::from_register(window.liobn).ok_or("the table's number is wider than 32 bits")?;
        let guest = Geometry::for_guest(window.start, window.shift, window.entries).map_err(|e| words(&e))?;
        let shift = window.shift.min(self.largest_page);
        let entries = window.entries << (window.shift.get() - shift.get());
        let hardware = Geometry::new(window.start, shift, entries).map_err(|e| words(&e))?;
        let hardware = HwTable::new(Arc::clone(&self.space), hardware, GUEST).map_err(|e| words(&e))?;
        let table = self.calls.create(liobn, guest).map_err(|e| words(&e))?;
        table.attach(Arc::new(hardware)).map(drop).map_err(|e| words(&e))
    }

    /// Takes the table of `liobn` away, and with it every mapping it holds.
    pub fn remove(&mut self, liobn: u64) {
        drop(Liobn::from_register(liobn).and_then(|liobn| self.calls.remove(liobn)));
    }

    /// The table of `liobn`.
    #[must_use]
    pub fn table(&self, liobn: u64) -> Option<&TceTable> {
        self.calls.table(Liobn::from_register(liobn)?)
    }

    /// H_PUT_TCE and its kin.
    #[inline]
    pub fn call(&mut self, call: Hypercall) -> Reply {
        self.calls.call(&mut self.translator, &self.ram, call)
    }

    /// H_PUT_TCE_INDIRECT of a recorded list.
    #[inline]
    pub fn call_list(&mut self, liobn: u64, ioba: prereg::BusAddr, list: &List) -> Reply {
        let values = self.trace.values(list);
        if !values.is_empty() {
            self.ram.write_list(list.at, values);
        }
        self.call(Hypercall::PutIndirect { liobn, ioba, list: list.at, pages: list.count })
    }

    /// Does one record if it changes tables or is a call; `None` for what is neither a call nor a window.
    ///
    /// # Errors
    /// [`Failure::Replay`] when a table cannot be made.
    #[inline]
    pub fn step(&mut self, number: usize, record: &Record) -> Result<Option<Reply>, Failure> {
        let trace = self.trace;
        Ok(Some(match *record {
            Record::Put { liobn, ioba, tce, .. } => {
                self.call(Hypercall::Put { liobn, ioba, tce: Tce::new(tce) })
            }
            Record::Stuff { liobn, ioba, tce, count, .. } => {
                self.call(Hypercall::Stuff { liobn, ioba, tce: Tce::new(tce), pages: count })
            }
            Record::Indirect { liobn, ioba, list, .. } => {
                self.call_list(liobn, ioba, &trace.lists[list as usize])
            }
            Record::Get { liobn, ioba, .. } => self.call(Hypercall::Get { liobn, ioba }),
            Record::Window(index) => {
                self.create_at(number, index)?;
                return Ok(None);
            }
            Record::Remove { liobn } => {
                self.remove(liobn);
                return Ok(None);
            }
            Record::Lookup(_) | Record::Mark(_) => return Ok(None),
        }))
    }

    #[cold]
    fn create_at(&mut self, number: usize, index: u32) -> Result<(), Failure> {
        let trace = self.trace;
        self.create(&trace.windows[index as usize]).map_err(|why| Failure::Replay {
            file: trace.file.clone(),
            line: trace.lines[number],
            why,
        })
    }
}

/// A return code as the trace and the tables of answers write it.
#[must_use]
pub fn code_word(code: HReturn) -> String {
    if code == HReturn::TOO_HARD { "H_TOO_HARD".to_owned() } else { code.raw().to_string() }
}
