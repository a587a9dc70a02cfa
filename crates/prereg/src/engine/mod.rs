//! The engine: the state of an address space behind its handles, and the operations on it.
//!
//! Every change has one order: reserve the span under the lock; charge and pin without it; commit or undo under it. No
//! port is called with the lock held. A region is published complete, and from then on only the release path removes it.
//! `register`, `release`, `publish` and `query` hold the operations, `registry` the state under the lock.

mod publish;
mod query;
pub(crate) mod reader;
mod ref_array;
pub(crate) mod register;
mod registry;
pub(crate) mod release;
mod teardown;
mod watch;

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::ptr::NonNull;

use crate::addr::Granule;
use crate::engine::ref_array::RefArray;
use crate::engine::registry::Registry;
use crate::errno::Errno;
use crate::lookup::region::Region;
use crate::lookup::snapshot::Snapshot;
use crate::port::{Barrier, Charge, Pin};
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
use crate::sync::hazard::Published;
use crate::sync::percpu_ref::{FenceMode, PercpuRef};
use crate::sync::{LockCondvar, heavy_fence};
use crate::table_memory::SharedTableMemory;
use crate::table_memory::chunked::{ChunkedArray, MAX_SLOTS};
use crate::table_memory::owned::TableBox;

/// No memory for a table. ENOMEM.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no memory for the table")]
pub struct OutOfMemory;

crate::debug_as_display!(OutOfMemory);

impl OutOfMemory {
    /// ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENOMEM
    }
}

/// The state of an address space. Lock order: `registry` is the only lock.
pub(crate) struct Engine {
    pins: Box<dyn Pin>,
    charges: Box<dyn Charge>,
    pub(crate) granule: Granule,
    barrier: Option<Arc<dyn Barrier>>,
    pub(crate) tables: SharedTableMemory,
    pub(crate) reader_view: TableBox<ReaderView>,
    /// One percpu ref for each slot; slot 0's is never opened.
    pub(crate) refs: RefArray,
    /// The number of draining regions, a copy of the registry's: while it is not zero, every operation looks whether
    /// their last units were released.
    pub(crate) draining: AtomicU64,
    pub(crate) registry: LockCondvar<Registry>,
    pub(crate) this: Weak<Engine>,
}

/// The part of the engine that readers touch.
pub(crate) struct ReaderView {
    pub(crate) published: Published<Snapshot, TableBox<Snapshot>>,
    /// Regions by slot, for a thread that holds a unit of the region or uses a snapshot that names it.
    pub(crate) slots: ChunkedArray<AtomicPtr<Region>>,
}

impl ReaderView {
    /// The region in `slot`, for a caller that holds a unit of it or uses a snapshot that names it.
    #[inline]
    pub(crate) fn region_in(&self, slot: u32) -> Option<NonNull<Region>> {
        // Relaxed: stored before the slot was published; the caller acquired the slot's number after that.
        NonNull::new(self.slots.get(slot)?.load(Ordering::Relaxed))
    }
}

impl Engine {
    pub(crate) fn new(
        pins: Box<dyn Pin>,
        charges: Box<dyn Charge>,
        barrier: Option<Arc<dyn Barrier>>,
        tables: SharedTableMemory,
    ) -> Result<Arc<Self>, OutOfMemory> {
        let granule = pins.granule();
        // A reader that finds no entry loads the ref of slot 0, so that one is present from the beginning.
        let refs = RefArray::new(&tables, MAX_SLOTS, 1).ok_or(OutOfMemory)?;
        let published = Published::new(Snapshot::empty(&tables).ok_or(OutOfMemory)?);
        let slots = ChunkedArray::new(&tables).ok_or(OutOfMemory)?;
        let reader_view = TableBox::new(&tables, ReaderView { published, slots }).ok_or(OutOfMemory)?;
        Ok(Arc::new_cyclic(|this| Self {
            pins,
            charges,
            granule,
            barrier,
            tables,
            reader_view,
            refs,
            draining: AtomicU64::new(0),
            registry: LockCondvar::new(Registry::default()),
            this: this.clone(),
        }))
    }

    pub(crate) fn granule(&self) -> Granule {
        self.granule
    }

    pub(crate) fn pins(&self) -> &dyn Pin {
        &*self.pins
    }

    pub(crate) fn charges(&self) -> &dyn Charge {
        &*self.charges
    }

    /// The pair of fences between mapping and closing.
    pub(crate) fn fence_mode(&self) -> FenceMode {
        if self.barrier.is_some() { FenceMode::Asymmetric } else { FenceMode::Full }
    }

    /// The fence of the closing side.
    pub(crate) fn heavy_fence(&self, registry: &Registry) {
        match &self.barrier {
            // Without translators, units are released by holder counters only, and those releases pass a full fence.
            Some(barrier) if !registry.readers.is_empty() => heavy_fence(|| barrier.all_threads()),
            _ => fence(Ordering::SeqCst),
        }
    }

    /// All percpu refs, by slot.
    pub(crate) fn refs(&self) -> &[PercpuRef] {
        &self.refs
    }

    #[inline]
    pub(crate) fn percpu_ref(&self, slot: u32) -> &PercpuRef {
        &self.refs[slot as usize]
    }

    /// Copies the number of draining regions to where it is read without the lock. Called with the lock held, after
    /// each change.
    pub(crate) fn update_draining_hint(&self, registry: &Registry) {
        // Relaxed: a hint for `reap`, which checks under the lock.
        self.draining.store(registry.draining, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
