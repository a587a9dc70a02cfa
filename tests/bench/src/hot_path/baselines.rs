//! Baselines: models of how Linux, virtual machine monitors and ordinary code find and count pinned memory. Only the algorithms
//! are theirs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use prereg::RundownRef;

use super::candidate::Candidate;
use super::layout::{Address, PAGE, Shape};
use super::prereg::not_found;

/// The host addresses of one region's pages.
type Pages = Box<[u64]>;

/// Calls `with` for each region of `shape`, in order: its first address and its pages.
fn each_region(shape: Shape, base: u64, hosts: &[u64], mut with: impl FnMut(u64, Pages)) {
    let pages = (shape.region_bytes() / PAGE) as usize;
    for (index, hosts) in hosts.chunks(pages).enumerate() {
        with(base + shape.region_offset(index as u64), hosts.into());
    }
}

/// A sorted array with one shared atomic per region: prereg without per-thread counts.
#[derive(Debug)]
pub struct OneAtomic {
    firsts: Box<[u64]>,
    regions: Box<[Counted]>,
}

#[derive(Debug)]
struct Counted {
    first: u64,
    rundown: RundownRef,
    pages: Pages,
}

impl OneAtomic {
    /// Makes the structure; all threads share it.
    #[must_use]
    pub fn new(shape: Shape, base: u64, hosts: &[u64]) -> Arc<Self> {
        let mut regions = Vec::new();
        each_region(shape, base, hosts, |first, pages| {
            regions.push(Counted { first, rundown: RundownRef::new(), pages });
        });
        Arc::new(Self {
            firsts: regions.iter().map(|region| region.first).collect(),
            regions: regions.into(),
        })
    }

    #[inline(always)]
    fn find(&self, ua: u64) -> &Counted {
        let after = self.firsts.partition_point(|&first| first <= ua);
        match after.checked_sub(1).and_then(|index| self.regions.get(index)) {
            Some(region) => region,
            None => not_found(),
        }
    }
}

impl Counted {
    #[inline(always)]
    fn host(&self, ua: u64) -> u64 {
        match self.pages.get(((ua - self.first) / PAGE) as usize) {
            Some(page) => page | (ua % PAGE),
            None => not_found(),
        }
    }

    #[inline(always)]
    fn counted(&self, look: impl FnOnce(&Self) -> u64) -> u64 {
        if self.rundown.enter().is_err() {
            not_found();
        }
        let seen = look(self);
        if self.rundown.leave().is_err() {
            not_found();
        }
        seen
    }
}

impl Candidate for Arc<OneAtomic> {
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        self.find(address.ua).host(address.ua)
    }

    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        self.find(address.ua).counted(|region| region.host(address.ua))
    }

    #[inline(always)]
    fn range(&mut self, address: Address, bytes: u64) -> u64 {
        self.find(address.ua).counted(|region| {
            (0..bytes / PAGE).fold(0u64, |sum, page| sum.wrapping_add(region.host(address.ua + page * PAGE)))
                >> 1
        })
    }
}

/// A linked list of regions, each with one atomic, as in Linux on POWER. Each use searches the list twice: to count up and to
/// count down.
#[derive(Debug)]
pub struct KernelList {
    head: Option<Box<Node>>,
}

#[derive(Debug)]
struct Node {
    next: Option<Box<Node>>,
    first: u64,
    pages: Pages,
    /// 1 without mappings.
    mapped: AtomicI64,
}

impl KernelList {
    /// Makes the list in the order of registration.
    #[must_use]
    pub fn new(shape: Shape, base: u64, hosts: &[u64]) -> Arc<Self> {
        let mut nodes = Vec::new();
        each_region(shape, base, hosts, |first, pages| nodes.push((first, pages)));
        let head = nodes.into_iter().rev().fold(None, |next, (first, pages)| {
            Some(Box::new(Node { next, first, pages, mapped: AtomicI64::new(1) }))
        });
        Arc::new(Self { head })
    }

    #[inline(always)]
    fn find(&self, ua: u64) -> &Node {
        let mut node = self.head.as_deref();
        while let Some(here) = node {
            if ua.wrapping_sub(here.first) < here.pages.len() as u64 * PAGE {
                return here;
            }
            node = here.next.as_deref();
        }
        not_found()
    }
}

impl Drop for KernelList {
    /// Drops node by node: the drop of nested boxes would need a stack frame each.
    fn drop(&mut self) {
        let mut node = self.head.take();
        while let Some(mut here) = node {
            node = here.next.take();
        }
    }
}

impl Node {
    #[inline(always)]
    fn host(&self, ua: u64) -> u64 {
        (self.pages[((ua - self.first) / PAGE) as usize] & !1) | (ua % PAGE)
    }

    /// Increments unless it is 0.
    #[inline(always)]
    fn up(&self) {
        // Relaxed and AcqRel, the orderings of the kernel's atomics.
        let mut now = self.mapped.load(Ordering::Relaxed);
        while now > 0 {
            match self.mapped.compare_exchange_weak(now, now + 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => now = other,
            }
        }
        not_found()
    }

    /// Decrements unless it is 1.
    #[inline(always)]
    fn down(&self) {
        let mut now = self.mapped.load(Ordering::Relaxed);
        while now != 1 {
            match self.mapped.compare_exchange_weak(now, now - 1, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(other) => now = other,
            }
        }
    }
}

impl Candidate for Arc<KernelList> {
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        self.find(address.ua).host(address.ua)
    }

    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        let node = self.find(address.ua);
        let host = node.host(address.ua);
        node.up();
        self.find(address.ua).down();
        host
    }

    #[inline(always)]
    fn range(&mut self, address: Address, bytes: u64) -> u64 {
        // The kernel maps a range page by page.
        let pages = (0..bytes / PAGE).map(|page| Address { ua: address.ua + page * PAGE, ..address });
        pages.fold(0u64, |sum, page| sum.wrapping_add(self.map_unmap(page))) >> 1
    }
}

/// An ordered map under a lock, the obvious implementation.
#[derive(Debug)]
pub struct LockedMap {
    regions: RwLock<BTreeMap<u64, (Pages, AtomicI64)>>,
}

impl LockedMap {
    /// Makes the structure; all threads share it.
    #[must_use]
    pub fn new(shape: Shape, base: u64, hosts: &[u64]) -> Arc<Self> {
        let mut regions = BTreeMap::new();
        each_region(shape, base, hosts, |first, pages| {
            regions.insert(first, (pages, AtomicI64::new(0)));
        });
        Arc::new(Self { regions: RwLock::new(regions) })
    }

    #[inline(always)]
    fn with<R>(&self, ua: u64, look: impl FnOnce(u64, &Pages, &AtomicI64) -> R) -> R {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        match regions.range(..=ua).next_back() {
            Some((first, (pages, count))) => look(*first, pages, count),
            None => not_found(),
        }
    }
}

impl Candidate for Arc<LockedMap> {
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        self.with(address.ua, |first, pages, _| pages[((address.ua - first) / PAGE) as usize])
    }

    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        let host = self.with(address.ua, |first, pages, count| {
            // Relaxed: the lock orders it.
            count.fetch_add(1, Ordering::Relaxed);
            pages[((address.ua - first) / PAGE) as usize]
        });
        self.with(address.ua, |_, _, count| count.fetch_sub(1, Ordering::Relaxed));
        host
    }

    #[inline(always)]
    fn range(&mut self, address: Address, bytes: u64) -> u64 {
        let sum = self.with(address.ua, |first, pages, count| {
            // Relaxed: as above.
            count.fetch_add(1, Ordering::Relaxed);
            let start = ((address.ua - first) / PAGE) as usize;
            pages[start..start + (bytes / PAGE) as usize]
                .iter()
                .fold(0u64, |sum, &page| sum.wrapping_add(page))
        });
        self.with(address.ua, |_, _, count| count.fetch_sub(1, Ordering::Relaxed));
        sum >> 1
    }
}
