//! Registering readers, and snapshots of the state as plain data.

use alloc::sync::{Arc, Weak};

use crate::addr::{HostAddr, UserAddr};
use crate::engine::reader::Reader;
use crate::engine::registry::{RegionEntry, Registry, Span};
use crate::engine::release::Claim;
use crate::engine::{Engine, OutOfMemory};
use crate::lookup::holder::{Holder, ReleaseHook, SharedHolderCounts};
use crate::lookup::region::SharedRegion;
use crate::state::{RegionState, SpaceState};

impl Engine {
    pub(crate) fn add_reader(&self, holder: Holder) -> Result<Arc<Reader>, OutOfMemory> {
        self.reap();
        let mut registry = self.registry.lock();
        registry.readers.try_reserve(1).map_err(|_| OutOfMemory)?;
        let counts = registry.counts_of(&self.tables, holder, || self.release_hook()).ok_or(OutOfMemory)?;
        let reader = Arc::new(Reader::new(&self.tables, counts, registry.capacity).ok_or(OutOfMemory)?);
        if registry.snapshot_stale {
            self.rebuild_snapshot(&mut registry)?;
        }
        registry.readers.push(reader.clone());
        Ok(reader)
    }

    fn release_hook(&self) -> Weak<dyn ReleaseHook> {
        let hook: Weak<dyn ReleaseHook> = self.this.clone();
        hook
    }

    pub(crate) fn remove_reader(&self, reader: &Arc<Reader>) {
        let mut registry = self.registry.lock();
        reader.shared.hazard.clear();
        registry.readers.retain(|other| !Arc::ptr_eq(other, reader));
        reader.fold_into_holder();
        if registry.readers.is_empty() && registry.unreclaimed() > 0 {
            // No reader is left to use the current snapshot, so the regions it names may be freed.
            registry.snapshot_stale = true;
        }
        self.reclaim(&mut registry);
        drop(registry);
        self.reap();
    }

    pub(crate) fn holder_counts(&self, holder: Holder) -> Result<SharedHolderCounts, OutOfMemory> {
        self.registry.lock().counts_of(&self.tables, holder, || self.release_hook()).ok_or(OutOfMemory)
    }

    pub(crate) fn find(&self, ua: UserAddr, bytes: u64) -> Option<RegionState> {
        let registry = self.registry.lock();
        let (_, span) = registry.spans.range(..=ua.raw()).next_back()?;
        match span {
            Span::Live(entry) if entry.region.range.holds(ua, bytes) => Some(self.state_of(&registry, entry)),
            _ => None,
        }
    }

    pub(crate) fn claim_state(&self, claim: Claim) -> Option<RegionState> {
        let mut registry = self.registry.lock();
        registry.entry(claim.range.first().raw(), claim.id)?;
        match registry.spans.get(&claim.range.first().raw()) {
            Some(Span::Live(entry)) => Some(self.state_of(&registry, entry)),
            _ => None,
        }
    }

    fn state_of(&self, registry: &Registry, entry: &RegionEntry) -> RegionState {
        let region = &entry.region;
        RegionState {
            ua: region.range.first(),
            bytes: region.range.bytes(),
            pages: region.range.pages(self.granule),
            used: entry.used,
            mapped: u64::try_from(registry.mapped(region.slot)).unwrap_or(0),
            largest_page: region.table.largest_page(),
            device: region.device,
            on_demand: region.on_demand,
            draining: entry.used == 0,
            registrations: entry.claims.clone(),
            mappings: registry.holders(region.slot),
            metadata_bytes: region.table.metadata_bytes(),
        }
    }

    /// The region of a claim, whose page table is then read without a lock.
    pub(crate) fn claim_region(&self, claim: Claim) -> Option<SharedRegion> {
        self.registry.lock().entry(claim.range.first().raw(), claim.id).map(|entry| entry.region.clone())
    }

    pub(crate) fn snapshot(&self) -> SpaceState {
        self.reap();
        let registry = self.registry.lock();
        let live = |span: &Span| match span {
            Span::Live(entry) => Some(self.state_of(&registry, entry)),
            _ => None,
        };
        SpaceState {
            regions: registry.spans.values().filter_map(live).collect(),
            pinned_pages: registry.pinned_pages,
            charged_pages: registry.charged_pages,
            pins: registry.pins,
            unpins: registry.unpins,
            translators: registry.readers.len() as u64,
            unreclaimed: registry.unreclaimed() as u64,
            retained_by: self.retained(&registry),
            tables: self.tables.state(),
        }
    }

    /// The number of the `bytes` at `host` that the device region holding `host` covers.
    pub(crate) fn device_at(&self, host: HostAddr, bytes: u64) -> Option<u64> {
        let registry = self.registry.lock();
        let covered = |region: &SharedRegion| {
            let offset = host.offset_from(region.table.host(region.range.first()))?;
            (region.device && offset < region.range.bytes())
                .then(|| (region.id, bytes.min(region.range.bytes() - offset)))
        };
        // Several may cover one host address; the newest is returned, as in the kernel.
        registry.live().filter_map(|entry| covered(&entry.region)).max().map(|(_, bytes)| bytes)
    }

    /// Whether any region is registered.
    pub(crate) fn is_preregistered(&self) -> bool {
        self.registry.lock().spans.values().any(|span| matches!(span, Span::Live(entry) if entry.used > 0))
    }
}
