//! What readers are shown: cells patched in place as regions come and go, and a new snapshot when that does not do.

use alloc::boxed::Box;

use crate::books::Books;
use crate::cells::{Cells, Plan};
use crate::engine::{Engine, OutOfMemory};
use crate::lookup::Snapshot;
use crate::region::SharedRegion;

/// After so many regions died under one snapshot a new one is made, so that their slots and tables come free.
const GRAVES: usize = 64;

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
        let patched = !books.unpublished
            && self.in_current(books, |cells| {
                let covered = cells.covers(region);
                if covered {
                    cells.fill(region);
                }
                covered
            });
        if !patched {
            self.publish(books)?;
        }
        Ok(books.generation)
    }

    /// Lets readers no longer find `region`, which left the books, and buries it.
    pub(crate) fn hide(&self, books: &mut Books, region: SharedRegion, born: u64) {
        let patched = self.in_current(books, |cells| {
            let covered = cells.covers(&region);
            if covered {
                cells.clear(&region);
            }
            covered
        });
        books.bury(region, born);
        if books.stations.is_empty() {
            books.unpublished = true;
            self.reclaim(books);
        } else if !patched || books.fresh_graves() >= GRAVES {
            // Without memory the old snapshot stays: readers find the region with its door closed.
            let _ = self.publish(books);
        }
    }

    /// Makes a new snapshot of what is here. Without memory nothing changes.
    pub(crate) fn publish(&self, books: &mut Books) -> Result<(), OutOfMemory> {
        let regions = || books.here().map(|entry| &entry.region);
        let plan = Plan::new(regions().map(|region| &**region), self.granule.shift().get());
        let cells = plan.map_or_else(|| Some(Cells::empty()), Cells::new).ok_or(OutOfMemory)?;
        let snapshot = Snapshot::new(books.generation + 1, cells, regions()).ok_or(OutOfMemory)?;
        books.generation += 1;
        books.unpublished = false;
        self.published.replace(Box::new(snapshot), &mut books.retired);
        self.reclaim(books);
        Ok(())
    }
}

#[expect(unsafe_code, reason = "publication is by pointer; the books name every reader's seat")]
mod seats {
    use super::{Books, Cells, Engine};

    impl Engine {
        /// Frees what no translator names any more.
        pub(crate) fn reclaim(&self, books: &mut Books) {
            let Books { retired, stations, .. } = books;
            let seats = stations.iter().map(|station| &station.seat);
            // SAFETY: the stations are all there are: each translator's is listed until the translator is dropped.
            unsafe { self.published.reclaim(retired, seats) };
            books.sweep();
        }

        /// Shows the cells of the current snapshot.
        pub(crate) fn in_current<R>(&self, _books: &Books, look: impl FnOnce(&Cells) -> R) -> R {
            // SAFETY: the books are locked.
            unsafe { self.published.current(|snapshot| look(&snapshot.cells)) }
        }
    }
}
