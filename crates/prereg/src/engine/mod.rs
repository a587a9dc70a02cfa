//! What an address space is behind its handles: the ports, the refs, the registry.
//!
//! Its operations stand in `register`, `release`, `publication` and `watch`. Order of every change: reserve the span under
//! the lock, charge and pin without it, commit or give back under it. No port is ever called with the lock held. Nothing
//! half-made is visible: a region is published complete, and from then on only the release path takes it away.

mod publish;
mod query;
pub(crate) mod reader;
mod ref_array;
pub(crate) mod register;
mod registry;
pub(crate) mod release;
mod teardown;

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
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no memory for the table")]
pub struct OutOfMemory;

impl OutOfMemory {
    /// ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENOMEM
    }
}

/// What an address space is behind its handles. Lock order: `registry` is the only lock.
pub(crate) struct Engine {
    pins: Box<dyn Pin>,
    charges: Box<dyn Charge>,
    pub(crate) granule: Granule,
    barrier: Option<Arc<dyn Barrier>>,
    pub(crate) tables: SharedTableMemory,
    pub(crate) reader_view: TableBox<ReaderView>,
    /// One door a slot; slot 0's is never opened.
    pub(crate) refs: RefArray,
    /// Draining regions, as the registry say: while there are any, every change looks whether their last units are back.
    pub(crate) draining: AtomicU64,
    pub(crate) registry: LockCondvar<Registry>,
    pub(crate) this: Weak<Engine>,
}

/// The part of an engine that readers touch.
pub(crate) struct ReaderView {
    pub(crate) published: Published<Snapshot, TableBox<Snapshot>>,
    /// Regions by slot, for whoever holds a unit or sits on a snapshot that names them.
    pub(crate) slots: ChunkedArray<AtomicPtr<Region>>,
}

impl ReaderView {
    /// The region in `slot`, for a caller that holds a unit of it or sits on a snapshot that names it.
    #[inline]
    pub(crate) fn region_in(&self, slot: u32) -> Option<NonNull<Region>> {
        // Relaxed: stored before the slot was published, and whatever told the caller of the slot ordered that.
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
        // Readers look at the door of slot 0 when they miss, so that one is present from the beginning.
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

    /// The fences that mapping and closing pass.
    pub(crate) fn fence_mode(&self) -> FenceMode {
        if self.barrier.is_some() { FenceMode::Asymmetric } else { FenceMode::Full }
    }

    /// The fence that closing passes.
    pub(crate) fn heavy_fence(&self, registry: &Registry) {
        match &self.barrier {
            // Without translators only units in houses are given back, and those pass a full fence.
            Some(barrier) if !registry.readers.is_empty() => heavy_fence(|| barrier.all_threads()),
            _ => fence(Ordering::SeqCst),
        }
    }

    /// All refs, by slot.
    pub(crate) fn refs(&self) -> &[PercpuRef] {
        &self.refs
    }

    #[inline]
    pub(crate) fn percpu_ref(&self, slot: u32) -> &PercpuRef {
        &self.refs[slot as usize]
    }

    /// Says outside the lock how many regions are draining. Whoever changed that calls it, lock held.
    pub(crate) fn update_draining_hint(&self, registry: &Registry) {
        // Relaxed: a hint for `reap`, which looks under the lock.
        self.draining.store(registry.draining, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
