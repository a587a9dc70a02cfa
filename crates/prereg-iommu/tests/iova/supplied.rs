//! Memory that a provider registers at each access, or on demand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use prereg::{Access, Errno, Iova, UserAddr};
use prereg_iommu::iova::{
    Backing, HostSegment, IovaAccessError, LocalSegment, MemoryProvider, ProviderError, UserSegment,
};

use crate::fixture::{BASE, Fixture, PAGE, iova};

#[derive(Default)]
struct Supplier {
    asked: Mutex<Vec<(u64, u64)>>,
    fails: AtomicBool,
    short: AtomicBool,
}

impl MemoryProvider for Supplier {
    fn provide(&self, offset: u64, bytes: u64) -> Result<Vec<LocalSegment>, ProviderError> {
        self.asked.lock().unwrap().push((offset, bytes));
        if self.fails.load(Ordering::SeqCst) {
            return Err(ProviderError { errno: Errno::ENOMEM });
        }
        let bytes = if self.short.load(Ordering::SeqCst) { bytes - 1 } else { bytes };
        let ua = UserAddr::new(BASE + offset);
        Ok(vec![LocalSegment { ua, bytes, owner: Some(Arc::new("whose")) }])
    }
}

#[test]
fn nothing_is_counted_before_the_access_and_only_what_it_touches_then() {
    let fixture = Fixture::new();
    let supplier = Arc::new(Supplier::default());
    let backing = || Backing::PerAccess(Arc::clone(&supplier) as Arc<dyn MemoryProvider>);
    fixture.map.map(iova(0), 8 * PAGE, backing(), Access::ReadWrite).unwrap();
    fixture.map(8, 1, 60).unwrap();
    assert_eq!(fixture.mapped(), 1);
    let held = fixture.map.hold(Iova::new(7 * PAGE + 5), PAGE, Access::Read).unwrap();
    assert_eq!(*supplier.asked.lock().unwrap(), [(7 * PAGE + 5, PAGE - 5)]);
    assert_eq!(fixture.mapped(), 3 - 1, "one by the mapping beside it, one by the access");
    let (first, owner) = held.host_segments_with_owners().next().unwrap();
    assert!(
        matches!(first, HostSegment::Local { ua, bytes, .. } if (ua.raw(), bytes) == (BASE + 7 * PAGE + 5, PAGE - 5))
    );
    assert_eq!(owner.unwrap().downcast_ref::<&str>(), Some(&"whose"));
    assert!(held.is_local());
    let unmapping = fixture.map.unmap_all();
    assert!(!unmapping.is_done());
    drop(held);
    assert!(unmapping.is_done());
    assert_eq!(fixture.mapped(), 0);
}

#[test]
fn what_cannot_be_supplied_is_not_held() {
    let fixture = Fixture::new();
    let supplier = Arc::new(Supplier::default());
    let backing = Backing::PerAccess(Arc::clone(&supplier) as Arc<dyn MemoryProvider>);
    fixture.map.map(iova(0), 100 * PAGE, backing, Access::ReadWrite).unwrap();
    let hold = |at, bytes| fixture.map.hold(iova(at), bytes, Access::Read).map(|held| held.bytes());
    assert_eq!(hold(0, 8), Ok(8));
    // Not registered there.
    assert_eq!(hold(64, 8).unwrap_err().errno(), Errno::EFAULT);
    supplier.short.store(true, Ordering::SeqCst);
    assert_eq!(hold(0, 8).unwrap_err().errno(), Errno::EIO);
    supplier.fails.store(true, Ordering::SeqCst);
    let refused = hold(3, 8).unwrap_err();
    assert!(matches!(refused, IovaAccessError::Provider { .. }), "{refused}");
    assert_eq!(refused.errno(), Errno::ENOMEM);
    let state = fixture.map.snapshot();
    assert_eq!((state.accesses, fixture.mapped()), (0, 0));
    assert!(fixture.map.unmap_all().is_done());
}

#[test]
fn on_demand_each_block_is_asked_for_once_and_kept() {
    let fixture = Fixture::new();
    let supplier = Arc::new(Supplier::default());
    let supply = Arc::clone(&supplier) as Arc<dyn MemoryProvider>;
    // Blocks of four pages; the mapping begins in the third page of one.
    let piece = prereg::PageShift::new(14).unwrap();
    let backing = Backing::OnDemand { provider: supply, block: piece, skip: 2 * PAGE };
    fixture.map.map(iova(0), 11 * PAGE, backing, Access::ReadWrite).unwrap();
    assert_eq!(fixture.mapped(), 0);
    let asked = || supplier.asked.lock().unwrap().clone();
    let held = fixture.map.hold(Iova::new(PAGE + 8), 4 * PAGE, Access::Read).unwrap();
    assert_eq!(
        asked(),
        [(0, 2 * PAGE), (2 * PAGE, 4 * PAGE)],
        "whole pieces, as far as the mapping has them"
    );
    let found: Vec<_> = held
        .user_segments()
        .map(|stretch| match stretch {
            UserSegment::Local { ua, bytes, .. } => (ua.raw() - BASE, bytes),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(found, [(PAGE + 8, PAGE - 8), (2 * PAGE, 3 * PAGE + 8)]);
    drop(held);
    assert_eq!(fixture.mapped(), 2, "kept by the mapping");
    for at in 0..6 {
        assert!(fixture.map.hold(iova(at), PAGE, Access::Write).unwrap().is_local());
    }
    assert_eq!(asked().len(), 2);
    drop(fixture.map.hold(iova(10), PAGE, Access::Read).unwrap());
    assert_eq!(asked()[2..], [(10 * PAGE, PAGE)], "the last piece is as long as the mapping");
    assert!(fixture.map.unmap(iova(0), 11 * PAGE).unwrap().is_done());
    assert_eq!(fixture.mapped(), 0);
}

#[test]
fn on_demand_a_failed_block_is_asked_for_again_and_the_others_work() {
    let fixture = Fixture::new();
    let supplier = Arc::new(Supplier::default());
    let supply = Arc::clone(&supplier) as Arc<dyn MemoryProvider>;
    let piece = prereg::PageShift::new(14).unwrap();
    fixture
        .map
        .map(
            iova(0),
            16 * PAGE,
            Backing::OnDemand { provider: supply, block: piece, skip: 0 },
            Access::ReadWrite,
        )
        .unwrap();
    let hold = |at| fixture.map.hold(iova(at), PAGE, Access::Read).map(|held| held.bytes());
    assert_eq!(hold(0), Ok(PAGE));
    supplier.fails.store(true, Ordering::SeqCst);
    assert_eq!(hold(5).unwrap_err().errno(), Errno::ENOMEM);
    assert_eq!(hold(1), Ok(PAGE));
    supplier.fails.store(false, Ordering::SeqCst);
    assert_eq!(hold(5), Ok(PAGE));
    assert!(fixture.map.unmap_all().is_done());
    assert_eq!((fixture.mapped(), fixture.map.snapshot().accesses), (0, 0));
}

#[test]
fn a_block_is_found_by_its_place_in_the_mapping_wherever_that_begins() {
    let fixture = Fixture::new();
    let supplier = Arc::new(Supplier::default());
    let provider = Arc::clone(&supplier) as Arc<dyn MemoryProvider>;
    let block = prereg::PageShift::new(14).unwrap();
    let backing = Backing::OnDemand { provider, block, skip: 0 };
    fixture.map.map(iova(4), 12 * PAGE, backing, Access::ReadWrite).unwrap();
    // The last block is provided, then the first.
    for (at, offset) in [(12, 8 * PAGE), (4, 0)] {
        let held = fixture.map.hold(iova(at), PAGE, Access::Read).unwrap();
        let segments: Vec<_> = held.user_segments().collect();
        assert!(
            matches!(segments[..], [UserSegment::Local { ua, bytes: PAGE, .. }] if ua.raw() == BASE + offset),
            "{segments:?}"
        );
    }
    assert_eq!(*supplier.asked.lock().unwrap(), [(8 * PAGE, 4 * PAGE), (0, 4 * PAGE)]);
}
