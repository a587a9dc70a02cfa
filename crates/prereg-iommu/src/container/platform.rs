//! The IOMMU of a platform: its windows, page sizes and levels, and the size of its tables.
//!
//! Tables are charged like the kernel's: as if every level were full, although levels are allocated at their first entry (in
//! the kernel too).

use prereg::{BusAddr, Granule, PageShift};

use crate::geometry::Geometry;

/// Layout and charge of a platform's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum TableLayout {
    /// Tables of one to several levels in host memory, with a parallel tree of user addresses of the same size (bare
    /// metal).
    Levels {
        /// The largest contiguous allocation for one level, in bytes.
        max_level_bytes: u64,
    },
    /// One level kept by a hypervisor, charged once.
    Hypervisor,
}

/// The IOMMU of a platform.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Platform {
    /// The start of the default window and of window 0.
    pub dma32_start: BusAddr,
    /// The length of the default window in bytes.
    pub dma32_bytes: u32,
    /// The start of window 1.
    pub dma64_start: BusAddr,
    /// Page sizes of windows: bit `k` stands for pages of `2^k` bytes.
    pub page_sizes: u64,
    /// Windows at a time; 0: only the default one, and no version 2 containers.
    pub max_windows: u32,
    /// Levels of a table, at most.
    pub max_levels: u32,
    /// The layout of tables.
    pub layout: TableLayout,
    /// Whether extended error handling (EEH) is supported.
    pub eeh: bool,
}

/// Errors of planning a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TableShapeError {
    /// No table has this shape.
    Shape,
    /// A level exceeds the largest allocation.
    Piece,
}

/// The charge and the geometry of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TablePlan {
    /// Pages to charge; charged before the geometry is checked.
    pub(super) pages: u64,
    pub(super) geometry: Result<Geometry, TableShapeError>,
}

/// Levels and page of a table must cover fewer address bits than this.
const REACH_BITS: u32 = 55;
/// An entry has `2^3` bytes.
const ENTRY_BITS: u32 = 3;
/// The smallest table, in bytes.
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
        layout: TableLayout::Levels { max_level_bytes: 16 << 20 },
        eeh: true,
    };

    /// Bare-metal POWER8: large pages of 16 and 256 MiB.
    pub const POWERNV8: Self = Self { page_sizes: 1 << 12 | 1 << 16 | 1 << 24 | 1 << 28, ..Self::POWERNV };

    /// A guest of a POWER hypervisor (pSeries).
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
    pub(super) const fn offers(&self, shift: u32) -> bool {
        shift < u64::BITS && self.page_sizes & (1 << shift) != 0
    }

    /// The table for a window of `bytes` in slot `slot`. A window is as long as its table, which takes at least one system
    /// page. `None` if the size is invalid before anything can be charged.
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
        let build = |entries| Geometry::new(start, shift, entries).map_err(|_| TableShapeError::Shape);
        match self.layout {
            TableLayout::Hypervisor if levels == 1 => {
                let pages = (1u64 << (index_bits + ENTRY_BITS)) >> page_bits;
                Some(TablePlan { pages, geometry: build(1 << index_bits) })
            }
            TableLayout::Hypervisor if levels == 0 => None,
            TableLayout::Hypervisor => {
                let pages = u64::from(u32::MAX) >> page_bits;
                Some(TablePlan { pages, geometry: Err(TableShapeError::Shape) })
            }
            TableLayout::Levels { .. } if levels == 0 || levels > self.max_levels => None,
            TableLayout::Levels { max_level_bytes } => {
                let piece_bits = (index_bits.div_ceil(levels) + ENTRY_BITS).max(page_bits);
                let pages = (2 * Self::bytes_of_levels(index_bits, piece_bits, levels)) >> page_bits;
                let geometry = if (piece_bits - ENTRY_BITS) * levels + shift.get() >= REACH_BITS {
                    Err(TableShapeError::Shape)
                } else if 1 << piece_bits > max_level_bytes {
                    Err(TableShapeError::Piece)
                } else {
                    build(1 << index_bits.max(page_bits - ENTRY_BITS))
                };
                Some(TablePlan { pages, geometry })
            }
        }
    }

    /// Bytes of all levels of a full table, rounded up to `2^piece_bits` each.
    fn bytes_of_levels(index_bits: u32, piece_bits: u32, levels: u32) -> u64 {
        let piece = 1u64 << piece_bits;
        let mut level = (1u64 << (index_bits + ENTRY_BITS)).max(LEAST_TABLE);
        let mut bytes = 0;
        for _ in 0..levels {
            bytes += level.next_multiple_of(piece);
            // The level above has one entry for each table of this one.
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
    ) -> Result<u64, TableShapeError> {
        let shift = PageShift::new(shift).unwrap();
        let plan = platform.plan(granule, 0, shift, bytes, levels).ok_or(TableShapeError::Shape)?;
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
            assert_eq!(kib(Platform::POWERNV, granule, shift, bytes, levels), Err(TableShapeError::Shape));
        }
        assert_eq!(kib(Platform::POWERNV, Granule::K4, 16, 1 << 48, 1), Err(TableShapeError::Piece));
    }

    #[test]
    fn a_window_is_as_long_as_its_table() {
        let plan = Platform::POWERNV.plan(Granule::K4, 1, PageShift::K64, 1 << 16, 1).unwrap();
        let geometry = plan.geometry.unwrap();
        assert_eq!((geometry.entries(), geometry.start()), (512, BusAddr::new(1 << 59)));
    }
}
