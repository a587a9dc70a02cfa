//! The registered memory, and the addresses to look up.
//!
//! A [`Shape`] is a total size cut into equal regions, each followed by a gap of its size, so that a slightly wrong address is
//! in no region. Sizes and numbers of regions are powers of two: computing an address takes a few instructions, little next to
//! a candidate.

use serde::Serialize;

/// The system page of all candidates.
pub const PAGE: u64 = 4096;
/// Bytes of a range, unless regions are smaller.
pub const RANGE: u64 = 128 << 10;

/// The arrangement of pages on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// No page is next to its neighbour.
    Scattered,
    /// Each region is contiguous.
    Contiguous,
}

impl Layout {
    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scattered => "scattered",
            Self::Contiguous => "contiguous",
        }
    }
}

/// The order of page addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// Random and known in advance: operations overlap (throughput).
    Random,
    /// Random and dependent on the previous result (latency).
    Dependent,
    /// Ascending.
    Sequential,
}

impl Pattern {
    /// All patterns.
    pub const ALL: [Self; 3] = [Self::Random, Self::Dependent, Self::Sequential];

    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Dependent => "dependent",
            Self::Sequential => "sequential",
        }
    }
}

/// A set of regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bytes of all regions, a power of two.
    pub size: u64,
    /// Number of regions, a power of two.
    pub regions: u64,
    /// Their arrangement on the host.
    pub layout: Layout,
}

impl Shape {
    /// Bytes of one region.
    #[must_use]
    pub const fn region_bytes(self) -> u64 {
        self.size / self.regions
    }

    /// Pages of all regions.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.size / PAGE
    }

    /// Bytes from the beginning of the first region to the end of the last gap.
    #[must_use]
    pub const fn span(self) -> u64 {
        self.size * 2
    }

    /// Bytes of a range.
    #[must_use]
    pub const fn range_bytes(self) -> u64 {
        if self.region_bytes() < RANGE { self.region_bytes() } else { RANGE }
    }

    /// Offset of region `index` from the first one.
    #[must_use]
    pub const fn region_offset(self, index: u64) -> u64 {
        index * self.region_bytes() * 2
    }

    /// The addresses of the pages if the first region begins at `base`.
    #[must_use]
    pub const fn addresses(self, base: u64) -> Addresses {
        Addresses {
            base,
            mask: self.pages() - 1,
            region_mask: !(self.region_bytes() / PAGE - 1),
            range_mask: !(self.range_bytes() / PAGE - 1),
        }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {} regions, {}", binary_size(self.size), self.regions, self.layout.name())
    }
}

/// Turns page numbers (gaps left out) into addresses.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    base: u64,
    mask: u64,
    region_mask: u64,
    range_mask: u64,
}

/// A page: its address, and its number with gaps left out, which is an array's index.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// User address.
    pub ua: u64,
    /// Page number.
    pub page: u64,
}

impl Addresses {
    /// The page of any number.
    #[inline(always)]
    #[must_use]
    pub const fn page(self, number: u64) -> Address {
        let page = number & self.mask;
        // Each region before this one is followed by a gap of its size.
        Address { ua: self.base + ((page + (page & self.region_mask)) * PAGE), page }
    }

    /// The first page of the range of any page number.
    #[inline(always)]
    #[must_use]
    pub const fn range(self, number: u64) -> Address {
        self.page(number & self.range_mask)
    }
}

/// A power of two as a size: `64 MiB`, `4 GiB`.
pub(super) fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let unit = bytes.max(1).ilog2() / 10;
    format!("{} {}", bytes >> (unit * 10), UNITS[unit as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_lie_in_regions_and_never_in_gaps() {
        let shape = Shape { size: 64 << 20, regions: 64, layout: Layout::Scattered };
        let addresses = shape.addresses(1 << 40);
        for page in 0..shape.pages() {
            let address = addresses.page(page + shape.pages() * 7);
            assert_eq!(address.page, page);
            let offset = address.ua - (1 << 40);
            let region = page / (shape.region_bytes() / PAGE);
            assert!((0..shape.region_bytes()).contains(&(offset - shape.region_offset(region))), "{page}");
        }
    }

    #[test]
    fn sizes_have_the_largest_unit() {
        let sizes = [1, 1 << 10, 64 << 20, 4 << 30].map(binary_size);
        assert_eq!(sizes, ["1 B", "1 KiB", "64 MiB", "4 GiB"]);
    }

    #[test]
    fn ranges_end_where_their_region_does_or_before() {
        let shape = Shape { size: 64 << 20, regions: 4096, layout: Layout::Scattered };
        assert_eq!(shape.range_bytes(), 16 << 10);
        let addresses = shape.addresses(0);
        for number in 0..4 * 8 {
            assert_eq!(addresses.range(number).ua % (32 << 10), 0, "a region and its gap are 32 KiB");
        }
    }
}
