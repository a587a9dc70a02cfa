//! What a platform's IOMMU offers: its windows, page sizes and levels, and what a table costs there.
//!
//! Sizes are those that the kernel charges: a table is paid for as if every level were full, although levels exist only
//! from their first entry on (here as there).

use prereg::{BusAddr, Granule, PageShift};

use crate::geometry::Geometry;

/// How the tables of a platform are laid out and charged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum TableLayout {
    /// Tables in the host's memory, of one to several levels, with a parallel tree of user addresses that costs as much
    /// again (the bare-metal platform).
    Levels {
        /// The largest piece of contiguous memory that one level may take, in bytes.
        largest_piece: u64,
    },
    /// One level kept by a hypervisor underneath, charged once.
    Hypervisor,
}

/// What a platform's IOMMU offers to a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Platform {
    /// Where the default window starts, which is where window 0 starts.
    pub dma32_start: BusAddr,
    /// The length of the default window in bytes.
    pub dma32_bytes: u32,
    /// Where window 1 starts.
    pub dma64_start: BusAddr,
    /// Page sizes that windows may have: bit `k` stands for pages of `2^k` bytes.
    pub page_sizes: u64,
    /// Windows that may exist at a time; 0: none but the default one, and no second version of the container.
    pub max_windows: u32,
    /// Levels that a table may have.
    pub max_levels: u32,
    /// How tables are laid out.
    pub layout: TableLayout,
    /// Whether the error handling extension (EEH) is there.
    pub eeh: bool,
}

/// Why a table cannot be made in the shape asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unbuildable {
    /// No table has this shape.
    Shape,
    /// One level is larger than memory comes in.
    Piece,
}

/// What a table would cost, and what it would be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TablePlan {
    /// Pages to charge, which is done first.
    pub(super) pages: u64,
    pub(super) geometry: Result<Geometry, Unbuildable>,
}

/// Address bits that a table may reach, one less than which its levels may cover.
const REACH_BITS: u32 = 55;
/// An entry takes `2^3` bytes.
const ENTRY_BITS: u32 = 3;
/// The least memory a table takes.
const LEAST_TABLE: u64 = 4096;

impl Platform {
    /// Bare-metal POWER9.
    pub const POWERNV: Self = Self {
        dma32_start: BusAddr::new(0),
        dma32_bytes: 0x8000_0000,
        dma64_start: BusAddr::new(1 << 59),
        page_sizes: 1 << 12 | 1 << 16 | 1 << 21 | 1 << 30,
        max_windows: 2,
        max_levels: 5,
        layout: TableLayout::Levels { largest_piece: 16 << 20 },
        eeh: true,
    };

    /// Bare-metal POWER8, whose large pages have 16 and 256 MiB.
    pub const POWERNV8: Self = Self { page_sizes: 1 << 12 | 1 << 16 | 1 << 24 | 1 << 28, ..Self::POWERNV };

    /// A guest of a POWER hypervisor.
    pub const PSERIES: Self = Self {
        dma32_bytes: 0x4000_0000,
        page_sizes: 1 << 12 | 1 << 16 | 1 << 21 | 1 << 24,
        max_levels: 1,
        layout: TableLayout::Hypervisor,
        eeh: false,
        ..Self::POWERNV
    };

    /// Whether windows may have pages of `shift`.
    #[must_use]
    pub const fn offers(&self, shift: u32) -> bool {
        shift < u64::BITS && self.page_sizes & (1 << shift) != 0
    }

    /// What a table for a window of `bytes` in slot `slot` looks like and costs. The window is as long as its table, which
    /// takes one system page at least. `None`: not even a cost can be named.
    pub(super) fn plan(
        &self,
        granule: Granule,
        slot: usize,
        shift: PageShift,
        bytes: u64,
        levels: u32,
    ) -> Option<TablePlan> {
        let start = if slot == 0 { self.dma32_start } else { self.dma64_start };
        let page_bits = granule.shift().get();
        if !bytes.is_power_of_two() {
            return None;
        }
        let index_bits = bytes.trailing_zeros().checked_sub(shift.get())?;
        let build = |entries| Geometry::new(start, shift, entries).map_err(|_| Unbuildable::Shape);
        match self.layout {
            TableLayout::Hypervisor if levels == 1 => {
                let pages = (1u64 << (index_bits + ENTRY_BITS)) >> page_bits;
                Some(TablePlan { pages, geometry: build(1 << index_bits) })
            }
            TableLayout::Hypervisor if levels == 0 => None,
            TableLayout::Hypervisor => {
                let pages = u64::from(u32::MAX) >> page_bits;
                Some(TablePlan { pages, geometry: Err(Unbuildable::Shape) })
            }
            TableLayout::Levels { .. } if levels == 0 || levels > self.max_levels => None,
            TableLayout::Levels { largest_piece } => {
                let piece_bits = (index_bits.div_ceil(levels) + ENTRY_BITS).max(page_bits);
                let pages = (2 * Self::bytes_of_levels(index_bits, piece_bits, levels)) >> page_bits;
                let geometry = if (piece_bits - ENTRY_BITS) * levels + shift.get() >= REACH_BITS {
                    Err(Unbuildable::Shape)
                } else if 1 << piece_bits > largest_piece {
                    Err(Unbuildable::Piece)
                } else {
                    build(1 << index_bits.max(page_bits - ENTRY_BITS))
                };
                Some(TablePlan { pages, geometry })
            }
        }
    }

    /// Bytes of all levels of a full table, each level in pieces of `2^piece_bits`.
    fn bytes_of_levels(index_bits: u32, piece_bits: u32, levels: u32) -> u64 {
        let piece = 1u64 << piece_bits;
        let mut level = (1u64 << (index_bits + ENTRY_BITS)).max(LEAST_TABLE);
        let mut bytes = 0;
        for _ in 0..levels {
            bytes += level.next_multiple_of(piece);
            // The level above has one entry for each piece of this one.
            level = ((level / piece) << ENTRY_BITS).max(piece);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kib(
        platform: Platform,
        granule: Granule,
        shift: u32,
        bytes: u64,
        levels: u32,
    ) -> Result<u64, Unbuildable> {
        let shift = PageShift::new(shift).unwrap();
        let plan = platform.plan(granule, 0, shift, bytes, levels).ok_or(Unbuildable::Shape)?;
        plan.geometry?;
        Ok((plan.pages << granule.shift().get()) >> 10)
    }

    #[test]
    fn tables_cost_what_the_kernel_charges_for_them() {
        for (granule, shift, bytes, levels, expected) in [
            (Granule::K4, 12, 2 << 30, 1, 8192),
            (Granule::K64, 12, 2 << 30, 1, 8192),
            (Granule::K4, 16, 1 << 30, 1, 256),
            (Granule::K4, 21, 1 << 30, 1, 8),
            (Granule::K64, 21, 1 << 30, 1, 128),
            (Granule::K4, 16, 1 << 20, 1, 8),
            (Granule::K4, 16, 64 << 30, 3, 16424),
            (Granule::K4, 30, 4 << 30, 1, 8),
        ] {
            assert_eq!(kib(Platform::POWERNV, granule, shift, bytes, levels), Ok(expected));
        }
        assert_eq!(kib(Platform::PSERIES, Granule::K4, 12, 1 << 30, 1), Ok(2048));
        assert_eq!(kib(Platform::PSERIES, Granule::K64, 21, 1 << 30, 1), Ok(0));
    }

    #[test]
    fn shapes_that_no_table_has_are_refused() {
        for (granule, shift, bytes, levels) in [
            (Granule::K4, 16, 0, 1),
            (Granule::K4, 16, 1, 1),
            (Granule::K4, 16, 3 << 30, 1),
            (Granule::K4, 16, u64::MAX, 1),
            (Granule::K4, 16, 1 << 63, 1),
            (Granule::K4, 16, 1 << 30, 0),
            (Granule::K4, 16, 1 << 30, 6),
            (Granule::K64, 16, 64 << 30, 3),
        ] {
            assert_eq!(kib(Platform::POWERNV, granule, shift, bytes, levels), Err(Unbuildable::Shape));
        }
        assert_eq!(kib(Platform::POWERNV, Granule::K4, 16, 1 << 48, 1), Err(Unbuildable::Piece));
    }

    #[test]
    fn a_window_is_as_long_as_its_table() {
        let plan = Platform::POWERNV.plan(Granule::K4, 1, PageShift::K64, 1 << 16, 1).unwrap();
        let geometry = plan.geometry.unwrap();
        assert_eq!((geometry.entries(), geometry.start()), (512, BusAddr::new(1 << 59)));
    }
}
