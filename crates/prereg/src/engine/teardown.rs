//! Guards over what a registration holds outside the core: the span, the charge, the pin.
//!
//! While a region is built they undo the steps done so far; when it is released they are the release. Each acts once,
//! when it is dropped, so that a port that panics stops none of the others: the pin is released, the charge taken off,
//! the span freed and every waiter woken, whichever call unwinds. (Two that unwind at once abort the process, as two
//! panics always do.)

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;

use crate::addr::UserRange;
use crate::engine::Engine;
use crate::engine::registry::OnDone;
use crate::lookup::holder::ReleaseHook;
use crate::lookup::pages::DirtyPages;
use crate::lookup::region::SharedRegion;
use crate::port::{Charge, Pin, PinId};

/// A reserved or unpinning span. Dropping it frees the span and wakes the threads that wait for it.
pub(crate) struct SpanGuard<'a> {
    engine: &'a Engine,
    range: UserRange,
    /// Pages that this release takes off the totals; `None` when the registration was never committed.
    unpinned: Option<u64>,
}

impl<'a> SpanGuard<'a> {
    /// Guards a span that was just reserved.
    pub(crate) fn reserved(engine: &'a Engine, range: UserRange) -> Self {
        Self { engine, range, unpinned: None }
    }

    /// The region is registered and keeps the span.
    pub(crate) fn commit(self) {
        core::mem::forget(self);
    }
}

impl Drop for SpanGuard<'_> {
    fn drop(&mut self) {
        let mut registry = self.engine.registry.lock();
        let span = registry.spans.remove(&self.range.first().raw());
        if let Some(pages) = self.unpinned {
            registry.unpins += 1;
            registry.pinned_pages -= pages;
            registry.charged_pages -= pages;
        }
        drop(registry);
        drop(span);
        self.engine.registry.notify_all();
    }
}

/// A charge. Dropping it takes it off the account.
pub(crate) struct ChargeGuard<'a> {
    charges: &'a dyn Charge,
    pages: u64,
}

impl<'a> ChargeGuard<'a> {
    /// Guards `pages` pages that were charged to `charges`.
    pub(crate) fn new(charges: &'a dyn Charge, pages: u64) -> Self {
        Self { charges, pages }
    }

    /// The registration keeps the charge.
    pub(crate) fn commit(self) {
        core::mem::forget(self);
    }
}

impl Drop for ChargeGuard<'_> {
    fn drop(&mut self) {
        self.charges.uncharge(self.pages);
    }
}

/// A pin. Dropping it releases it.
pub(crate) struct PinGuard<'a> {
    pins: &'a dyn Pin,
    pin: PinId,
    range: UserRange,
    /// Has the dirty marks; `None` when no device can have reached the pages.
    region: Option<SharedRegion>,
}

impl<'a> PinGuard<'a> {
    /// Guards a pin that has no region yet.
    pub(crate) fn new(pins: &'a dyn Pin, pin: PinId, range: UserRange) -> Self {
        Self { pins, pin, range, region: None }
    }

    /// The back end's name for it.
    pub(crate) fn id(&self) -> PinId {
        self.pin
    }

    /// The registration keeps the pin.
    pub(crate) fn commit(self) {
        core::mem::forget(self);
    }
}

impl Drop for PinGuard<'_> {
    fn drop(&mut self) {
        let dirty = self.region.as_ref().map_or(DirtyPages::none(), |region| region.table.dirty());
        self.pins.unpin(self.pin, self.range, dirty);
    }
}

/// A region that left the registry. Dropping it, without the lock held, releases it: the fields in their order.
pub(crate) struct Release<'a> {
    _pin: Option<PinGuard<'a>>,
    _charge: Option<ChargeGuard<'a>>,
    _region: SharedRegion,
    _span: SpanGuard<'a>,
    /// After the span: dropping it runs the caller's code, which may register the range again.
    _keep: Option<Arc<dyn Any + Send + Sync>>,
    /// As above.
    _on_done: Vec<OnDone>,
    /// Last: it may be the last reference to the engine.
    _keepalive: Option<Arc<dyn ReleaseHook>>,
}

impl<'a> Release<'a> {
    /// The release of `entry`, whose span is marked as unpinning.
    pub(crate) fn new(engine: &'a Engine, entry: crate::engine::registry::RegionEntry) -> Self {
        let crate::engine::registry::RegionEntry { region, pin, charged, keep, keepalive, on_done, .. } =
            entry;
        let range = region.range;
        Self {
            _pin: pin.map(|pin| PinGuard { pins: engine.pins(), pin, range, region: Some(region.clone()) }),
            _charge: pin.map(|_| ChargeGuard::new(engine.charges(), charged)),
            _region: region,
            _span: SpanGuard { engine, range, unpinned: pin.map(|_| charged) },
            _keep: keep,
            _on_done: on_done,
            _keepalive: keepalive,
        }
    }
}
