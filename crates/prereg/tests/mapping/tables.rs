//! Memory for tables: every allocation can fail, and all memory is released.
#![expect(unsafe_code, reason = "a port to memory that fails at a chosen call")]

use std::alloc::Layout;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prereg::{
    Access, AddressSpace, EntryBlock, Errno, Granule, HeapTables, Holder, HolderKind, PageShift, SpaceState,
    TableMemory, TableMemoryState, UserAddr,
};
use prereg_sim::SimHost;

const A: u64 = 0x7f00_0000_0000;

/// The heap's memory, except that the n-th call from now fails.
#[derive(Default)]
struct Scarce {
    heap: HeapTables,
    /// Calls until one fails; 0 for none.
    left: AtomicU64,
    failed: AtomicU64,
    /// Asserts that no memory is left.
    exhausted: AtomicBool,
}

impl Scarce {
    fn fail_nth(&self, n: u64) {
        self.left.store(n, Ordering::SeqCst);
        self.failed.store(0, Ordering::SeqCst);
    }

    fn may(&self) -> bool {
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        if left == 1 {
            self.failed.store(1, Ordering::SeqCst);
        }
        left != 1 && !self.exhausted.load(Ordering::SeqCst)
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst) != 0
    }
}

// SAFETY: guaranteed by the heap.
unsafe impl TableMemory for Scarce {
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        self.may().then(|| self.heap.allocate(layout))?
    }

    fn reserve(&self, layout: Layout) -> Option<NonNull<u8>> {
        self.may().then(|| self.heap.reserve(layout))?
    }

    unsafe fn commit(&self, at: NonNull<u8>, layout: Layout, part: Range<usize>) -> bool {
        // SAFETY: guaranteed by the caller.
        self.may() && unsafe { self.heap.commit(at, layout, part) }
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: guaranteed by the caller.
        unsafe { self.heap.release(at, layout) };
    }

    fn state(&self) -> TableMemoryState {
        self.heap.state()
    }
}

fn set_up() -> (SimHost, Arc<Scarce>, AddressSpace) {
    let (host, tables) = (SimHost::new(Granule::K4), Arc::new(Scarce::default()));
    let space = super::builder(host.clone()).tables(tables.clone()).build().unwrap();
    (host, tables, space)
}

/// The state except for the size of tables: an array that grew does not shrink.
fn seen(space: &AddressSpace) -> SpaceState {
    let mut state = space.snapshot();
    state.tables = TableMemoryState::default();
    state
}

/// Runs `operation` with the n-th call for memory refused, for n = 1, 2, ... until it succeeds. Returns the number of
/// calls that can fail.
fn sweep<T, E: std::fmt::Display>(
    tables: &Scarce,
    space: &AddressSpace,
    mut operation: impl FnMut() -> Result<T, E>,
    errno: impl Fn(&E) -> Errno,
) -> (u64, T) {
    for n in 1.. {
        let before = seen(space);
        tables.fail_nth(n);
        let result = operation();
        let failed = tables.has_failed();
        tables.fail_nth(0);
        match result {
            Ok(value) => {
                assert!(!failed, "call {n} was refused and the operation returned no error");
                return (n - 1, value);
            }
            Err(error) => {
                assert!(failed, "failed without a cause: {error}");
                assert_eq!(errno(&error), Errno::ENOMEM, "{error}");
                assert_eq!(seen(space), before, "after call {n} was refused");
            }
        }
    }
    unreachable!("some n is past the last call")
}

#[test]
fn whatever_memory_is_refused_nothing_half_done_is_left() {
    let (host, tables, space) = set_up();
    let holder = Holder { container: 3, kind: HolderKind::TableEntry };
    let (calls, mut t) = sweep(&tables, &space, || space.try_translator(holder), prereg::OutOfMemory::errno);
    assert!(calls >= 3, "counts, a reader and its holder's counts: {calls}");
    let memory = host.memory(A, 64 << 12);
    let (calls, registration) =
        sweep(&tables, &space, || space.register(&memory), prereg::RegisterError::errno);
    assert!(calls >= 4, "page numbers, marks, a header and index entries: {calls}");
    assert_eq!((host.pinned_pages(), host.charged_pages()), (64, 64));
    let (calls, block) = sweep(
        &tables,
        &space,
        || EntryBlock::new(&space, PageShift::K4, 16, holder),
        prereg::EntryBlockError::errno,
    );
    assert_eq!(calls, 1, "the entries; the holder's counts are the translator's");
    // Mapping allocates no memory.
    tables.fail_nth(1);
    block.set(&mut t, 0, UserAddr::new(A), Access::ReadWrite).unwrap();
    let mapping = t.map(UserAddr::new(A + 4096), PageShift::K4).unwrap();
    t.unmap(mapping);
    block.clear(&mut t, 0).unwrap();
    assert!(!tables.has_failed());
    tables.fail_nth(0);
    registration.unregister().unwrap();
    drop((block, t, space));
    assert_eq!(tables.state().used, 0, "every piece came back");
}

#[test]
fn giving_up_works_without_memory() {
    let (host, tables, space) = set_up();
    let mut t = space.translator();
    let registrations: Vec<_> = (0..if cfg!(miri) { 40 } else { 200 })
        .map(|n| space.register(&host.memory(A + (n << 14), 1 << 12)).unwrap())
        .collect();
    for (n, registration) in registrations.into_iter().enumerate() {
        tables.fail_nth(1);
        registration.unregister().unwrap();
        tables.fail_nth(0);
        assert!(t.map(UserAddr::new(A + ((n as u64) << 14)), PageShift::K4).is_err(), "{n} is released");
    }
    host.assert_clean();
    // The index that could not be rebuilt then is rebuilt now.
    let again = space.register(&host.range(A, 1 << 12)).unwrap();
    drop(t.map(UserAddr::new(A), PageShift::K4).unwrap());
    again.unregister().unwrap();
}

#[test]
fn an_address_space_without_memory_is_not_made() {
    let tables = Arc::new(Scarce::default());
    for n in 1.. {
        tables.fail_nth(n);
        match super::builder(SimHost::new(Granule::K4)).tables(tables.clone()).build() {
            Ok(_) => {
                assert!(n > 3, "refs, the list of slots and the first snapshot: {n}");
                break;
            }
            Err(error) => assert_eq!(error.errno(), Errno::ENOMEM),
        }
        assert_eq!(tables.state().used, 0, "after call {n} was refused");
    }
}

#[test]
fn what_tables_take_is_seen_and_comes_back() {
    let (host, _, space) = set_up();
    let empty = space.snapshot().tables;
    assert!(empty.used > 0 && !empty.is_locked() && empty.unlocked_because.is_some());
    let t = space.translator();
    let registration = space.register(&host.memory(A, 1 << 22)).unwrap();
    let taken = space.snapshot().tables.used - empty.used;
    assert!(taken >= registration.state().unwrap().metadata_bytes, "{taken}");
    registration.unregister().unwrap();
    drop(t);
    space.reap();
    let left = space.snapshot().tables.used - empty.used;
    assert!(left < taken - (1 << 22) / 4096 * 4, "the page numbers of 4 MiB came back: {left} of {taken}");
}

#[test]
fn a_region_that_went_while_memory_was_out_is_not_found_in_another_ones_slot() {
    let (host, tables, space) = set_up();
    let (far, farther) = (0x5500_0000_0000, 0x5600_0000_0000);
    let _standing = [0, 64].map(|page| space.register(&host.memory(A + (page << 12), 32 << 12)).unwrap());
    let mut t = space.translator();
    let [one, two] = [far, farther].map(|ua| space.register(&host.memory(ua, 1 << 12)).unwrap());
    drop(t.map(UserAddr::new(far), PageShift::K4).unwrap());
    tables.exhausted.store(true, Ordering::SeqCst);
    one.unregister().unwrap();
    tables.exhausted.store(false, Ordering::SeqCst);
    two.unregister().unwrap();
    t.refresh();
    drop(space.translator());
    // Between existing regions, so the index covers these; one of them has the slot of the region at `far`.
    let _next = [32, 48].map(|page| space.register(&host.memory(A + (page << 12), 16 << 12)).unwrap());
    for ua in [far, farther] {
        let error = t.map(UserAddr::new(ua), PageShift::K4).unwrap_err();
        assert_eq!(error.errno(), Errno::EFAULT, "{error}");
    }
}
