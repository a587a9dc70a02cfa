//! Releasing: the last unregister, draining regions, and the end of the address space.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::addr::UserRange;
use crate::engine::Engine;
use crate::engine::registry::{OnDone, RegionEntry, Registry, Span};
use crate::engine::teardown::Release;
use crate::lookup::holder::{Holder, HolderTotal, ReleaseHook};
use crate::sync::LockCondvarGuard;
use crate::sync::atomic::{AtomicI64, Ordering};

/// The registry's handle of one registration: enough to find its region, never enough to reach a released one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub(crate) range: UserRange,
    pub(crate) id: u64,
    pub(crate) holder: Holder,
}

/// The reason why a claim was not released. Nothing changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum ReleaseRefused {
    Busy { mapped: u64, holders: Vec<HolderTotal> },
    Gone,
}

impl Engine {
    /// Releases a registration; the last one only if nothing is mapped.
    pub(crate) fn release(&self, claim: Claim) -> Result<(), ReleaseRefused> {
        self.reap();
        let mut registry = self.registry.lock();
        let Some(entry) = registry.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0)
        else {
            return Err(ReleaseRefused::Gone);
        };
        if entry.used > 1 {
            entry.disclaim(claim.holder);
            return Ok(());
        }
        let slot = entry.region.slot;
        if let Err(mapped) =
            self.percpu_ref(slot).try_close(|| self.heavy_fence(&registry), || registry.mapped(slot))
        {
            return Err(ReleaseRefused::Busy { mapped, holders: registry.holders(slot) });
        }
        self.remove_and_release(registry, claim.range, claim.id);
        Ok(())
    }

    /// Releases a registration. The last one closes the region for new mappings and leaves its release to the last
    /// unmap. `true` when the region is released or another registration lives.
    pub(crate) fn release_when_idle(&self, claim: Claim) -> bool {
        self.reap();
        let mut registry = self.registry.lock();
        let Some(entry) = registry.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0)
        else {
            return true;
        };
        entry.disclaim(claim.holder);
        if entry.used > 0 {
            return true;
        }
        let slot = entry.region.slot;
        registry.draining += 1;
        self.update_draining_hint(&registry);
        self.percpu_ref(slot).drain();
        self.heavy_fence(&registry);
        if registry.mapped(slot) == 0 {
            self.remove_and_release(registry, claim.range, claim.id);
            return true;
        }
        false
    }

    /// Whether a region released by `release_when_idle` is still there without registrations.
    pub(crate) fn is_draining(&self, claim: Claim) -> bool {
        self.reap();
        Self::draining(&mut self.registry.lock(), claim)
    }

    fn draining(registry: &mut Registry, claim: Claim) -> bool {
        registry.entry(claim.range.first().raw(), claim.id).is_some_and(|entry| entry.used == 0)
    }

    /// Waits until the region is released or its range is registered again.
    pub(crate) fn wait_idle(&self, claim: Claim) {
        loop {
            self.reap();
            let mut registry = self.registry.lock();
            if !Self::draining(&mut registry, claim) {
                break;
            }
            drop(self.registry.wait(registry));
        }
    }

    /// Calls `callback` when [`is_draining`](Self::is_draining) ends; at once if it has.
    pub(crate) fn on_idle(&self, claim: Claim, callback: impl FnOnce() + Send + 'static) {
        let callback = OnDone::new(callback);
        self.reap();
        let mut registry = self.registry.lock();
        match registry.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used == 0) {
            Some(entry) => {
                entry.on_done.push(callback);
                self.watch_draining(&mut registry);
            }
            // Called by the drop, without the lock.
            None => {
                drop(registry);
                drop(callback);
            }
        }
    }

    /// Releases every draining region without mappings.
    pub(crate) fn reap(&self) {
        // Relaxed: the usual case costs one load. A caller that knows of a draining region sees it, because it learned
        // of it after the store.
        if self.draining.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut registry = self.registry.lock();
        if registry.draining == 0 {
            return;
        }
        let idle = |entry: &&RegionEntry| entry.used == 0 && registry.mapped(entry.region.slot) == 0;
        let idle: Vec<_> =
            registry.live().filter(idle).map(|entry| (entry.region.range, entry.region.id)).collect();
        let gone: Vec<_> =
            idle.into_iter().filter_map(|(range, id)| self.remove_region(&mut registry, range, id)).collect();
        drop(registry);
        drop(gone);
    }

    /// Releases many registrations with one heavy fence for all of them, in order; each as [`release`](Self::release)
    /// would.
    pub(crate) fn release_many(
        &self,
        claims: impl Iterator<Item = Claim>,
    ) -> Vec<Result<(), ReleaseRefused>> {
        self.reap();
        let mut registry = self.registry.lock();
        let mut closing = Vec::new();
        let mut results: Vec<_> = claims
            .enumerate()
            .map(|(index, claim)| {
                let entry =
                    registry.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0);
                let Some(entry) = entry else { return Err(ReleaseRefused::Gone) };
                if entry.used > 1 {
                    entry.disclaim(claim.holder);
                    return Ok(());
                }
                let slot = entry.region.slot;
                // As in `PercpuRef::try_close`: a plain sum that is not zero is enough to refuse.
                let inside = registry.mapped(slot);
                if inside != 0 {
                    return Err(ReleaseRefused::Busy {
                        mapped: inside.unsigned_abs(),
                        holders: registry.holders(slot),
                    });
                }
                self.percpu_ref(slot).begin_close();
                closing.push((index, claim, slot));
                Ok(())
            })
            .collect();
        if !closing.is_empty() {
            self.heavy_fence(&registry);
        }
        let mut gone = Vec::new();
        for (index, claim, slot) in closing {
            match self.percpu_ref(slot).finish_close(registry.mapped(slot)) {
                Ok(()) => gone.extend(self.remove_region(&mut registry, claim.range, claim.id)),
                Err(mapped) => {
                    results[index] = Err(ReleaseRefused::Busy { mapped, holders: registry.holders(slot) });
                }
            }
        }
        drop(registry);
        drop(gone);
        results
    }

    /// Removes a region whose percpu ref is closed, or drained to zero, and releases it without the lock.
    fn remove_and_release(&self, mut registry: LockCondvarGuard<'_, Registry>, range: UserRange, id: u64) {
        let gone = self.remove_region(&mut registry, range, id);
        drop(registry);
        drop(gone);
    }

    /// Removes a region under the lock: readers no longer find it, and its span is unpinning. The caller drops the
    /// result without the lock.
    fn remove_region(&self, registry: &mut Registry, range: UserRange, id: u64) -> Option<Release<'_>> {
        let entry = registry.start_unpinning(range.first().raw(), id)?;
        self.update_draining_hint(registry);
        self.percpu_ref(entry.region.slot).close();
        self.unpublish_region(registry, entry.region.clone(), entry.first_generation);
        Some(Release::new(self, entry))
    }

    /// The address space is dropped: every registration is released, wherever its handle is; regions without mappings
    /// are released now.
    pub(crate) fn close(&self) {
        let mut registry = self.registry.lock();
        let mut drained = 0;
        for span in registry.spans.values_mut() {
            let Span::Live(entry) = span else { continue };
            if entry.used > 0 {
                entry.used = 0;
                entry.claims.clear();
                drained += 1;
            }
            self.percpu_ref(entry.region.slot).drain();
            entry.keepalive = self.this.upgrade().map(|this| this as Arc<dyn ReleaseHook>);
        }
        registry.draining += drained;
        self.update_draining_hint(&registry);
        self.heavy_fence(&registry);
        drop(registry);
        self.reap();
    }
}

impl ReleaseHook for Engine {
    fn release_unit(&self, slot: u32, count: &AtomicI64) {
        if self.percpu_ref(slot).leave_shared(count) {
            self.reap();
        }
    }
}
