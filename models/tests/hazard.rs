//! Hazard pointers: a reader that protects a value while a writer replaces, closes and frees.
#![cfg(loom)]
#![expect(unsafe_code, reason = "readers reach published values by pointer")]
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;
use prereg::RundownRef;
use prereg::primitives::{HazardSlot, Published, Retired};
use prereg_models::explore_to;

/// A region as a reader knows it: a ref, and pages that are released once it is closed and no unit is held.
struct Region {
    rundown: RundownRef,
    pages: UnsafeCell<u64>,
}

// SAFETY: the ref orders accesses to the cell, and loom checks it.
unsafe impl Sync for Region {}
// SAFETY: as above.
unsafe impl Send for Region {}

/// A snapshot: the region it lists, and memory of its own that its drop writes (the free).
struct Snapshot {
    region: Option<Arc<Region>>,
    table: UnsafeCell<u64>,
}

// SAFETY: the hazard pointers order accesses to the table, and loom checks it.
unsafe impl Sync for Snapshot {}
// SAFETY: as above.
unsafe impl Send for Snapshot {}

impl Snapshot {
    fn of(region: Option<Arc<Region>>) -> Box<Self> {
        Box::new(Self { region, table: UnsafeCell::new(1) })
    }

    fn read(&self) {
        // SAFETY: the hazard slot names this snapshot.
        let table = self.table.with(|table| unsafe { *table });
        assert_eq!(table, 1, "read after the free");
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // SAFETY: no reader uses it any more.
        self.table.with_mut(|table| unsafe { *table = 0 });
    }
}

struct Space {
    published: Published<Snapshot>,
    hazards: Vec<HazardSlot<Snapshot>>,
    retired: Mutex<Retired<Snapshot>>,
}

impl Space {
    fn publish(&self, snapshot: Box<Snapshot>) {
        let mut retired = self.retired.lock().unwrap();
        self.published.replace(snapshot, &mut retired);
        // SAFETY: all hazard slots.
        unsafe { self.published.reclaim(&mut retired, self.hazards.iter()) };
    }
}

fn space(readers: usize) -> (Arc<Space>, Arc<Region>) {
    let region = Arc::new(Region { rundown: RundownRef::new(), pages: UnsafeCell::new(1) });
    let space = Space {
        published: Published::new(Snapshot::of(Some(region.clone()))),
        hazards: (0..readers).map(|_| HazardSlot::default()).collect(),
        retired: Mutex::new(Retired::default()),
    };
    (Arc::new(space), region)
}

/// Names the current snapshot in the slot, and uses it as long as the slot names it.
fn refresh(space: &Space, hazard: usize) -> &Snapshot {
    // SAFETY: the hazard is listed, and this thread's alone.
    let snapshot = unsafe { space.published.protect(&space.hazards[hazard]) };
    // SAFETY: no caller uses it after the hazard names another.
    unsafe { &*snapshot }
}

/// A map and its unmap: refresh, look up, enter, read the page, leave. Whether it mapped.
fn map_once(space: &Space, hazard: usize) -> bool {
    let snapshot = refresh(space, hazard);
    snapshot.read();
    let mut mapped = false;
    if let Some(region) = &snapshot.region {
        if region.rundown.enter().is_ok() {
            // SAFETY: a unit is held.
            assert_eq!(region.pages.with(|pages| unsafe { *pages }), 1, "page used after the unpin");
            let _ = region.rundown.leave().unwrap();
            mapped = true;
        }
    }
    snapshot.read();
    space.hazards[hazard].clear();
    mapped
}

/// The last unregister: close, publish without the region, unpin. Whether it succeeded.
fn unregister(space: &Space, region: &Region) -> bool {
    if region.rundown.try_close().is_err() {
        return false;
    }
    space.publish(Snapshot::of(None));
    // SAFETY: closed and empty.
    region.pages.with_mut(|pages| unsafe { *pages = 0 });
    true
}

#[test]
fn two_readers_against_an_unregister() {
    explore_to(3, || {
        let (space, region) = space(2);
        let readers: Vec<_> = (0..2)
            .map(|hazard| {
                let space = space.clone();
                thread::spawn(move || map_once(&space, hazard))
            })
            .collect();
        let unregistered = unregister(&space, &region);
        let mapped =
            readers.into_iter().map(|reader| reader.join().unwrap()).filter(|&mapped| mapped).count();
        assert!(unregistered || mapped > 0, "refused without a user");
    });
}

#[test]
fn a_reader_against_two_publications() {
    explore_to(3, || {
        let (space, _region) = space(1);
        let reader = {
            let space = space.clone();
            thread::spawn(move || map_once(&space, 0) | map_once(&space, 0))
        };
        space.publish(Snapshot::of(None));
        space.publish(Snapshot::of(None));
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_that_names_one_value_after_another_against_two_publications() {
    explore_to(3, || {
        let (space, _region) = space(1);
        let reader = {
            let space = space.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    refresh(&space, 0).read();
                }
                space.hazards[0].clear();
            })
        };
        space.publish(Snapshot::of(None));
        space.publish(Snapshot::of(None));
        reader.join().unwrap();
    });
}
