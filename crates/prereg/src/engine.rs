//! What an address space is behind its handles: the ports, the doors, the books.
//!
//! Its operations stand in `register`, `release`, `publication` and `watch`. Order of every change: reserve the span under
//! the lock, charge and pin without it, commit or give back under it. No port is ever called with the lock held. Nothing
//! half-made is visible: a region is published complete, and from then on only the release path takes it away.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use core::fmt;
use core::ptr::NonNull;

use crate::addr::Granule;
use crate::books::Books;
use crate::door::{Door, Light};
use crate::errno::Errno;
use crate::lookup::Snapshot;
use crate::port::{Barrier, Charge, Pin};
use crate::publish::Published;
use crate::region::Region;
use crate::slots::{CHUNK, Chunks, MAX_SLOTS};
use crate::sync::Monitor;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

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
    pub(crate) pins: Box<dyn Pin>,
    pub(crate) charges: Box<dyn Charge>,
    pub(crate) granule: Granule,
    barrier: Option<Arc<dyn Barrier>>,
    pub(crate) published: Published<Snapshot>,
    /// One door a slot; slot 0's is never opened.
    doors: Box<[Door]>,
    /// Regions by slot, for whoever holds a unit or sits on a snapshot that names them.
    pub(crate) slots: Chunks<[AtomicPtr<Region>; CHUNK]>,
    /// Draining regions, as the books say: while there are any, every change looks whether their last units are back.
    pub(crate) draining: AtomicU64,
    pub(crate) books: Monitor<Books>,
    pub(crate) this: Weak<Engine>,
}

impl Engine {
    pub(crate) fn new(
        pins: Box<dyn Pin>,
        charges: Box<dyn Charge>,
        barrier: Option<Arc<dyn Barrier>>,
    ) -> Arc<Self> {
        let granule = pins.granule();
        let doors = doors::closed(MAX_SLOTS);
        // Readers look at this one when they miss. Written here, so that they do not fault its page in.
        doors[0].close();
        Arc::new_cyclic(|this| Self {
            pins,
            charges,
            granule,
            // The interpreter knows no fence on other threads.
            barrier: barrier.filter(|_| !cfg!(any(miri, loom))),
            published: Published::new(Box::new(Snapshot::empty())),
            doors,
            slots: Chunks::new(),
            draining: AtomicU64::new(0),
            books: Monitor::new(Books::default()),
            this: this.clone(),
        })
    }

    pub(crate) fn granule(&self) -> Granule {
        self.granule
    }

    pub(crate) fn pins(&self) -> &dyn Pin {
        &*self.pins
    }

    /// The fence that mapping passes.
    pub(crate) fn light(&self) -> Light {
        if self.barrier.is_some() { Light::Compiler } else { Light::Full }
    }

    /// The fence that closing passes.
    pub(crate) fn heavy(&self, books: &Books) {
        match &self.barrier {
            // Without translators only units in houses are given back, and those pass a full fence.
            Some(barrier) if !books.stations.is_empty() => barrier.all_threads(),
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

    /// The region in `slot`, for a caller that holds a unit of it or sits on a snapshot that names it.
    #[inline]
    pub(crate) fn region_in(&self, slot: u32) -> Option<NonNull<Region>> {
        let (chunk, index) = self.slots.get(slot)?;
        // Relaxed: stored before the slot was published, and whatever told the caller of the slot ordered that.
        NonNull::new(chunk[index].load(Ordering::Relaxed))
    }

    /// Says outside the lock how many regions are draining. Whoever changed that calls it, lock held.
    pub(crate) fn show_draining(&self, books: &Books) {
        // Relaxed: a hint for `reap`, which looks under the lock.
        self.draining.store(books.draining, Ordering::Relaxed);
    }
}

mod doors {
    use super::{Box, Door};

    /// `count` closed doors.
    #[cfg(not(loom))]
    #[expect(unsafe_code, reason = "so many doors are had from zeroed memory, not one by one")]
    pub(super) fn closed(count: usize) -> Box<[Door]> {
        // Zeroed by the allocator: of the pages that are never touched none is ever had.
        let zeros: Box<[u8]> = alloc::vec![0u8; count].into_boxed_slice();
        // SAFETY: a door is one byte, transparently, and zero is a closed one.
        unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [Door]) }
    }

    #[cfg(loom)]
    pub(super) fn closed(count: usize) -> Box<[Door]> {
        (0..count).map(|_| Door::new()).collect()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("granule", &self.granule).finish_non_exhaustive()
    }
}
