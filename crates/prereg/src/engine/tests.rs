//! Internal state of an address space: how many regions drain, which fences and tables it uses, what the inlined path serves.

#![expect(unsafe_code, reason = "a host and a barrier are promises of their implementers")]

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::addr::{HostAddr, PageShift, UserAddr, UserRange};
use crate::engine::register::{Backing, RegisterMode};
use crate::engine::release::Claim;
use crate::lookup::holder::Holder;
use crate::lookup::pages::{DirtyPages, PageSink};
use crate::lookup::region::MapError;
use crate::port::{AddressKind, ChargeError, PinError, PinId};
use crate::space::AddressSpace;
use crate::table_memory::{HeapTables, TableMemory};
use crate::translator::Translator;

const A: u64 = 0x4000_0000;

/// A host for device memory, which is not pinned.
#[derive(Default)]
struct Host {
    barrier: Option<Arc<Fences>>,
    tables: Option<Arc<HeapTables>>,
}

// SAFETY: pins nothing.
unsafe impl Pin for Host {
    fn name(&self) -> &'static str {
        "device memory only"
    }

    fn granule(&self) -> Granule {
        Granule::K4
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }

    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        self.barrier.clone().map(|barrier| barrier as Arc<dyn Barrier>)
    }

    fn tables(&self) -> Option<Arc<dyn TableMemory>> {
        self.tables.clone().map(|tables| tables as Arc<dyn TableMemory>)
    }

    fn pin(&self, range: UserRange, _pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        Err(PinError::Unsupported { ua: range.first(), why: "this host pins nothing" })
    }

    fn unpin(&self, _pin: PinId, _range: UserRange, _dirty: DirtyPages<'_>) {}
}

impl Charge for Host {
    fn charge(&self, _pages: u64) -> Result<(), ChargeError> {
        Ok(())
    }

    fn uncharge(&self, _pages: u64) {}
}

/// Counts the fences asked for. Each test here has one thread, which needs none.
#[derive(Default)]
struct Fences(AtomicU64);

// SAFETY: no other thread uses the address space.
unsafe impl Barrier for Fences {
    fn all_threads(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn register(engine: &Engine, page: u64) -> Claim {
    let backing = || Backing::Device(HostAddr::new(0x8000_0000));
    let ua = UserAddr::new(A + (page << 12));
    engine.register(ua, 0x1000, RegisterMode::ShareOrNew, Holder::default(), backing).expect("a free page")
}

fn map(t: &mut Translator, page: u64) -> crate::lookup::region::Mapping {
    t.map(UserAddr::new(A + (page << 12)), PageShift::K4).expect("a registered page")
}

/// The number of draining regions, in the registry and in the copy outside the lock.
fn draining(engine: &Engine) -> (u64, u64) {
    let registry = engine.registry.lock();
    (registry.draining, engine.draining.load(Ordering::Relaxed))
}

#[test]
fn the_number_of_draining_regions_follows_each_of_them() {
    let space = AddressSpace::builder(Host::default()).build().unwrap();
    let engine = space.engine();
    let mut t = space.translator();
    let claims = [1, 2, 3].map(|page| register(engine, page));
    let mappings = [1, 2, 3].map(|page| map(&mut t, page));
    assert_eq!(draining(engine), (0, 0));
    for (index, claim) in claims.into_iter().enumerate() {
        assert!(!engine.release_when_idle(claim));
        assert_eq!(draining(engine), (index as u64 + 1, index as u64 + 1));
    }
    let again = register(engine, 2);
    assert_eq!(draining(engine), (2, 2), "one came back to life");
    let shared = engine.share(UserAddr::new(A + 0x3000), 0x1000, Holder::default()).unwrap();
    assert_eq!(draining(engine), (1, 1), "another, by a share");
    let [one, two, three] = mappings;
    drop(one);
    assert_eq!(draining(engine), (0, 0), "released");
    assert!(!engine.release_when_idle(again));
    engine.close();
    assert_eq!(draining(engine), (2, 2), "the owner went: the one that drained already counts once");
    drop((two, three, t));
    assert_eq!(draining(engine), (0, 0));
    assert!(!engine.is_draining(shared));
}

#[test]
fn the_inlined_path_serves_what_the_index_covers_where_mapping_passes_no_fence() {
    for asymmetric in [false, true] {
        let host = Host { barrier: asymmetric.then(Arc::default), tables: None };
        let space = AddressSpace::builder(host).build().unwrap();
        let [first, _second] = [1, 2].map(|page| register(space.engine(), page));
        let mut t = space.translator();
        for page in [1, 2] {
            let ua = UserAddr::new(A + (page << 12));
            let found = t.path.load_entry(ua);
            // The page index needs pointers of 64 bits; elsewhere regions are found by search.
            assert_eq!(found.is_some_and(|entry| !entry.is_null()), cfg!(target_pointer_width = "64"));
            assert_eq!(t.path.load_entry_fast(ua), found.filter(|_| asymmetric));
        }
        // Either way a mapping counts, and none is made while its region drains.
        let mapping = map(&mut t, 1);
        assert_eq!(mapping.hpa(), HostAddr::new(0x8000_0000));
        assert!(!space.engine().release_when_idle(first));
        let ua = UserAddr::new(A + 0x1000);
        assert_eq!(t.map(ua, PageShift::K4).unwrap_err(), MapError::Closing { ua });
        drop(mapping);
    }
}

#[test]
fn fences_and_tables_are_the_hosts_unless_others_are_given() {
    let (barrier, tables) = (Arc::new(Fences::default()), Arc::new(HeapTables::new()));
    let host = Host { barrier: Some(barrier.clone()), tables: Some(tables.clone()) };
    let space = AddressSpace::builder(host).build().unwrap();
    assert_eq!(space.engine().fence_mode(), FenceMode::Asymmetric);
    assert!(tables.state().used > 0);
    assert_eq!(space.snapshot().tables, tables.state());
    let _t = space.translator();
    space.engine().release(register(space.engine(), 1)).unwrap();
    assert_eq!(barrier.0.load(Ordering::Relaxed), 1);
}
