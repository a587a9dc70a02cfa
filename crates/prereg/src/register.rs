//! Registering: reserve the span, charge, pin, commit; or give everything back.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::ptr;

use crate::addr::{HostAddr, RangeError, UserAddr, UserRange};
use crate::books::{Books, Entry, Span};
use crate::engine::{Engine, OutOfMemory};
use crate::errno::Errno;
use crate::pages::{PageList, PageListError, PageTable};
use crate::port::{ChargeError, PinError, PinId};
use crate::region::Region;
use crate::release::Claim;
use crate::slab::Placed;
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::tally::Holder;

/// Why memory could not be registered. Nothing is pinned, charged or listed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
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
    /// This very range is registered, and a new region was asked for. EINVAL.
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
        /// What the account said.
        error: ChargeError,
    },
    /// The pages could not be pinned. The back end's errno.
    #[error("{range}: {error}")]
    Pin {
        /// The range asked for.
        range: UserRange,
        /// What the back end said.
        error: PinError,
    },
    /// No memory for our own tables. ENOMEM.
    #[error("no memory for the tables that describe {range}")]
    OutOfMemory {
        /// The range asked for.
        range: UserRange,
    },
    /// Too many regions. ENOSPC.
    #[error(
        "the address space has 262143 regions, or gone ones that an idle translator still lists; register larger ranges"
    )]
    TooManyRegions,
    /// The address space was dropped. ESRCH.
    #[error("the address space is gone")]
    Gone,
}

impl RegisterError {
    /// EINVAL, ENOMEM, ENOSPC, ESRCH or the back end's, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range(error) => error.errno(),
            Self::Overlap { .. } | Self::Exists { .. } => Errno::EINVAL,
            Self::Charge { error, .. } => error.errno(),
            Self::Pin { error, .. } => error.errno(),
            Self::OutOfMemory { .. } => Errno::ENOMEM,
            Self::TooManyRegions => Errno::ENOSPC,
            Self::Gone => Errno::ESRCH,
        }
    }
}

/// Whether a region of the same range may be shared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    ShareOrNew,
    New,
    Share,
}

/// What backs a new region.
pub(crate) enum Backing {
    Pinned(Option<Arc<dyn Any + Send + Sync>>),
    Device(HostAddr),
}

impl Engine {
    pub(crate) fn register(
        &self,
        ua: UserAddr,
        bytes: u64,
        wish: Wish,
        holder: Holder,
        backing: impl FnOnce() -> Backing,
    ) -> Result<Option<Claim>, RegisterError> {
        self.reap();
        let range = UserRange::new(ua, bytes, self.granule)?;
        if let Some(claim) = self.share_or_reserve(range, wish, holder)? {
            return Ok(Some(claim));
        }
        if wish == Wish::Share {
            return Ok(None);
        }
        let reservation = Reservation { engine: self, range };
        let claim = self.build(range, backing(), holder)?;
        core::mem::forget(reservation);
        self.books.notify_all();
        Ok(Some(claim))
    }

    /// A claim on the region of just this range, or `None` and the span is reserved (not for `Wish::Share`).
    fn share_or_reserve(
        &self,
        range: UserRange,
        wish: Wish,
        holder: Holder,
    ) -> Result<Option<Claim>, RegisterError> {
        let mut books = self.books.lock();
        loop {
            if books.closed {
                return Err(RegisterError::Gone);
            }
            match books.intersecting(range) {
                None => break,
                Some(Span::Going(_)) => {}
                Some(Span::Coming(other)) if *other == range && wish != Wish::New => {}
                Some(Span::Here(entry)) if entry.region.range == range && wish != Wish::New => {
                    // A draining region that somebody still maps comes back to life.
                    let draining = entry.used == 0;
                    if draining {
                        self.door(entry.region.slot).reopen();
                    }
                    entry.claim(holder);
                    let keepalive = entry.keepalive.take();
                    let claim = Claim { range, id: entry.region.id, holder };
                    if draining {
                        books.draining -= 1;
                        self.show_draining(&books);
                    }
                    drop(books);
                    drop(keepalive);
                    return Ok(Some(claim));
                }
                Some(_) if wish == Wish::Share => return Ok(None),
                Some(span) if span.range() == range => return Err(RegisterError::Exists { range }),
                Some(span) => return Err(RegisterError::Overlap { range, with: span.range() }),
            }
            books = self.books.wait(books);
        }
        if wish != Wish::Share {
            books.spans.insert(range.first().raw(), Span::Coming(range));
        }
        Ok(None)
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
                self.charges.charge(pages).map_err(|error| RegisterError::Charge { range, error })?;
                let charge = Charged { engine: self, pages };
                let (pin, table) = self.pin(range)?;
                let pinned = Pinned { engine: self, pin, range };
                let claim = self.commit(range, table, false, Some(pin), pages, keep, holder)?;
                core::mem::forget(pinned);
                core::mem::forget(charge);
                Ok(claim)
            }
        }
    }

    fn pin(&self, range: UserRange) -> Result<(PinId, PageTable), RegisterError> {
        let mut pages = PageList::new(range, self.granule);
        let pin = self.pins.pin(range, &mut pages).map_err(|error| RegisterError::Pin { range, error })?;
        let pinned = Pinned { engine: self, pin, range };
        match pages.finish(&self.tables) {
            Ok(Some(table)) => {
                core::mem::forget(pinned);
                Ok((pin, table))
            }
            Ok(None) => {
                let why =
                    "the back end named fewer pages than the range has; this is a defect of the back end";
                Err(RegisterError::Pin { range, error: PinError::Fault { ua: range.first(), why } })
            }
            Err(PageListError::OutOfMemory | PageListError::TooMany { .. }) => {
                Err(RegisterError::OutOfMemory { range })
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one entry, from two callers")]
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
        let mut books = self.books.lock();
        if books.closed {
            return Err(RegisterError::Gone);
        }
        let slot = match books.take_slot() {
            Some(slot) => slot,
            None => {
                // The slots of regions that died under the current snapshot come free with the next one.
                let _ = self.publish(&mut books);
                books.take_slot().ok_or(RegisterError::TooManyRegions)?
            }
        };
        let id = books.next_id();
        let placed = self
            .doors
            .make_present(books.slots())
            .then(|| Placed::new(&self.tables, Region { id, slot, range, table, device }))
            .flatten()
            .filter(|region| self.set_slot(&books, slot, region.as_ptr().as_ptr()));
        let Some(region) = placed.map(Arc::new) else {
            books.give_slot(slot);
            return Err(RegisterError::OutOfMemory { range });
        };
        let mut entry = Entry {
            region: region.clone(),
            pin,
            charged,
            used: 0,
            claims: Vec::new(),
            keep,
            keepalive: None,
            born: 0,
        };
        entry.claim(holder);
        books.spans.insert(range.first().raw(), Span::Here(entry));
        match self.show(&mut books, &region) {
            Ok(born) => {
                if let Some(entry) = books.entry(range.first().raw(), id) {
                    entry.born = born;
                }
            }
            Err(OutOfMemory) => {
                // Never published: no reader knows it, and the reservation takes the span away.
                books.spans.insert(range.first().raw(), Span::Coming(range));
                books.give_slot(slot);
                return Err(RegisterError::OutOfMemory { range });
            }
        }
        self.door(slot).open();
        if pin.is_some() {
            books.pins += 1;
            books.pinned_pages += charged;
            books.charged_pages += charged;
        }
        Ok(Claim { range, id, holder })
    }

    fn set_slot(&self, books: &Books, slot: u32, region: *mut Region) -> bool {
        let made = self.shown.slots.grow(books.slots(), || AtomicPtr::new(ptr::null_mut()));
        let Some(place) = self.shown.slots.get(slot).filter(|_| made) else { return false };
        // Relaxed: see `Shown::region_in`.
        place.store(region, Ordering::Relaxed);
        true
    }
}

/// A span that is coming; dropped (by an error, or a port that panics) it is free again.
struct Reservation<'a> {
    engine: &'a Engine,
    range: UserRange,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut books = self.engine.books.lock();
        books.spans.remove(&self.range.first().raw());
        drop(books);
        self.engine.books.notify_all();
    }
}

/// A charge to be given back unless the registration is committed.
struct Charged<'a> {
    engine: &'a Engine,
    pages: u64,
}

impl Drop for Charged<'_> {
    fn drop(&mut self) {
        self.engine.charges.uncharge(self.pages);
    }
}

/// A pin to be given back unless the registration is committed.
struct Pinned<'a> {
    engine: &'a Engine,
    pin: PinId,
    range: UserRange,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.engine.pins.unpin(self.pin, self.range, crate::pages::DirtyPages::none());
    }
}
