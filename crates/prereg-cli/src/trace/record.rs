//! A trace in memory: one [`Record`] a line that matters, lists and windows aside.
//!
//! A [`Trace`] owns everything. Records point into its tables by index; only [`parse`](super::parse) makes them, so an
//! index is always inside. Records stay small because a replay streams through them while it measures something else.

use prereg::{BusAddr, GuestAddr, PageShift};

/// One line of a trace that a replay acts on, in the guest's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// `W`: a table exists from here on. The index is one of [`Trace::windows`].
    Window(u32),
    /// `D`: the table is gone.
    Remove {
        /// The table's number.
        liobn: u64,
    },
    /// `P`: H_PUT_TCE.
    Put {
        /// What the guest was answered.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// Where in the table.
        ioba: BusAddr,
        /// The entry.
        tce: u64,
    },
    /// `I`: H_PUT_TCE_INDIRECT.
    Indirect {
        /// What the guest was answered.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// Where in the table.
        ioba: BusAddr,
        /// One of [`Trace::lists`].
        list: u32,
    },
    /// `S`: H_STUFF_TCE.
    Stuff {
        /// What the guest was answered.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// Where in the table.
        ioba: BusAddr,
        /// The entry to repeat.
        tce: u64,
        /// How often.
        count: u64,
    },
    /// `G`: H_GET_TCE.
    Get {
        /// What the guest was answered.
        ret: i32,
        /// The table's number.
        liobn: u64,
        /// Where in the table.
        ioba: BusAddr,
        /// The entry that came back.
        tce: u64,
    },
    /// `X`: a device's own access; not a hypercall. The index is one of [`Trace::lookups`].
    Lookup(u32),
    /// `M`: the guest said where it is. The index is one of [`Trace::marks`].
    Mark(u32),
}

impl Record {
    /// Whether this is one of the four hypercalls.
    #[must_use]
    pub const fn is_hypercall(&self) -> bool {
        matches!(self, Self::Put { .. } | Self::Indirect { .. } | Self::Stuff { .. } | Self::Get { .. })
    }
}

/// The arguments of a list call that no other call has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// Where the guest put the list.
    pub at: GuestAddr,
    /// How many entries it said the list has.
    pub count: u64,
    /// The first of its entries in [`Trace::values`].
    pub first: u32,
    /// How many entries were recorded: `count`, or none for calls that are refused before the list is read.
    pub recorded: u32,
    /// Whether `at` was memory of the guest.
    pub readable: bool,
}

/// A table of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The table's number.
    pub liobn: u64,
    /// The bus address of its first entry.
    pub start: BusAddr,
    /// The page of one entry.
    pub shift: PageShift,
    /// How many entries it has; never zero, and `start + (entries << shift)` is below 2^64.
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

    /// Whether both windows sit on one bus, so that an address means one thing only.
    ///
    /// The windows of a PCI host bridge share all of their number but the last byte; a virtual I/O device has a bus of
    /// its own, and so has every number that the guest's firmware did not make up by that rule.
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

/// What a device found at a bus address, and how often in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The table's number; the table exists.
    pub liobn: u64,
    /// The page that the device addressed.
    pub ioba: BusAddr,
    /// The guest page it reached.
    pub gpa: GuestAddr,
    /// The permission bits of the entry: 1 read, 2 write.
    pub permission: u64,
    /// Equal accesses in a row.
    pub count: u64,
}

/// A whole trace.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// The trace's name: the file's, without folder and endings.
    pub name: String,
    /// The file as the caller named it.
    pub file: String,
    /// Guest RAM: guest-physical 0 up to this many bytes.
    pub ram_bytes: u64,
    /// What to do, in order.
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
    /// What the guest said, by the index in [`Record::Mark`]; free of control characters.
    pub marks: Vec<Box<str>>,
    /// How many of `records` are hypercalls.
    pub hypercalls: u64,
    /// How many hypercalls the file's last line says it has, when it says so.
    pub claimed_hypercalls: Option<u64>,
}

impl Trace {
    /// The recorded entries of `list`.
    #[must_use]
    pub fn values(&self, list: &List) -> &[u64] {
        &self.values[list.first as usize..][..list.recorded as usize]
    }

    /// The index of the first record that gives a device access to memory, or of the first record when none does.
    ///
    /// Guests clear whole windows at boot; those calls map nothing and are measured apart.
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

/// The bits of an entry that let a device in: 1 read, 2 write.
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
