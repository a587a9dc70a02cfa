//! The guest of a trace: memory slots, tables, and a virtual processor that repeats its calls.
//!
//! A [`Machine`] owns tables and a translator, and borrows guest RAM; dropping it clears every entry. Lists are written to the guest
//! RAM at the recorded address and read from there, so the list call does all its work.

use std::sync::Arc;

use prereg::{AddressSpace, Granule, GuestAddr, Holder, HolderKind, PageShift, Translator, UserAddr};
use prereg_iommu::Tce;
use prereg_iommu::{
    Geometry, GuestRead, HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Reply, Rules,
    TceTable,
};
use prereg_linux::GuestMemory;

use crate::error::CommandError;
use crate::trace::record::{List, Record, Trace, Window};

/// Guest RAM, from guest-physical 0 on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ram<'a>(pub &'a GuestMemory);

/// The most entries of a list.
const LIST: usize = Hypercall::MAX_LIST;

impl Ram<'_> {
    /// Writes a list, big-endian, as the guest does before a list call. Outside of RAM nothing is written.
    #[inline]
    pub(crate) fn write_list(self, at: GuestAddr, values: &[u64]) {
        let mut bytes = [0; LIST * 8];
        let bytes = &mut bytes[..values.len().min(LIST) * 8];
        for (bytes, value) in bytes.chunks_exact_mut(8).zip(values) {
            bytes.copy_from_slice(&value.to_be_bytes());
        }
        // The guest could not write outside of RAM either.
        let _ = self.0.write(at.raw(), bytes);
    }

    /// The user address behind a guest address.
    #[must_use]
    pub(crate) fn ua(self, gpa: GuestAddr) -> Option<UserAddr> {
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

/// A guest and its tables.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    trace: &'a Trace,
    ram: Ram<'a>,
    space: Arc<AddressSpace>,
    /// The largest page with which guest RAM can be mapped.
    largest_page: PageShift,
    /// The tables, and the calls on them.
    pub calls: Hypercalls,
    /// The translator of the only processor.
    pub translator: Translator,
}

/// The holder of the mappings; there is one guest.
const GUEST: u64 = 0;

impl<'a> Machine<'a> {
    /// A guest without tables, over registered RAM.
    ///
    /// # Errors
    /// [`CommandError::Host`] if its RAM cannot be a memory slot.
    pub(crate) fn new(
        trace: &'a Trace,
        memory: &'a GuestMemory,
        space: &Arc<AddressSpace>,
        largest_page: PageShift,
        rules: Rules,
    ) -> Result<Self, CommandError> {
        let mut slots = MemorySlots::new();
        slots
            .insert(GuestAddr::new(0), memory.ua(), memory.bytes())
            .map_err(|error| CommandError::host("making guest RAM a memory slot", error))?;
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
    pub(crate) const fn ram(&self) -> Ram<'a> {
        self.ram
    }

    /// The host's page size.
    #[must_use]
    pub(crate) fn granule(&self) -> Granule {
        self.space.granule()
    }

    /// Creates the table of `window` and its hardware table. If guest RAM is not contiguous enough for the window's pages, an
    /// entry has several hardware entries.
    ///
    /// # Errors
    /// The reason, for example no memory.
    pub(crate) fn create(&mut self, window: &Window) -> Result<(), String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let liobn = Liobn::from_register(window.liobn).ok_or("the table's number is wider than 32 bits")?;
        let guest = Geometry::for_guest(window.start, window.shift, window.entries).map_err(|e| text(&e))?;
        let shift = window.shift.min(self.largest_page);
        let entries = window.entries << (window.shift.get() - shift.get());
        let hardware = Geometry::new(window.start, shift, entries).map_err(|e| text(&e))?;
        let hardware = HwTable::new(Arc::clone(&self.space), hardware, GUEST).map_err(|e| text(&e))?;
        let table = self.calls.create(liobn, guest).map_err(|e| text(&e))?;
        table.attach(Arc::new(hardware)).map(drop).map_err(|e| text(&e))
    }

    /// Removes the table of `liobn` with its mappings.
    pub(crate) fn remove(&mut self, liobn: u64) {
        drop(Liobn::from_register(liobn).and_then(|liobn| self.calls.remove(liobn)));
    }

    /// The table of `liobn`.
    #[must_use]
    pub(crate) fn table(&self, liobn: u64) -> Option<&TceTable> {
        self.calls.table(Liobn::from_register(liobn)?)
    }

    /// Executes a hypercall.
    #[inline]
    pub(crate) fn call(&mut self, call: Hypercall) -> Reply {
        self.calls.call(&mut self.translator, &self.ram, call)
    }

    /// Executes H_PUT_TCE_INDIRECT with a recorded list.
    #[inline]
    pub(crate) fn call_list(&mut self, liobn: u64, ioba: prereg::BusAddr, list: &List) -> Reply {
        let values = self.trace.values(list);
        if !values.is_empty() {
            self.ram.write_list(list.at, values);
        }
        self.call(Hypercall::PutIndirect { liobn, ioba, list: list.at, pages: list.count })
    }

    /// Replays one record; `None` if it is not a call.
    ///
    /// # Errors
    /// [`CommandError::Replay`] if a table cannot be created.
    #[inline]
    pub(crate) fn step(&mut self, number: usize, record: &Record) -> Result<Option<Reply>, CommandError> {
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
    fn create_at(&mut self, number: usize, index: u32) -> Result<(), CommandError> {
        let trace = self.trace;
        self.create(&trace.windows[index as usize]).map_err(|why| CommandError::Replay {
            file: trace.file.clone(),
            line: trace.lines[number],
            why,
        })
    }
}

/// A return code in the notation of the traces.
#[must_use]
pub(crate) fn code_text(code: HReturn) -> String {
    if code == HReturn::TOO_HARD { "H_TOO_HARD".to_owned() } else { code.raw().to_string() }
}
