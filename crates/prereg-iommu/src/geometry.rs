//! The geometry of a table: start on the bus, page size, number of entries.
//!
//! A [`Geometry`] is not empty, starts at a page and ends below 2^64, so converting an entry number to a bus address cannot
//! wrap. The rule sets look up entries in two ways: KVM refuses an unaligned address, QEMU rounds it down.

use prereg::{BusAddr, Errno, PageShift};

/// Errors of a table's geometry. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GeometryError {
    /// No entries.
    #[error("a table needs at least one entry")]
    Empty,
    /// The page size is not supported.
    #[error("pages of 2^{} bytes are not supported; the shift may be {} to {}", shift.get(), Geometry::MIN_SHIFT.get(), largest.get())]
    PageSize {
        /// The page size asked for.
        shift: PageShift,
        /// The largest supported one.
        largest: PageShift,
    },
    /// The start of the window is not page-aligned.
    #[error("a window at {start} does not start at a page of {shift}")]
    Misaligned {
        /// The start asked for.
        start: BusAddr,
        /// The page size.
        shift: PageShift,
    },
    /// The window reaches 2^64.
    #[error("a window at {start} with {entries} pages of {shift} passes the end of the bus")]
    Wraps {
        /// The start asked for.
        start: BusAddr,
        /// The page size.
        shift: PageShift,
        /// The number of entries asked for.
        entries: u64,
    },
}

prereg::debug_as_display!(GeometryError);

impl GeometryError {
    /// EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

/// Start, page size and number of entries of a table, checked to end below 2^64.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    start: BusAddr,
    shift: PageShift,
    entries: u64,
}

impl Geometry {
    /// 4 KiB: the low 12 bits of a TCE are not address bits.
    const MIN_SHIFT: PageShift = PageShift::K4;

    /// 16 GiB: the largest page of KVM's guest-visible tables (docs/specification.md 3.2).
    const MAX_GUEST_SHIFT: PageShift = PageShift::new(34).expect("a shift below 64");

    const MAX_SHIFT: PageShift = PageShift::new(63).expect("a shift below 64");

    /// A table of `entries` pages of `shift` from bus address `start` on, with any page size from 4 KiB up.
    ///
    /// # Errors
    /// [`GeometryError`], in this order: empty, page size, misaligned, wrapping. A window that ends at 2^64 exactly wraps.
    pub const fn new(start: BusAddr, shift: PageShift, entries: u64) -> Result<Self, GeometryError> {
        Self::within(start, shift, entries, Self::MAX_SHIFT)
    }

    /// [`new`](Self::new) for a guest-visible table: pages of 4 KiB to 16 GiB, as in KVM.
    ///
    /// # Errors
    /// As [`Geometry::new`].
    pub const fn for_guest(start: BusAddr, shift: PageShift, entries: u64) -> Result<Self, GeometryError> {
        Self::within(start, shift, entries, Self::MAX_GUEST_SHIFT)
    }

    const fn within(
        start: BusAddr,
        shift: PageShift,
        entries: u64,
        largest: PageShift,
    ) -> Result<Self, GeometryError> {
        if entries == 0 {
            return Err(GeometryError::Empty);
        }
        if shift.get() < Self::MIN_SHIFT.get() || shift.get() > largest.get() {
            return Err(GeometryError::PageSize { shift, largest });
        }
        if !start.is_aligned(shift) {
            return Err(GeometryError::Misaligned { start, shift });
        }
        match (start.raw() >> shift.get()).checked_add(entries) {
            Some(end) if end <= u64::MAX >> shift.get() => Ok(Self { start, shift, entries }),
            _ => Err(GeometryError::Wraps { start, shift, entries }),
        }
    }

    /// This window in smaller pages: the geometry of a hardware table for it. `None` if `shift` is larger than this table's
    /// or below 4 KiB.
    #[must_use]
    pub const fn split(&self, shift: PageShift) -> Option<Self> {
        if shift.get() < Self::MIN_SHIFT.get() || shift.get() > self.shift.get() {
            return None;
        }
        Some(Self { start: self.start, shift, entries: self.entries << (self.shift.get() - shift.get()) })
    }

    /// The first bus address of the window.
    #[must_use]
    pub const fn start(&self) -> BusAddr {
        self.start
    }

    /// The page size.
    #[must_use]
    #[inline]
    pub const fn shift(&self) -> PageShift {
        self.shift
    }

    /// The number of entries: 1 to 2^52.
    #[must_use]
    pub const fn entries(&self) -> u64 {
        self.entries
    }

    /// The length of the window in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.entries << self.shift.get()
    }

    /// The bus address of entry `index`, or `None` outside the table.
    #[must_use]
    pub const fn address(&self, index: u64) -> Option<BusAddr> {
        if index < self.entries { self.start.checked_add(index << self.shift.get()) } else { None }
    }

    /// Whether the windows overlap.
    #[must_use]
    pub const fn intersects(&self, other: &Self) -> bool {
        self.start.raw() <= other.start.raw() + (other.bytes() - 1)
            && other.start.raw() <= self.start.raw() + (self.bytes() - 1)
    }

    /// The entry of the page that contains `ioba`: QEMU's rule, and that of device accesses.
    #[must_use]
    #[inline]
    pub const fn index(&self, ioba: BusAddr) -> Option<u64> {
        // Below the start this wraps to a number outside any table.
        let index = ioba.raw().wrapping_sub(self.start.raw()) >> self.shift.get();
        if index < self.entries { Some(index) } else { None }
    }

    /// The first of `pages` entries from `ioba` on, if `ioba` is page-aligned and all of them are inside: KVM's rule
    /// (docs/specification.md 3.3). Zero pages are valid everywhere inside and at the end.
    #[must_use]
    #[inline]
    pub const fn aligned_index(&self, ioba: BusAddr, pages: u64) -> Option<u64> {
        if !ioba.is_aligned(self.shift) {
            return None;
        }
        let page = ioba.raw() >> self.shift.get();
        match page.checked_sub(self.start.raw() >> self.shift.get()) {
            Some(index) if index <= self.entries && pages <= self.entries - index => Some(index),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(start: u64, shift: u32, entries: u64) -> Result<Geometry, GeometryError> {
        Geometry::for_guest(BusAddr::new(start), PageShift::new(shift).unwrap(), entries)
    }

    #[test]
    fn scenario_132_bad_shapes_are_refused_with_einval() {
        for (start, shift, entries) in [
            (0, 12, 0),
            (0, 11, 1),
            (0, 35, 1),
            (0, 12, 1 << 52),
            (0, 12, u64::MAX),
            (!0xfff, 12, 1),
            (1 << 63, 12, 1 << 51),
            (0x800, 12, 1),
            (0x1000, 16, 1),
        ] {
            let refused = shape(start, shift, entries).unwrap_err();
            assert_eq!(refused.errno(), Errno::EINVAL, "{refused}");
        }
    }

    #[test]
    fn the_largest_shapes_are_accepted() {
        shape(0, 12, (1 << 52) - 1).unwrap();
        shape(1 << 63, 12, (1 << 51) - 1).unwrap();
        shape(0, 34, (1 << 30) - 1).unwrap();
        Geometry::new(BusAddr::new(0), PageShift::new(62).unwrap(), 3).unwrap();
        assert!(Geometry::new(BusAddr::new(0), PageShift::new(63).unwrap(), 2).is_err());
        assert!(Geometry::new(BusAddr::new(0), PageShift::new(11).unwrap(), 2).is_err());
    }

    #[test]
    fn one_rule_rounds_down_and_the_other_refuses() {
        let window = shape(0x10_0000, 16, 16).unwrap();
        for (ioba, rounded, strict) in [
            (0x10_0000, Some(0), Some(0)),
            (0x10_ffff, Some(0), None),
            (0x1f_0000, Some(15), Some(15)),
            (0x20_0000, None, None),
            (0xf_0000, None, None),
            (0xf_ffff, None, None),
            (0, None, None),
            (u64::MAX, None, None),
        ] {
            assert_eq!(window.index(BusAddr::new(ioba)), rounded, "{ioba:#x}");
            assert_eq!(window.aligned_index(BusAddr::new(ioba), 1), strict, "{ioba:#x}");
        }
    }

    #[test]
    fn ranges_are_checked_to_their_end() {
        let window = shape(0x10_0000, 16, 16).unwrap();
        for (ioba, pages, index) in [
            (0x10_0000, 16, Some(0)),
            (0x10_0000, 17, None),
            (0x1f_0000, 1, Some(15)),
            (0x1f_0000, 2, None),
            (0x1f_0000, u64::MAX, None),
            (0x20_0000, 0, Some(16)),
            (0x20_0000, 1, None),
            (0x21_0000, 0, None),
            (0x10_0001, 0, None),
        ] {
            assert_eq!(window.aligned_index(BusAddr::new(ioba), pages), index, "{ioba:#x} {pages}");
        }
    }

    #[test]
    fn windows_meet_only_where_they_share_an_address() {
        let window = shape(0x10_0000, 16, 16).unwrap();
        assert!(window.intersects(&shape(0x1f_f000, 12, 1).unwrap()));
        assert!(window.intersects(&shape(0, 12, 1 << 20).unwrap()));
        assert!(!window.intersects(&shape(0x20_0000, 12, 1).unwrap()));
        assert!(!window.intersects(&shape(0xf_f000, 12, 1).unwrap()));
        assert_eq!(window.address(15), Some(BusAddr::new(0x1f_0000)));
        assert_eq!(window.address(16), None);
        let split = window.split(PageShift::K4).unwrap();
        assert_eq!((split.bytes(), split.entries()), (window.bytes(), 256));
        assert_eq!((window.split(PageShift::M2), window.split(PageShift::new(11).unwrap())), (None, None));
    }
}
