//! A trace in memory: a [`Record`] for each line that a replay acts on.
//!
//! Records refer to lists, windows and lookups of the [`Trace`] by index. Only [`parse`](super::parse) makes them, so an index is
//! always valid. Records are small because a replay reads them while it measures other work.

use prereg::{BusAddr, GuestAddr, PageShift};

/// One line of a trace, in the guest's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// `W`: a table is created. An index of [`Trace::windows`].
    Window(u32),
    /// `D`: the table is removed.
    Remove {
        /// The table's number.
        liobn: u64,
    },
    /// `P`: H_PUT_TCE.
    Put {
        /// The recorded return code.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// The bus address of the entry.
        ioba: BusAddr,
        /// The entry.
        tce: u64,
    },
    /// `I`: H_PUT_TCE_INDIRECT.
    Indirect {
        /// The recorded return code.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// The bus address of the entry.
        ioba: BusAddr,
        /// An index of [`Trace::lists`].
        list: u32,
    },
    /// `S`: H_STUFF_TCE.
    Stuff {
        /// The recorded return code.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// The bus address of the entry.
        ioba: BusAddr,
        /// The entry to repeat.
        tce: u64,
        /// The number of entries.
        count: u64,
    },
    /// `G`: H_GET_TCE.
    Get {
        /// The recorded return code.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// The bus address of the entry.
        ioba: BusAddr,
        /// The entry returned.
        tce: u64,
    },
    /// `X`: a device's access, not a hypercall. An index of [`Trace::lookups`].
    Lookup(u32),
    /// `M`: a mark of the guest. An index of [`Trace::marks`].
    Mark(u32),
}

impl Record {
    /// Whether this is one of the four hypercalls.
    #[must_use]
    pub const fn is_hypercall(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Indirect { .. } | Self::Stuff { .. } | Self::Get { .. })
    }
}

/// The list of a list call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// Its guest address.
    pub at: GuestAddr,
    /// The number of entries in the call.
    pub count: u64,
    /// The first of its entries in [`Trace::values`].
    pub first: u32,
    /// The number of recorded entries: `count`, or 0 for calls that are refused before the list is read.
    pub recorded: u32,
    /// Whether `at` is guest memory.
    pub readable: bool,
}

/// A table of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The table's number.
    pub liobn: u64,
    /// The bus address of its first entry.
    pub start: BusAddr,
    /// The page size of an entry.
    pub shift: PageShift,
    /// The number of entries; never 0, and `start + (entries << shift)` is below 2^64.
    pub entries: u64,
}

impl Window {
    /// The entry that translates `ioba`, or `None` outside of the window.
    #[must_use]
    pub fn index(&self, ioba: BusAddr) -> Option<u64> {
        let index = ioba.offset_from(self.start)? >> self.shift.get();
        (index < self.entries).then_some(index)
    }

    /// The bus address of the last byte.
    #[must_use]
    pub const fn last(&self) -> BusAddr {
        BusAddr::new(self.start.raw() + (((self.entries - 1) << self.shift.get()) | self.shift.mask()))
    }

    /// Whether both windows are on one bus.
    ///
    /// The numbers of a PCI host bridge's windows differ in the last byte only; a virtual I/O device, like any other number, has a
    /// bus of its own.
    #[must_use]
    pub const fn shares_bus(&self, other: &Self) -> bool {
        const PCI: u64 = 0x8000_0000;
        let pci = self.liobn & !0x7fff_ffff == PCI;
        self.liobn == other.liobn || (pci && self.liobn >> 8 == other.liobn >> 8)
    }

    /// Whether the two share a bus address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }
}

/// A device's accesses to a bus address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The table's number; the table exists.
    pub liobn: u64,
    /// The page addressed.
    pub ioba: BusAddr,
    /// The guest page reached.
    pub gpa: GuestAddr,
    /// The permission bits of the entry: 1 read, 2 write.
    pub permission: u64,
    /// The number of equal accesses in a row.
    pub count: u64,
}

/// A whole trace.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The trace's name: the file's, without folder and endings.
    pub name: String,
    /// The file as the caller named it.
    pub file: String,
    /// Size of guest RAM, which begins at guest address 0.
    pub ram_bytes: u64,
    /// The records, in order.
    pub records: Vec<Record>,
    /// The line of each record, for messages.
    pub lines: Vec<u32>,
    /// Windows, by the index in [`Record::Window`].
    pub windows: Vec<Window>,
    /// Lists, by the index in [`Record::Indirect`].
    pub lists: Vec<List>,
    /// The entries of all lists.
    pub values: Vec<u64>,
    /// Device accesses, by the index in [`Record::Lookup`].
    pub lookups: Vec<Lookup>,
    /// The guest's marks, by the index in [`Record::Mark`]; without control characters.
    pub marks: Vec<Box<str>>,
    /// The number of hypercalls in `records`.
    pub hypercalls: u64,
    /// The number of hypercalls in the file's last line, if it has one.
    pub claimed_hypercalls: Option<u64>,
}

impl Trace {
    /// The recorded entries of `list`.
    #[must_use]
    pub fn values(&self, list: &List) -> &[u64] {
        &self.values[list.first as usize..][..list.recorded as usize]
    }

    /// The index of the first record that maps, or 0 if none does.
    ///
    /// Guests clear whole windows at boot; those calls map nothing and are timed separately.
    #[must_use]
    pub fn first_mapping(&self) -> usize {
        let maps = |record: &Record| match *record {
            Record::Put { tce, .. } | Record::Stuff { tce, .. } => tce & PERMISSION != 0,
            Record::Indirect { list, .. } => {
                self.values(&self.lists[list as usize]).iter().any(|tce| tce & PERMISSION != 0)
            }
            _ => false,
        };
        self.records.iter().position(maps).unwrap_or(0)
    }
}

/// The permission bits of an entry: 1 read, 2 write.
pub const PERMISSION: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn window(liobn: u64, start: u64, shift: u32, entries: u64) -> Window {
        Window { liobn, start: BusAddr::new(start), shift: PageShift::new(shift).unwrap(), entries }
    }

    #[test]
    fn a_window_knows_its_first_and_last_address() {
        let w = window(0x8000_0000, 0x4000_0000, 12, 4096);
        assert_eq!(w.last(), BusAddr::new(0x40ff_ffff));
        assert_eq!(w.index(BusAddr::new(0x3fff_ffff)), None);
        assert_eq!(w.index(BusAddr::new(0x4000_0000)), Some(0));
        assert_eq!(w.index(BusAddr::new(0x40ff_ffff)), Some(4095));
        assert_eq!(w.index(BusAddr::new(0x4100_0000)), None);
    }

    #[test]
    fn only_the_windows_of_one_host_bridge_share_a_bus() {
        let default = window(0x8000_0000, 0, 12, 1);
        assert!(default.shares_bus(&window(0x8000_0001, 0, 12, 1)));
        assert!(!default.shares_bus(&window(0x8000_0100, 0, 12, 1)));
        assert!(!window(0x7100_0000, 0, 12, 1).shares_bus(&window(0x7100_0001, 0, 12, 1)));
    }

    #[test]
    fn a_record_is_at_most_forty_bytes() {
        assert!(size_of::<Record>() <= 40);
    }
}
