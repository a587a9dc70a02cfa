//! The roofline: the speed of the machine without any safety.
//!
//! [`Roofline`] is a two-level table: leaves of 4-byte page numbers for 2 MiB each, and a plain counter per region, found by a
//! shift because all regions have one size. Nothing could ever be unregistered. [`Array8`] and [`Array4`] are a single load.
//!
//! Indexing is unchecked, because bounds checks would slow the roofline down.

#![expect(unsafe_code, reason = "the limit has no bounds checks")]

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

use prereg::TableMemory;

use super::candidate::Candidate;
use super::layout::{Address, PAGE, Shape};

const LEAF_SHIFT: u32 = 21;
const LEAF_PAGES: usize = 512;

/// Page numbers in table memory.
struct Leaves {
    /// Atomic only to make the table `Send`.
    at: AtomicPtr<u32>,
    pages: usize,
    memory: Arc<dyn TableMemory>,
}

impl Leaves {
    /// `pages` zeros.
    fn new(pages: usize, memory: Arc<dyn TableMemory>) -> Self {
        let at = memory.allocate(Self::layout(pages)).map(|at| at.cast::<u32>().as_ptr());
        let Some(at) = at else { panic!("no memory for a table of {pages} pages") };
        Self { at: AtomicPtr::new(at), pages, memory }
    }

    fn layout(pages: usize) -> Layout {
        Layout::array::<u32>(pages).unwrap_or(Layout::new::<u32>())
    }

    fn at(&self, index: usize) -> *mut u32 {
        assert!(index < self.pages, "a leaf outside of the table");
        // Relaxed: never changes.
        self.at.load(Ordering::Relaxed).wrapping_add(index)
    }

    fn write(&self, index: usize, frame: u32) {
        // SAFETY: inside the table, which no other thread reads yet.
        unsafe { self.at(index).write(frame) };
    }
}

impl Drop for Leaves {
    fn drop(&mut self) {
        if let Some(at) = NonNull::new(self.at.load(Ordering::Relaxed)) {
            // SAFETY: had in `new`, and the table goes.
            unsafe { self.memory.release(at.cast(), Self::layout(self.pages)) };
        }
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves").field("pages", &self.pages).finish_non_exhaustive()
    }
}

/// The two-level table with plain counters.
#[derive(Debug)]
pub struct Roofline {
    base: u64,
    span: u64,
    /// The beginnings of leaves in `_leaves`; atomic only to make the table `Send`.
    top: Box<[AtomicPtr<u32>]>,
    /// Page numbers of all leaves; 0 in gaps. `top` points into them.
    _leaves: Leaves,
    counts: Box<[AtomicI64]>,
    count_shift: u32,
}

impl Roofline {
    /// `hosts` are the host addresses of the pages of `shape`, gaps left out. The leaves are in `memory`: the heap, or locked
    /// huge pages like prereg's tables.
    ///
    /// # Panics
    /// If there is no memory.
    #[must_use]
    pub fn new(shape: Shape, base: u64, hosts: &[u64], memory: Arc<dyn TableMemory>) -> Self {
        let pieces = (shape.span() >> LEAF_SHIFT) as usize;
        let addresses = shape.addresses(base);
        let in_use = |piece: u64| {
            // Entries of gaps point to the leaf of zeros.
            let first = piece << LEAF_SHIFT;
            let stride = shape.region_bytes() * 2;
            first % stride < shape.region_bytes() || stride <= 1 << LEAF_SHIFT
        };
        let mut starts = vec![0usize; pieces];
        let mut leaves = LEAF_PAGES;
        for (piece, start) in starts.iter_mut().enumerate() {
            if in_use(piece as u64) {
                *start = leaves;
                leaves += LEAF_PAGES;
            }
        }
        let leaves = Leaves::new(leaves, memory);
        for (page, host) in hosts.iter().enumerate() {
            let offset = addresses.page(page as u64).ua - base;
            let start = starts[(offset >> LEAF_SHIFT) as usize];
            leaves.write(start + (offset / PAGE) as usize % LEAF_PAGES, (host / PAGE) as u32);
        }
        let top = starts.iter().map(|&start| AtomicPtr::new(leaves.at(start))).collect();
        let count_shift = (shape.region_bytes() * 2).trailing_zeros();
        let counts = (0..shape.regions).map(|_| AtomicI64::new(0)).collect();
        Self { base, span: shape.span(), top, _leaves: leaves, counts, count_shift }
    }

    #[inline(always)]
    fn find(&self, ua: u64) -> (u64, u64) {
        let offset = ua.wrapping_sub(self.base);
        if offset >= self.span {
            super::prereg::not_found();
        }
        // SAFETY: below the span, which the table covers.
        let leaf = unsafe { self.top.get_unchecked((offset >> LEAF_SHIFT) as usize) };
        // Relaxed: never changes.
        let leaf = leaf.load(Ordering::Relaxed);
        // SAFETY: a leaf has 512 pages and lives as long as the table.
        let frame = unsafe { *leaf.wrapping_add((offset / PAGE) as usize % LEAF_PAGES) };
        if frame == 0 {
            super::prereg::not_found();
        }
        ((u64::from(frame) * PAGE) | (ua % PAGE), offset)
    }

    #[inline(always)]
    fn count(&self, offset: u64) -> &AtomicI64 {
        // SAFETY: below the span, which has that many regions.
        unsafe { self.counts.get_unchecked((offset >> self.count_shift) as usize) }
    }
}

impl Candidate for Roofline {
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        self.find(address.ua).0
    }

    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        let (host, offset) = self.find(address.ua);
        let count = self.count(offset);
        // Relaxed, load and store: a plain counter that the compiler may not remove.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        host
    }

    #[inline(always)]
    fn range(&mut self, address: Address, bytes: u64) -> u64 {
        let (mut sum, offset) = self.find(address.ua);
        let count = self.count(offset);
        // Relaxed: as above.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        for page in 1..bytes / PAGE {
            sum = sum.wrapping_add(self.find(address.ua + page * PAGE).0);
        }
        count.store(count.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
        sum >> 1
    }
}

/// A load of 8 bytes per page.
#[derive(Debug)]
pub struct Array8(pub Box<[u64]>);

/// A load of 4 bytes per page.
#[derive(Debug)]
pub struct Array4(pub Box<[u32]>);

/// A candidate that is an array.
macro_rules! array {
    ($name:ident, $load:expr) => {
        impl Candidate for $name {
            #[inline(always)]
            fn translate(&mut self, address: Address) -> u64 {
                debug_assert!((address.page as usize) < self.0.len());
                // SAFETY: page numbers are below the number of pages, which is the array's length.
                let entry = unsafe { *self.0.get_unchecked(address.page as usize) };
                let load: fn(_) -> u64 = $load;
                load(entry)
            }

            #[inline(always)]
            fn map_unmap(&mut self, address: Address) -> u64 {
                self.translate(address)
            }

            #[inline(always)]
            fn range(&mut self, address: Address, bytes: u64) -> u64 {
                let pages = address.page..address.page + bytes / PAGE;
                pages.fold(0u64, |sum, page| sum.wrapping_add(self.translate(Address { page, ..address })))
                    >> 1
            }
        }
    };
}

array!(Array8, |entry: u64| entry);
array!(Array4, |entry: u32| u64::from(entry) * PAGE);
