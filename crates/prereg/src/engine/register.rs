//! Registering: reserve the span, charge, pin and commit, or undo all of it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::{mem, ptr};

use crate::addr::{HostAddr, RangeError, UserAddr, UserRange};
use crate::engine::registry::{OnDone, RegionEntry, Registry, Span};
use crate::engine::release::Claim;
use crate::engine::teardown::{ChargeGuard, PinGuard, SpanGuard};
use crate::engine::{Engine, OutOfMemory};
use crate::errno::Errno;
use crate::lookup::holder::{Holder, HolderKind};
use crate::lookup::pages::{PageList, PageListError, PageTable};
use crate::lookup::region::Region;
use crate::port::{ChargeError, PinError, PinId};
use crate::sync::LockCondvarGuard;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::table_memory::owned::TableBox;

/// The reason why memory could not be registered. Nothing is pinned, charged or listed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// Not a range of whole pages. EINVAL.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Intersects a region of another shape. EINVAL.
    #[error(
        "{range} overlaps the registered {with}; register exactly that range to share it, or unregister it first"
    )]
    Overlap {
        /// The range asked for.
        range: UserRange,
        /// The region in the way.
        with: UserRange,
    },
    /// Exactly this range is registered, and a new region was asked for. EINVAL.
    #[error("{range} is registered already")]
    Exists {
        /// The range asked for.
        range: UserRange,
    },
    /// Over the locked-memory limit. ENOMEM.
    #[error("{range}: {error}")]
    Charge {
        /// The range asked for.
        range: UserRange,
        /// The account's error.
        error: ChargeError,
    },
    /// The pages could not be pinned. The back end's errno.
    #[error("{range}: {error}")]
    Pin {
        /// The range asked for.
        range: UserRange,
        /// The back end's error.
        error: PinError,
    },
    /// No memory for the tables that describe the region. ENOMEM.
    #[error("no memory for the tables that describe {range}")]
    OutOfMemory {
        /// The range asked for.
        range: UserRange,
    },
    /// Too many regions. ENOSPC.
    #[error(
        "the address space has 262143 regions, including released ones that an idle translator still uses; register larger ranges"
    )]
    TooManyRegions,
    /// A port asked for the range that it is pinning or unpinning, and would wait for itself. EDEADLK.
    #[error(
        "{range} is being pinned or unpinned by the same thread, which cannot wait for itself; a back end must not register \
         or share the range it was called for"
    )]
    Reentrant {
        /// The range asked for.
        range: UserRange,
    },
}

crate::debug_as_display!(RegisterError);

impl RegisterError {
    /// EINVAL, ENOMEM, ENOSPC, EDEADLK or the back end's, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range(error) => error.errno(),
            Self::Overlap { .. } | Self::Exists { .. } => Errno::EINVAL,
            Self::Charge { error, .. } => error.errno(),
            Self::Pin { error, .. } => error.errno(),
            Self::OutOfMemory { .. } => Errno::ENOMEM,
            Self::TooManyRegions => Errno::ENOSPC,
            Self::Reentrant { .. } => Errno::EDEADLK,
        }
    }
}

/// The treatment of an existing region of exactly this range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RegisterMode {
    ShareOrNew,
    New,
}

/// A claim that is released when this is dropped.
struct Unclaim<'a> {
    engine: &'a Engine,
    claim: Claim,
}

impl Drop for Unclaim<'_> {
    fn drop(&mut self) {
        self.engine.release_when_idle(self.claim);
    }
}

/// The memory behind a new region.
pub(crate) enum Backing {
    Pinned(Option<Arc<dyn Any + Send + Sync>>),
    Device(HostAddr),
}

impl Engine {
    pub(crate) fn register(
        &self,
        ua: UserAddr,
        bytes: u64,
        mode: RegisterMode,
        holder: Holder,
        backing: impl FnOnce() -> Backing,
    ) -> Result<Claim, RegisterError> {
        self.reap();
        let range = UserRange::new(ua, bytes, self.granule)?;
        if let Some(claim) = self.share_or_reserve(range, mode, holder)? {
            return Ok(claim);
        }
        let reservation = SpanGuard::reserved(self, range);
        let claim = self.build(range, backing(), holder)?;
        reservation.commit();
        self.registry.notify_all();
        Ok(claim)
    }

    /// A claim on the region of exactly this range; waits while another thread registers it.
    pub(crate) fn share(&self, ua: UserAddr, bytes: u64, holder: Holder) -> Option<Claim> {
        self.reap();
        let range = UserRange::new(ua, bytes, self.granule).ok()?;
        let mut registry = self.registry.lock();
        loop {
            match registry.intersecting(range) {
                Some(Span::Live(entry)) if entry.region.range == range => {
                    let (claim, revived) = self.claim(entry, holder);
                    return Some(self.undrain(registry, claim, revived));
                }
                Some(Span::Reserved(other, thread)) if *other == range && !thread.is_this() => {}
                _ => return None,
            }
            registry = self.registry.wait(registry);
        }
    }

    /// A claim on the region of exactly this range, or `None` after reserving the span.
    fn share_or_reserve(
        &self,
        range: UserRange,
        mode: RegisterMode,
        holder: Holder,
    ) -> Result<Option<Claim>, RegisterError> {
        let mut registry = self.registry.lock();
        loop {
            match registry.intersecting(range) {
                None => {
                    registry.spans.insert(range.first().raw(), Span::reserved(range));
                    return Ok(None);
                }
                Some(Span::Live(entry)) if entry.region.range == range && mode != RegisterMode::New => {
                    let (claim, revived) = self.claim(entry, holder);
                    return Ok(Some(self.undrain(registry, claim, revived)));
                }
                Some(Span::Reserved(other, thread)) if *other == range && mode != RegisterMode::New => {
                    if thread.is_this() {
                        return Err(RegisterError::Reentrant { range });
                    }
                }
                Some(Span::Unpinning(_, thread)) => {
                    if thread.is_this() {
                        return Err(RegisterError::Reentrant { range });
                    }
                }
                Some(span) if span.range() == range => return Err(RegisterError::Exists { range }),
                Some(span) => return Err(RegisterError::Overlap { range, with: span.range() }),
            }
            registry = self.registry.wait(registry);
        }
    }

    /// One more claim on a region. If it was draining, it is still mapped: it is opened again, and what waited for its end is
    /// returned.
    fn claim(&self, entry: &mut RegionEntry, holder: Holder) -> (Claim, Option<Vec<OnDone>>) {
        let revived = (entry.used == 0).then(|| mem::take(&mut entry.on_done));
        entry.claim(holder);
        if revived.is_some() {
            self.percpu_ref(entry.region.slot).reopen();
        }
        (Claim { range: entry.region.range, id: entry.region.id, holder }, revived)
    }

    /// Updates the number of draining regions after a claim that opened one again, and notifies what waited, without the lock.
    fn undrain(
        &self,
        mut registry: LockCondvarGuard<'_, Registry>,
        claim: Claim,
        revived: Option<Vec<OnDone>>,
    ) -> Claim {
        if revived.is_some() {
            registry.draining -= 1;
            self.update_draining_hint(&registry);
        }
        drop(registry);
        // A callback that panics takes the claim with it.
        let unclaim = Unclaim { engine: self, claim };
        drop(revived);
        mem::forget(unclaim);
        claim
    }

    /// Charges, pins and commits a reserved span.
    fn build(&self, range: UserRange, backing: Backing, holder: Holder) -> Result<Claim, RegisterError> {
        match backing {
            Backing::Device(host) => {
                let table = PageTable::device(range, host, self.granule);
                self.commit(range, table, true, None, 0, None, holder)
            }
            Backing::Pinned(keep) => {
                let pages = range.pages(self.granule);
                self.charges().charge(pages).map_err(|error| RegisterError::Charge { range, error })?;
                let charge = ChargeGuard::new(self.charges(), pages);
                let (pin, table) = self.pin(range)?;
                let claim = self.commit(range, table, false, Some(pin.id()), pages, keep, holder)?;
                pin.commit();
                charge.commit();
                Ok(claim)
            }
        }
    }

    /// Pins `range`. The back end pushes into a list made for this range, and must fill it.
    fn pin(&self, range: UserRange) -> Result<(PinGuard<'_>, PageTable), RegisterError> {
        let mut pages = PageList::new(range, self.granule);
        let pinned = self.pins().pin(range, &mut pages.sink());
        let pin = pinned.map_err(|error| RegisterError::Pin { range, error })?;
        let pin = PinGuard::new(self.pins(), pin, range);
        match pages.finish(&self.tables) {
            Ok(Some(table)) => Ok((pin, table)),
            Ok(None) => {
                let why =
                    "the back end named fewer pages than the range has; this is a defect of the back end";
                Err(RegisterError::Pin { range, error: PinError::Fault { ua: range.first(), why } })
            }
            Err(error) => match error {
                PageListError::OutOfMemory => Err(RegisterError::OutOfMemory { range }),
                error => Err(RegisterError::Pin { range, error: error.into() }),
            },
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one entry, from two callers")]
    fn commit(
        &self,
        range: UserRange,
        table: PageTable,
        device: bool,
        pin: Option<PinId>,
        charged: u64,
        keep: Option<Arc<dyn Any + Send + Sync>>,
        holder: Holder,
    ) -> Result<Claim, RegisterError> {
        let mut registry = self.registry.lock();
        let slot = match registry.allocate_slot() {
            Some(slot) => slot,
            None => {
                // The slots of regions retired under the current snapshot become free with the next one.
                let _ = self.rebuild_snapshot(&mut registry);
                registry.allocate_slot().ok_or(RegisterError::TooManyRegions)?
            }
        };
        let id = registry.next_id();
        let on_demand = holder.kind == HolderKind::OnDemand;
        let placed = self
            .refs
            .make_present(registry.slots())
            .then(|| TableBox::new(&self.tables, Region { id, slot, range, table, device, on_demand }))
            .flatten()
            .filter(|region| self.set_slot(&registry, slot, region.as_ptr().as_ptr()));
        let Some(region) = placed.map(Arc::new) else {
            registry.free_slot(slot);
            return Err(RegisterError::OutOfMemory { range });
        };
        let mut entry = RegionEntry {
            region: region.clone(),
            pin,
            charged,
            used: 0,
            claims: Vec::new(),
            keep,
            keepalive: None,
            first_generation: 0,
            on_done: Vec::new(),
        };
        entry.claim(holder);
        registry.spans.insert(range.first().raw(), Span::Live(entry));
        match self.publish_region(&mut registry, &region) {
            Ok(first_generation) => {
                if let Some(entry) = registry.entry(range.first().raw(), id) {
                    entry.first_generation = first_generation;
                }
            }
            Err(OutOfMemory) => {
                // Never published: no reader knows it, and the reservation guard removes the span.
                let unpublished = registry.spans.insert(range.first().raw(), Span::reserved(range));
                registry.free_slot(slot);
                drop(registry);
                drop(unpublished);
                return Err(RegisterError::OutOfMemory { range });
            }
        }
        self.percpu_ref(slot).open();
        if pin.is_some() {
            registry.pins += 1;
            registry.pinned_pages += charged;
            registry.charged_pages += charged;
        }
        Ok(Claim { range, id, holder })
    }

    fn set_slot(&self, registry: &Registry, slot: u32, region: *mut Region) -> bool {
        let made = self.reader_view.slots.grow(registry.slots(), || AtomicPtr::new(ptr::null_mut()));
        let Some(place) = self.reader_view.slots.get(slot).filter(|_| made) else { return false };
        // Relaxed: see `ReaderView::region_in`.
        place.store(region, Ordering::Relaxed);
        true
    }
}
