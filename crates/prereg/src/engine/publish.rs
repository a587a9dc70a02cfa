//! What readers are shown: cells patched in place as regions come and go, and a new snapshot when that does not do.

use crate::engine::registry::Books;
use crate::engine::{Engine, OutOfMemory};
use crate::lookup::index::{Cells, Plan};
use crate::lookup::region::SharedRegion;
use crate::lookup::snapshot::Snapshot;
use crate::table_memory::owned::Placed;

/// After so many regions died under one snapshot a new one is made, so that their slots and tables come free. When that
/// frees them not, because a translator sits on an older snapshot with the same cells, new cells are made: what comes and
/// goes from then on does not concern that translator. So each idle translator keeps no more than the regions of its own
/// snapshot and twice as many as this.
const GRAVES: usize = if cfg!(loom) { 2 } else { 64 };

impl Engine {
    /// Lets readers find `region`, which is in the books; returns the generation it is born in. Without memory nothing
    /// changes.
    ///
    /// Readers may find it before its door is open: they then find it closed, as if they had come earlier.
    pub(crate) fn show(&self, books: &mut Books, region: &SharedRegion) -> Result<u64, OutOfMemory> {
        if books.stations.is_empty() {
            // The first translator will make the snapshot it needs.
            books.unpublished = true;
            return Ok(books.generation + 1);
        }
        let pages = region.range.pages(self.granule);
        let regions = books.spans.len();
        let unpublished = books.unpublished;
        let next = self.in_current(books, |snapshot| {
            if unpublished {
                Next::New
            } else if snapshot.cells.fill(region) {
                // Every snapshot with these cells names it from now on.
                Next::Patched(snapshot.cells.born)
            } else if snapshot.is_outgrown_by(pages, regions) {
                Next::New
            } else {
                Next::Same(snapshot.with(region))
            }
        });
        match next {
            Next::Patched(born) => return Ok(born),
            Next::Same(snapshot) => self.publish_next(books, snapshot.ok_or(OutOfMemory)?),
            Next::New => self.publish(books)?,
        }
        Ok(books.generation)
    }

    /// Lets readers no longer find `region`, which left the books, and buries it.
    pub(crate) fn hide(&self, books: &mut Books, region: SharedRegion, born: u64) {
        let patched = self.in_current(books, |snapshot| snapshot.cells.clear(&region));
        let id = region.id;
        books.bury(region, born);
        if books.stations.is_empty() {
            books.unpublished = true;
            self.reclaim(books);
        } else if !patched || books.fresh_graves() >= GRAVES {
            match self.in_current(books, |snapshot| snapshot.without(id)) {
                Some(snapshot) if !books.unpublished => self.publish_next(books, snapshot),
                _ => {
                    // Without memory the old snapshot stays: readers find the region with its door closed. The next one
                    // must not be made from it.
                    books.unpublished = true;
                    let _ = self.publish(books);
                }
            }
            let born = self.in_current(books, |snapshot| snapshot.cells.born);
            if books.graves_since(born) >= GRAVES {
                // Without memory the next region that goes tries again.
                let _ = self.publish(books);
            }
        }
    }

    /// Makes a new snapshot of what is here. Without memory nothing changes.
    pub(crate) fn publish(&self, books: &mut Books) -> Result<(), OutOfMemory> {
        let regions = || books.here().map(|entry| &entry.region);
        let plan = Plan::new(regions().map(|region| &***region), self.granule.shift().get());
        let born = books.generation + 1;
        let cells = Cells::new(&self.tables, plan, born).ok_or(OutOfMemory)?;
        let snapshot = Snapshot::new(&self.tables, cells, regions()).ok_or(OutOfMemory)?;
        self.publish_next(books, snapshot);
        Ok(())
    }

    /// Makes `snapshot`, of the next generation, the current one.
    fn publish_next(&self, books: &mut Books, snapshot: Placed<Snapshot>) {
        debug_assert_eq!(snapshot.generation, books.generation + 1);
        books.generation = snapshot.generation;
        books.unpublished = false;
        self.shown.published.replace(snapshot, &mut books.retired);
        self.reclaim(books);
    }
}

/// What shows a region.
enum Next {
    /// The cells of this generation, changed in place.
    Patched(u64),
    /// A snapshot with the same cells.
    Same(Option<Placed<Snapshot>>),
    /// A snapshot of all.
    New,
}

#[expect(unsafe_code, reason = "publication is by pointer; the books name every reader's seat")]
mod seats {
    use alloc::sync::Arc;
    use alloc::vec::Vec;

    use super::{Books, Engine, Snapshot};
    use crate::engine::reader::Station;
    use crate::lookup::holder::Held;

    impl Engine {
        /// Frees what no translator names any more.
        pub(crate) fn reclaim(&self, books: &mut Books) {
            let Books { retired, stations, .. } = books;
            let seats = stations.iter().map(|station| &station.place.seat);
            // SAFETY: the stations are all there are: each translator's is listed until the translator is dropped.
            unsafe { self.shown.published.reclaim(retired, seats) };
            books.sweep();
        }

        /// Retired regions that translators keep, by holder.
        pub(crate) fn retained(&self, books: &Books) -> Vec<Held> {
            let names = |station: &Arc<Station>| {
                // SAFETY: the books are locked.
                let seen = unsafe { self.shown.published.seen(&books.retired, &station.place.seat) };
                seen.map(|snapshot| snapshot.generation)
            };
            books.retained(names)
        }

        /// Shows the current snapshot.
        pub(crate) fn in_current<R>(&self, _books: &Books, look: impl FnOnce(&Snapshot) -> R) -> R {
            // SAFETY: the books are locked.
            unsafe { self.shown.published.current(look) }
        }
    }
}
