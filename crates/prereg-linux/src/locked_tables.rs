//! Memory for the core's tables that never faults: locked and present, with huge pages for large tables.
//!
//! Small tables share *areas* of 64 KiB to 2 MiB, each one mapping. A table of more than 512 KiB has a mapping of its
//! own. A mapping of 2 MiB and more is aligned to 2 MiB and asks for transparent huge pages before it is touched. Every
//! mapping is locked with `mlock(2)`, which the kernel charges to RLIMIT_MEMLOCK. If the kernel refuses, the memory is
//! prefaulted instead, and [`state`](prereg::TableMemory::state) says why it is not locked.
//!
//! Blocks in areas come in size classes: powers of two and the sizes half-way between. A released block goes to the
//! free list of its class. Areas are unmapped with the last address space that uses them.
//!
//! `fork` makes the pages of both processes copy-on-write, locked or not, and the first write to each then faults.
//! Start children with `posix_spawn` or `vfork` while maps must not fault.

#![expect(unsafe_code, reason = "implements `TableMemory`, and clears memory that is handed out again")]

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Errno, TableMemory, TableMemoryState};

use crate::mapping::{self, MapRequest, Mapping};
use crate::sys;

/// The size of the first area.
const MIN_AREA: usize = 64 << 10;
/// A huge page, and the largest area.
const HUGE: usize = 2 << 20;
/// The largest block of an area; larger tables have mappings of their own.
const MAX_POOLED: usize = 512 << 10;
/// The smallest block: a power of two.
const MIN_POOLED: usize = 16;
/// Size classes: two for each power of two from the smallest block to the largest.
const CLASSES: usize = 2 * (MAX_POOLED.trailing_zeros() - MIN_POOLED.trailing_zeros()) as usize + 1;

/// Locked memory for tables.
///
/// One value serves any number of address spaces: `AddressSpace::builder(host).tables(LockedTables::shared()).build()`.
pub struct LockedTables {
    pool: Mutex<Pool>,
}

#[derive(Default)]
struct Pool {
    areas: Vec<LockedMapping>,
    /// Unused addresses of the newest area.
    rest: Range<usize>,
    /// Released blocks by class. Their addresses are inside areas.
    free: Vec<Vec<NonNull<u8>>>,
    /// Mappings of one table each, by address.
    dedicated: BTreeMap<usize, LockedMapping>,
    /// Bytes of blocks in use.
    pooled_bytes: u64,
    unlocked_because: Option<&'static str>,
}

/// A mapping and its state. Numbers are bytes.
struct LockedMapping {
    mapping: Mapping,
    held: u64,
    locked: u64,
    huge: u64,
}

// SAFETY: the addresses in `free` point into memory that this value owns and that is bound to no thread.
unsafe impl Send for Pool {}

/// Blocks are aligned to a cache line, or to their size if that is smaller. A table with a larger alignment has a
/// mapping of its own.
const LINE: usize = 64;

/// Whether a table of `layout` fits a block of an area.
const fn is_pooled(layout: Layout) -> bool {
    layout.size() <= MAX_POOLED && layout.align() <= LINE
}

/// The smallest class whose blocks are large enough and sufficiently aligned.
fn class_of(layout: Layout) -> usize {
    let whole = layout.size().max(layout.align()).max(MIN_POOLED).next_power_of_two();
    let class = 2 * (whole.trailing_zeros() - MIN_POOLED.trailing_zeros()) as usize;
    // The class between two powers of two has three quarters of the larger one.
    let fits = class > 0 && layout.size() <= size_of_class(class - 1).0;
    if fits && layout.align() <= size_of_class(class - 1).1 { class - 1 } else { class }
}

/// The size of a class's blocks, and their alignment.
const fn size_of_class(class: usize) -> (usize, usize) {
    let whole = MIN_POOLED << class.div_ceil(2);
    let (size, align) = if class % 2 == 0 { (whole, whole) } else { (whole / 4 * 3, whole / 4) };
    (size, if align < LINE { align } else { LINE })
}

impl LockedTables {
    /// No memory is mapped yet.
    #[must_use]
    pub fn new() -> Self {
        Self { pool: Mutex::new(Pool { free: vec![Vec::new(); CLASSES], ..Pool::default() }) }
    }

    /// A value to hand to the builder of an address space.
    #[must_use]
    pub fn shared() -> Arc<dyn TableMemory> {
        Arc::new(Self::new())
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for LockedTables {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for LockedTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedTables").field("state", &self.pool().state()).finish_non_exhaustive()
    }
}

impl LockedMapping {
    /// Maps at least `bytes`, aligned to `align`; not present yet.
    fn new(bytes: usize, align: usize) -> Option<Self> {
        let page = page();
        let request = MapRequest {
            bytes: bytes.checked_next_multiple_of(page)?,
            align: align.max(if bytes >= HUGE { HUGE } else { page }),
            protection: libc::PROT_READ | libc::PROT_WRITE,
            flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            file: None,
        };
        Some(Self { mapping: Mapping::new(request).ok()?, held: 0, locked: 0, huge: 0 })
    }

    fn at(&self) -> usize {
        self.mapping.as_ptr().addr()
    }

    /// Makes `part`, whole pages, present: locked if the limit allows it, else prefaulted, with the reason. `None` when
    /// there is not enough memory.
    fn prefault(&mut self, part: Range<usize>) -> Option<Result<(), &'static str>> {
        let (ua, bytes) = (self.mapping.ua() + part.start as u64, part.len() as u64);
        if part.len() >= HUGE && sys::madvise_hugepage(ua, bytes).is_ok() {
            self.huge += bytes;
        }
        let locked = sys::mlock(ua, bytes);
        if locked.is_err() {
            match sys::populate_write(ua, bytes) {
                Ok(()) => {}
                // Kernels before 5.14 lack this advice.
                Err(Errno::EINVAL) => {
                    let at = self.mapping.as_ptr().wrapping_add(part.start);
                    // SAFETY: inside the mapping, which is writable.
                    unsafe { mapping::touch(at, part.len(), page()) };
                }
                Err(_) => return None,
            }
        }
        self.held += bytes;
        Some(match locked {
            Ok(()) => {
                self.locked += bytes;
                Ok(())
            }
            Err(Errno::ENOMEM | Errno::EPERM | Errno::EAGAIN) => {
                Err("mlock passes RLIMIT_MEMLOCK; raise it (ulimit -l, LimitMEMLOCK=) or grant CAP_IPC_LOCK")
            }
            Err(_) => Err("this kernel refuses mlock"),
        })
    }
}

fn page() -> usize {
    usize::try_from(sys::page_size()).unwrap_or(4096)
}

impl Pool {
    /// A new mapping, all of it present.
    fn mapping(&mut self, bytes: usize, align: usize) -> Option<LockedMapping> {
        let mut mapping = LockedMapping::new(bytes, align)?;
        let all = 0..mapping.mapping.bytes() as usize;
        let locked = mapping.prefault(all)?;
        self.record(locked);
        Some(mapping)
    }

    fn record(&mut self, locked: Result<(), &'static str>) {
        if let Err(why) = locked {
            self.unlocked_because = Some(why);
        }
    }

    fn pooled(&mut self, class: usize) -> Option<NonNull<u8>> {
        let (size, align) = size_of_class(class);
        if let Some(at) = self.free.get_mut(class)?.pop() {
            // SAFETY: a free block of this class.
            unsafe { at.write_bytes(0, size) };
            return Some(at);
        }
        let mut at = self.rest.start.next_multiple_of(align);
        if self.areas.is_empty() || at + size > self.rest.end {
            self.new_area(size)?;
            at = self.rest.start;
        }
        self.rest.start = at + size;
        // Derived from the area's own pointer, which may access the whole area.
        let area = self.areas.last()?;
        NonNull::new(area.mapping.as_ptr().wrapping_add(at - area.at()))
    }

    /// Maps a new area with room for a block of `size`; the rest of the old one stays unused.
    fn new_area(&mut self, size: usize) -> Option<()> {
        let blocks: usize = self.areas.iter().map(|area| area.held as usize).sum();
        let bytes = blocks.clamp(MIN_AREA, HUGE).max(size).next_power_of_two();
        let area = self.mapping(bytes, LINE)?;
        self.rest = area.at()..area.at() + bytes;
        self.areas.push(area);
        Some(())
    }

    fn state(&self) -> TableMemoryState {
        let mut state = TableMemoryState::default();
        state.used = self.pooled_bytes;
        for mapping in self.areas.iter().chain(self.dedicated.values()) {
            state.held += mapping.held;
            state.locked += mapping.locked;
            state.huge += mapping.huge;
        }
        state.used += self.dedicated.values().map(|mapping| mapping.held).sum::<u64>();
        state.unlocked_because = self.unlocked_because.filter(|_| state.locked < state.held);
        state
    }
}

// SAFETY: a free block is in one list, and removed from it when it is handed out; new blocks of an area do not overlap
// and are zero, reused ones are cleared; a dedicated mapping has one table.
unsafe impl TableMemory for LockedTables {
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mut pool = self.pool();
        if layout.size() == 0 {
            return None;
        }
        if is_pooled(layout) {
            let class = class_of(layout);
            let at = pool.pooled(class)?;
            pool.pooled_bytes += size_of_class(class).0 as u64;
            return Some(at);
        }
        let mapping = pool.mapping(layout.size(), layout.align())?;
        let at = NonNull::new(mapping.mapping.as_ptr())?;
        pool.dedicated.insert(mapping.at(), mapping);
        Some(at)
    }

    fn reserve(&self, layout: Layout) -> Option<NonNull<u8>> {
        let mapping = LockedMapping::new(layout.size(), layout.align())?;
        let at = NonNull::new(mapping.mapping.as_ptr())?;
        self.pool().dedicated.insert(mapping.at(), mapping);
        Some(at)
    }

    unsafe fn commit(&self, at: NonNull<u8>, _layout: Layout, part: Range<usize>) -> bool {
        // Earlier bytes of the first page became present with an earlier part.
        let part = part.start.next_multiple_of(page())..part.end.next_multiple_of(page());
        if part.is_empty() {
            return true;
        }
        let mut pool = self.pool();
        let Some(mapping) = pool.dedicated.get_mut(&at.addr().get()) else { return false };
        let Some(locked) = mapping.prefault(part) else { return false };
        pool.record(locked);
        true
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        let mut pool = self.pool();
        // `munmap` removes locks too.
        if pool.dedicated.remove(&at.addr().get()).is_none() {
            let class = class_of(layout);
            pool.pooled_bytes -= size_of_class(class).0 as u64;
            if let Some(free) = pool.free.get_mut(class) {
                free.push(at);
            }
        }
    }

    fn state(&self) -> TableMemoryState {
        self.pool().state()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_holds_what_asks_for_it() {
        for size in (1..5000).chain([MAX_POOLED - 1, MAX_POOLED]) {
            for align in [1usize, 4, 8, 16, 32, 64] {
                let Ok(layout) = Layout::from_size_align(size, align) else { continue };
                assert!(is_pooled(layout));
                let class = class_of(layout);
                let (holds, aligned) = size_of_class(class);
                assert!(
                    class < CLASSES && holds >= size && aligned >= align,
                    "{layout:?}: {holds} {aligned}"
                );
                assert!(holds < 2 * size.max(align).max(MIN_POOLED), "{layout:?}: {holds}");
            }
        }
        assert_eq!(size_of_class(0), (16, 16));
        assert_eq!(size_of_class(1), (24, 8));
        assert_eq!(size_of_class(CLASSES - 1).0, MAX_POOLED);
    }

    #[test]
    fn memory_comes_zeroed_aligned_and_apart_whatever_was_in_it_before() {
        let tables = LockedTables::new();
        let sizes = [16usize, 40, 4096, 100_000, 700_000, 3 << 20];
        for round in 0..3 {
            let mut blocks = Vec::new();
            for (number, &size) in sizes.iter().cycle().take(60).enumerate() {
                let layout = Layout::from_size_align(size, 32).unwrap_or(Layout::new::<u8>());
                let Some(at) = tables.allocate(layout) else { panic!("no memory for {layout:?}") };
                assert_eq!(at.addr().get() % 32, 0);
                for offset in [0, size / 2, size - 1] {
                    // SAFETY: inside a block that was handed out once.
                    let byte = unsafe { at.add(offset) };
                    // SAFETY: as above.
                    assert_eq!(unsafe { byte.read() }, 0, "round {round}, {layout:?}");
                    // SAFETY: as above.
                    unsafe { byte.write(number as u8 | 1) };
                }
                blocks.push((at, layout));
            }
            let mut spans: Vec<_> =
                blocks.iter().map(|(at, layout)| (at.addr().get(), layout.size())).collect();
            spans.sort_unstable();
            assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "two share memory");
            let state = tables.state();
            assert!(state.used <= state.held && state.locked <= state.held);
            assert_eq!(state.is_locked(), state.unlocked_because.is_none(), "{state:?}");
            for (at, layout) in blocks {
                // SAFETY: allocated above, released once.
                unsafe { tables.release(at, layout) };
            }
            assert_eq!(tables.state().used, 0);
        }
    }

    #[test]
    fn a_reservation_takes_what_is_made_present_and_no_more() {
        let tables = LockedTables::new();
        let layout = Layout::array::<u8>(256 << 10).unwrap_or(Layout::new::<u8>());
        let Some(at) = tables.reserve(layout) else { panic!("no addresses") };
        assert_eq!(tables.state().held, 0);
        // SAFETY: of the reservation.
        assert!(unsafe { tables.commit(at, layout, 0..1) });
        let one = tables.state().held;
        assert_eq!(one, sys::page_size());
        // SAFETY: present.
        unsafe { at.write(7) };
        // SAFETY: of the reservation.
        assert!(unsafe { tables.commit(at, layout, 1..64 << 10) });
        assert_eq!(tables.state().held, 64 << 10);
        // SAFETY: present.
        assert_eq!(unsafe { at.read() }, 7, "what was there stays");
        assert_eq!(sys::is_resident(at.addr().get() as u64 + (60 << 10), sys::page_size()), Ok(true));
        // SAFETY: of the reservation, released once.
        unsafe { tables.release(at, layout) };
        assert_eq!(tables.state().held, 0);
    }
}
