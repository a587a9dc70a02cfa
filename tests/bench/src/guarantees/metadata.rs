//! Memory that describes a page, as counted by the allocator and by the memory for tables.

use std::sync::Arc;

use crate::hot_path::host::InventedHost;
use crate::hot_path::layout::{Layout, PAGE};
use prereg::{AddressSpace, Granule, HeapTables, Registration, TableMemory};
use prereg_linux::LockedTables;
use prereg_sim::SimHost;

use crate::guarantees::no_fault::CountingAllocator;

/// User address of the memory, aligned to more than is registered.
const BASE: u64 = 0x7f00_0000_0000;

/// The memory for tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// The global allocator, which counts allocations.
    Heap,
    /// Locked memory, which counts itself.
    Locked,
}

/// Bytes per page of a region of `bytes` bytes with a translator; and the bytes of the address space and the translator alone.
///
/// # Panics
/// If registering fails.
#[must_use]
pub fn bytes_per_page(
    allocator: &CountingAllocator,
    layout: Layout,
    bytes: u64,
    tables: Tables,
) -> (f64, u64) {
    let memory: Arc<dyn TableMemory> = match tables {
        Tables::Heap => Arc::new(HeapTables::new()),
        Tables::Locked => Arc::new(LockedTables::new()),
    };
    let taken = || {
        let own = if tables == Tables::Locked { memory.state().used } else { 0 };
        allocator.live() + own
    };
    let nothing = taken();
    let space = AddressSpace::builder(InventedHost::new(layout, None)).tables(memory.clone()).build();
    let Ok(space) = space else { panic!("no memory for an address space") };
    let pages = SimHost::new(Granule::K4);
    let register = |at: u64, bytes: u64| -> Registration {
        space.register(&pages.memory(at, bytes)).unwrap_or_else(|error| panic!("{error}"))
    };
    let translator = space.translator();
    // The first region of an address space allocates more than the following ones.
    let first = register(BASE - (1 << 40), PAGE);
    let before = taken();
    let registration = register(BASE, bytes);
    let after = taken();
    drop((registration, first, translator));
    ((after - before) as f64 / (bytes / PAGE) as f64, before - nothing)
}
