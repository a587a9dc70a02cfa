//! The positions of the regions of guest memory, for lookups without a lock.
//!
//! A sequence lock: the writer makes the version odd, changes the numbers, and makes it even again; a reader whose version
//! was odd or has changed reads again. All of it is atomic numbers, so a reader that loses the race has read nothing but
//! wrong numbers. Regions change when memory is plugged in or out, so readers hardly ever read twice.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use prereg::UserAddr;
use vm_memory::GuestAddress;

/// A region of guest memory: its place in the guest and in this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct RamRegion {
    /// Its guest address.
    pub gpa: GuestAddress,
    /// Its user address.
    pub ua: UserAddr,
    /// The length.
    pub bytes: u64,
}

/// Sorted regions. Changed by one thread at a time, which its owner sees to.
#[derive(Default)]
pub(super) struct RegionIndex {
    /// Odd while a change is under way.
    version: AtomicU64,
    length: AtomicU64,
    /// Chunk `k` has 2^k regions, and stays where it is.
    chunks: [OnceLock<Box<[Cell]>>; u32::BITS as usize],
}

#[derive(Default)]
struct Cell {
    gpa: AtomicU64,
    ua: AtomicU64,
    bytes: AtomicU64,
}

/// The regions as a reader sees them during one attempt. May be torn, and is read again then.
pub(super) struct Regions<'a>(&'a RegionIndex);

impl RegionIndex {
    /// The answer of `look` to regions that did not change meanwhile. `look` may be called with torn regions, whose answer is
    /// dropped.
    #[inline]
    pub(super) fn read<T>(&self, look: impl Fn(&Regions<'_>) -> T) -> T {
        loop {
            // Acquire pairs with the Release store in `replace`: an even version's numbers are seen.
            let before = self.version.load(Ordering::Acquire);
            if before % 2 == 0 {
                let answer = look(&Regions(self));
                // Pairs with the Release fence in `replace`: numbers of a later change come with its odd version.
                fence(Ordering::Acquire);
                // Relaxed: ordered by the fence.
                if self.version.load(Ordering::Relaxed) == before {
                    return answer;
                }
            }
            std::hint::spin_loop();
        }
    }

    /// Replaces the regions.
    pub(super) fn replace(&self, regions: &[RamRegion]) {
        // Relaxed here and below: one thread at a time changes regions, and readers are ordered by fence and version.
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the Acquire fence in `read`.
        fence(Ordering::Release);
        for (at, region) in regions.iter().enumerate() {
            let cell = self.cell_or_new(at);
            cell.gpa.store(region.gpa.0, Ordering::Relaxed);
            cell.ua.store(region.ua.raw(), Ordering::Relaxed);
            cell.bytes.store(region.bytes, Ordering::Relaxed);
        }
        self.length.store(regions.len() as u64, Ordering::Relaxed);
        // Release pairs with the Acquire load in `read`.
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    fn cell_or_new(&self, at: usize) -> &Cell {
        let (chunk, offset) = place(at);
        &self.chunks[chunk].get_or_init(|| (0..1 << chunk).map(|_| Cell::default()).collect())[offset]
    }
}

/// The chunk of a region and where it is in that.
#[inline]
fn place(at: usize) -> (usize, usize) {
    let chunk = (at + 1).ilog2() as usize;
    (chunk, at + 1 - (1 << chunk))
}

impl Regions<'_> {
    #[inline]
    pub(super) fn len(&self) -> usize {
        // Relaxed: see `RegionIndex::read`.
        self.0.length.load(Ordering::Relaxed) as usize
    }

    #[inline]
    pub(super) fn get(&self, at: usize) -> Option<RamRegion> {
        let (chunk, offset) = place(at);
        let cell = &self.0.chunks.get(chunk)?.get()?[offset];
        // Relaxed: see `RegionIndex::read`.
        Some(RamRegion {
            gpa: GuestAddress(cell.gpa.load(Ordering::Relaxed)),
            ua: UserAddr::new(cell.ua.load(Ordering::Relaxed)),
            bytes: cell.bytes.load(Ordering::Relaxed),
        })
    }

    /// How many regions from the first on are `before`, in regions that are sorted by it.
    #[inline]
    pub(super) fn partition(&self, before: impl Fn(&RamRegion) -> bool) -> usize {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle) {
                Some(region) if before(&region) => low = middle + 1,
                _ => high = middle,
            }
        }
        low
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = RamRegion> {
        (0..self.len()).filter_map(|at| self.get(at))
    }
}
