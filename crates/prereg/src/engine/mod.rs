//! What an address space is behind its handles: the ports, the doors, the books.
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
use crate::engine::ref_array::Doors;
use crate::engine::registry::Books;
use crate::errno::Errno;
use crate::lookup::region::Region;
use crate::lookup::snapshot::Snapshot;
use crate::port::{Barrier, Charge, Pin};
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
use crate::sync::hazard::Published;
use crate::sync::percpu_ref::{Door, FenceMode};
use crate::sync::{Monitor, heavy_fence};
use crate::table_memory::Tables;
use crate::table_memory::chunked::{Chunks, MAX_SLOTS};
use crate::table_memory::owned::Placed;

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

/// What an address space is behind its handles. Lock order: `books` is the only lock.
pub(crate) struct Engine {
    pins: Box<dyn Pin>,
    charges: Box<dyn Charge>,
    pub(crate) granule: Granule,
    barrier: Option<Arc<dyn Barrier>>,
    pub(crate) tables: Tables,
    pub(crate) shown: Placed<Shown>,
    /// One door a slot; slot 0's is never opened.
    pub(crate) doors: Doors,
    /// Draining regions, as the books say: while there are any, every change looks whether their last units are back.
    pub(crate) draining: AtomicU64,
    pub(crate) books: Monitor<Books>,
    pub(crate) this: Weak<Engine>,
}

/// The part of an engine that readers touch.
pub(crate) struct Shown {
    pub(crate) published: Published<Snapshot, Placed<Snapshot>>,
    /// Regions by slot, for whoever holds a unit or sits on a snapshot that names them.
    pub(crate) slots: Chunks<AtomicPtr<Region>>,
}

impl Shown {
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
        tables: Tables,
    ) -> Result<Arc<Self>, OutOfMemory> {
        let granule = pins.granule();
        // Readers look at the door of slot 0 when they miss, so that one is present from the beginning.
        let doors = Doors::new(&tables, MAX_SLOTS, 1).ok_or(OutOfMemory)?;
        let published = Published::new(Snapshot::empty(&tables).ok_or(OutOfMemory)?);
        let slots = Chunks::new(&tables).ok_or(OutOfMemory)?;
        let shown = Placed::new(&tables, Shown { published, slots }).ok_or(OutOfMemory)?;
        Ok(Arc::new_cyclic(|this| Self {
            pins,
            charges,
            granule,
            barrier,
            tables,
            shown,
            doors,
            draining: AtomicU64::new(0),
            books: Monitor::new(Books::default()),
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
    pub(crate) fn heavy(&self, books: &Books) {
        match &self.barrier {
            // Without translators only units in houses are given back, and those pass a full fence.
            Some(barrier) if !books.stations.is_empty() => heavy_fence(|| barrier.all_threads()),
            _ => fence(Ordering::SeqCst),
        }
    }

    /// All doors, by slot.
    pub(crate) fn doors(&self) -> &[Door] {
        &self.doors
    }

    #[inline]
    pub(crate) fn door(&self, slot: u32) -> &Door {
        &self.doors[slot as usize]
    }

    /// Says outside the lock how many regions are draining. Whoever changed that calls it, lock held.
    pub(crate) fn show_draining(&self, books: &Books) {
        // Relaxed: a hint for `reap`, which looks under the lock.
        self.draining.store(books.draining, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
