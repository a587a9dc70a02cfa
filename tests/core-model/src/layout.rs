//! Host addresses of simulated memory, as pure functions.

use prereg::{Granule, PageShift};

use crate::random::mix;

/// The layout of user memory on the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Every page elsewhere.
    Scattered,
    /// One run.
    Contiguous,
    /// Aligned blocks of 2 MiB, each elsewhere.
    Huge,
    /// Runs of a few pages.
    Stretches,
    /// Every page elsewhere, above 2^32 pages.
    Wide,
    /// Runs of a few pages above 2^32 pages.
    WideStretches,
    /// One run at an address that no index entry can express.
    High,
    /// Around host page 2^32 - 1, the last one of a narrow table, and host page 0.
    NarrowEdge,
    /// The last page below 2^64 among others.
    TopEdge,
}

/// A stretch of user memory that can be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spot {
    /// The first byte.
    pub ua: u64,
    /// The number of system pages.
    pub pages: u64,
    /// Their layout.
    pub layout: Layout,
}

/// Neighbours of one page each, with gaps of one, after the other spots.
pub const CROWD: u64 = 320;
/// Spots before the crowd.
pub const ORDINARY: usize = 24;
const BASE: u64 = 0x7f00_0000_0000;

/// All spots of a host with pages of `granule`; no two touch.
#[must_use]
pub fn catalogue(granule: Granule) -> Vec<Spot> {
    use Layout::{Contiguous, High, Huge, NarrowEdge, Scattered, Stretches, TopEdge, Wide, WideStretches};
    let page = granule.bytes();
    let near = |first: u64, pages, layout| Spot { ua: BASE + first * page, pages, layout };
    let mut spots = vec![
        near(0, 64, Scattered),
        near(128, 48, Contiguous),
        near(1024, (4 << 20) / page, Huge),
        near(4099, 40, Stretches),
        near(8192, 16, Wide),
        near(8256, 32, WideStretches),
        near(9000, 8, High),
    ];
    spots.extend((0..8).map(|single| near(12_000 + 2 * single, 1, Scattered)));
    spots.extend([
        Spot { ua: 0x1000_0000_0000, pages: 16, layout: Scattered },
        Spot { ua: 0, pages: 4, layout: Stretches },
        Spot { ua: 0xff00_0000_0000_0000, pages: 4, layout: Scattered },
        Spot { ua: 0u64.wrapping_sub(4 * page), pages: 3, layout: Contiguous },
        near(16_000, 6, NarrowEdge),
        near(16_100, 6, TopEdge),
        near(20_000, 160, Scattered),
        near(21_001, 3, Scattered),
        near(22_528, (2 << 20) / page, Contiguous),
    ]);
    debug_assert_eq!(spots.len(), ORDINARY);
    spots.extend((0..CROWD).map(|single| near(40_000 + 2 * single, 1, Scattered)));
    spots
}

/// The host addresses of one pin, or of device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Truth {
    /// Pinned: from the number of the pin and of the page.
    Pinned {
        /// The spot's layout.
        layout: Layout,
        /// Number of the spot's first page.
        first: u64,
        /// Another one for each pin.
        pin: u64,
        /// The system page.
        shift: PageShift,
    },
    /// Device memory: from the first byte on.
    Device {
        /// The user address of the first byte.
        ua: u64,
        /// Its host address.
        host: u64,
    },
}

impl Truth {
    /// The host address of the byte at `ua`.
    #[must_use]
    pub fn host(&self, ua: u64) -> u64 {
        match *self {
            Self::Device { ua: first, host } => host + (ua - first),
            Self::Pinned { layout, first, pin, shift } => {
                let shift = shift.get();
                frame(layout, first, pin, ua >> shift, shift) << shift | ua & ((1 << shift) - 1)
            }
        }
    }
}

/// The host page of user page `page`.
fn frame(layout: Layout, first: u64, pin: u64, page: u64, shift: u32) -> u64 {
    let index = page - first;
    let top = u64::MAX >> shift;
    let scattered = |number: u64, bits: u32| 1 + (mix(pin, number) >> (64 - bits));
    let stretch = |bits: u32| scattered(page / 5, bits) * 8 + page % 5;
    // Half the runs are aligned to large pages.
    let run =
        |bits: u32| if pin % 2 == 0 { scattered(0, bits) } else { scattered(0, bits - 10) << 10 } + index;
    match layout {
        Layout::Scattered => scattered(page, 30),
        Layout::Contiguous => run(30),
        Layout::Huge => {
            let block = PageShift::M2.get() - shift;
            scattered(page >> block, 20) << block | page & ((1 << block) - 1)
        }
        Layout::Stretches => stretch(26),
        Layout::Wide => (1 << 33) + scattered(page, 30),
        Layout::WideStretches => (1 << 33) + stretch(26),
        Layout::High => (1 << (62 - shift)) + run(20),
        Layout::NarrowEdge if pin % 2 == 0 => (u64::from(u32::MAX) - 2 + index) & u64::from(u32::MAX),
        Layout::NarrowEdge if index == 2 => u64::from(u32::MAX),
        Layout::NarrowEdge => scattered(page, 28),
        Layout::TopEdge if index == 2 => top,
        // Low ones first, which the index can express, or only high ones.
        Layout::TopEdge if pin % 2 == 0 => scattered(page, 28),
        Layout::TopEdge => top - 1 - scattered(page, 20),
    }
}

/// The contiguous runs of `[ua, ua + bytes)`, none of which continues the one before: host address and bytes.
#[must_use]
pub fn runs(truth: &Truth, granule: Granule, ua: u64, bytes: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < bytes {
        let here = ua + at;
        let step = (granule.bytes() - here % granule.bytes()).min(bytes - at);
        let host = truth.host(here);
        match runs.last_mut() {
            Some((first, length)) if first.checked_add(*length) == Some(host) => *length += step,
            _ => runs.push((host, step)),
        }
        at += step;
    }
    runs
}

/// The largest shift such that all of `[ua, ua + bytes)` is made of aligned blocks of that size, each contiguous and
/// aligned on the host.
#[must_use]
pub fn largest_shift(truth: &Truth, granule: Granule, ua: u64, bytes: u64) -> u32 {
    let mut at = ua;
    let mut shift = 63;
    for (host, length) in runs(truth, granule, ua, bytes) {
        while (at | length | host) & ((1 << shift) - 1) != 0 {
            shift -= 1;
        }
        at = at.wrapping_add(length);
    }
    shift
}
