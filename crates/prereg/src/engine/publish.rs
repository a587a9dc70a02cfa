//! Publication: the page index is changed in place as regions come and go, and a new snapshot is made where that does not
//! suffice.

use crate::engine::registry::Registry;
use crate::engine::{Engine, OutOfMemory};
use crate::lookup::index::{IndexPlan, PageIndex};
use crate::lookup::region::SharedRegion;
use crate::lookup::snapshot::Snapshot;
use crate::table_memory::owned::TableBox;

/// After this many regions were retired under one snapshot, a new one is made, so that their slots and tables become
/// free. If they stay in use, because a translator uses an older snapshot with the same index, a new index is made:
/// regions of the new index do not concern that translator. So each idle translator keeps at most the regions of its
/// own snapshot and twice this number.
const MAX_RETIRED: usize = if cfg!(loom) { 2 } else { 64 };

impl Engine {
    /// Lets readers find `region`, which is in the registry; returns the generation of the first snapshot that names
    /// it. Without memory nothing changes.
    ///
    /// Readers may find it before its percpu ref is open: they then find it closed, as if they had come earlier.
    pub(crate) fn publish_region(
        &self,
        registry: &mut Registry,
        region: &SharedRegion,
    ) -> Result<u64, OutOfMemory> {
        if registry.readers.is_empty() {
            // The first translator makes the snapshot it needs.
            registry.snapshot_stale = true;
            return Ok(registry.generation + 1);
        }
        let pages = region.range.pages(self.granule);
        let regions = registry.spans.len();
        let stale = registry.snapshot_stale;
        let next = self.with_current_snapshot(registry, |snapshot| {
            if stale {
                Publication::Rebuild
            } else if snapshot.index.fill(region) {
                // Every snapshot with this index names it from now on.
                Publication::Patched(snapshot.index.first_generation)
            } else if snapshot.is_outgrown_by(pages, regions) {
                Publication::Rebuild
            } else {
                Publication::SameIndex(snapshot.with(region))
            }
        });
        match next {
            Publication::Patched(first_generation) => return Ok(first_generation),
            Publication::SameIndex(snapshot) => self.publish_snapshot(registry, snapshot.ok_or(OutOfMemory)?),
            Publication::Rebuild => self.rebuild_snapshot(registry)?,
        }
        Ok(registry.generation)
    }

    /// Removes `region`, which left the registry, from what readers find, and retires it.
    pub(crate) fn unpublish_region(
        &self,
        registry: &mut Registry,
        region: SharedRegion,
        first_generation: u64,
    ) {
        let patched = self.with_current_snapshot(registry, |snapshot| snapshot.index.clear(&region));
        let id = region.id;
        registry.retire(region, first_generation);
        if registry.readers.is_empty() {
            registry.snapshot_stale = true;
            self.reclaim(registry);
        } else if !patched || registry.newly_retired() >= MAX_RETIRED {
            match self.with_current_snapshot(registry, |snapshot| snapshot.without(id)) {
                Some(snapshot) if !registry.snapshot_stale => self.publish_snapshot(registry, snapshot),
                _ => {
                    // Without memory the old snapshot stays: readers find the region with its percpu ref closed. The
                    // next snapshot must not be derived from it.
                    registry.snapshot_stale = true;
                    let _ = self.rebuild_snapshot(registry);
                }
            }
            let first_generation =
                self.with_current_snapshot(registry, |snapshot| snapshot.index.first_generation);
            if registry.retired_since(first_generation) >= MAX_RETIRED {
                // Without memory the next region that is retired tries again.
                let _ = self.rebuild_snapshot(registry);
            }
        }
    }

    /// Publishes a new snapshot with a new index of all live regions. Without memory nothing changes.
    pub(crate) fn rebuild_snapshot(&self, registry: &mut Registry) -> Result<(), OutOfMemory> {
        let regions = || registry.live().map(|entry| &entry.region);
        let plan = IndexPlan::new(regions().map(|region| &***region), self.granule.shift().get());
        let first_generation = registry.generation + 1;
        let index = PageIndex::new(&self.tables, plan, first_generation).ok_or(OutOfMemory)?;
        let snapshot = Snapshot::new(&self.tables, index, regions()).ok_or(OutOfMemory)?;
        self.publish_snapshot(registry, snapshot);
        Ok(())
    }

    /// Makes `snapshot`, which has the next generation, the current one.
    fn publish_snapshot(&self, registry: &mut Registry, snapshot: TableBox<Snapshot>) {
        debug_assert_eq!(snapshot.generation, registry.generation + 1);
        registry.generation = snapshot.generation;
        registry.snapshot_stale = false;
        self.reader_view.published.replace(snapshot, &mut registry.retired_snapshots);
        self.reclaim(registry);
    }
}

/// The way in which a region becomes visible.
enum Publication {
    /// The index of this generation was changed in place.
    Patched(u64),
    /// A snapshot with the current index and a longer list.
    SameIndex(Option<TableBox<Snapshot>>),
    /// A new index and list of all regions.
    Rebuild,
}

#[expect(unsafe_code, reason = "publication is by pointer; the registry lists every reader's hazard slot")]
mod hazards {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::{Engine, Registry, Snapshot};
    use crate::engine::reader::Reader;
    use crate::lookup::holder::HolderTotal;

    impl Engine {
        /// Frees the snapshots and regions that no translator names any more.
        pub(crate) fn reclaim(&self, registry: &mut Registry) {
            let Registry { retired_snapshots, readers, .. } = registry;
            let hazards = readers.iter().map(|reader| &reader.shared.hazard);
            // SAFETY: the readers are all there are: each is listed until its translator is dropped.
            unsafe { self.reader_view.published.reclaim(retired_snapshots, hazards) };
            registry.reclaim();
        }

        /// The number of retired regions that translators keep, by holder.
        pub(crate) fn retained(&self, registry: &Registry) -> Vec<HolderTotal> {
            let names = |reader: &Arc<Reader>| {
                // SAFETY: the registry is locked.
                let seen = unsafe {
                    self.reader_view
                        .published
                        .protected_by(&registry.retired_snapshots, &reader.shared.hazard)
                };
                seen.map(|snapshot| snapshot.generation)
            };
            registry.retained(names)
        }

        /// Calls `look` with the current snapshot.
        pub(crate) fn with_current_snapshot<R>(
            &self,
            _registry: &Registry,
            look: impl FnOnce(&Snapshot) -> R,
        ) -> R {
            // SAFETY: the registry is locked.
            unsafe { self.reader_view.published.with_current(look) }
        }
    }
}
