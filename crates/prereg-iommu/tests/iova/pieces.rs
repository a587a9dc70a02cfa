//! Segments of memory: their limit, and when their owners are dropped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Weak, mpsc};
use std::time::Duration;

use prereg::{Access, Errno, PageShift, UserAddr};
use prereg_iommu::iova::{
    Backing, IovaAccessError, IovaLimits, IovaMapError, LocalSegment, MemoryProvider, ProviderError,
};

use crate::fixture::{BASE, Fixture, PAGE, iova, ua};

/// Provides the region in segments of a page.
struct Scattered;

impl MemoryProvider for Scattered {
    fn provide(&self, offset: u64, bytes: u64) -> Result<Vec<LocalSegment>, ProviderError> {
        Ok(pages(offset / PAGE, bytes / PAGE))
    }
}

fn pages(from: u64, count: u64) -> Vec<LocalSegment> {
    (from..from + count).map(|page| LocalSegment { ua: ua(page), bytes: PAGE, owner: None }).collect()
}

fn on_demand(piece: u32) -> Backing {
    Backing::OnDemand { provider: Arc::new(Scattered), block: PageShift::new(piece).unwrap(), skip: 0 }
}

fn limited(segments: u64) -> Fixture {
    Fixture::with(IovaLimits { segments, ..IovaLimits::default() })
}

#[test]
fn one_segment_above_the_limit_is_no_space_until_a_mapping_has_drained() {
    let fixture = limited(5);
    let map =
        |at, count| fixture.map.map(iova(at), count * PAGE, Backing::Segments(pages(0, count)), Access::Read);
    map(0, 3).unwrap();
    fixture.map(10, 8, 0).unwrap();
    let error = map(20, 2).unwrap_err();
    assert_eq!(error, IovaMapError::SegmentLimit { segments: 2, used: 4, limit: 5 });
    assert_eq!((error.errno(), fixture.map.snapshot().segments, fixture.mapped()), (Errno::ENOSPC, 4, 4));
    fixture.map.map(iova(20), PAGE, Backing::Remote, Access::Read).unwrap();
    // Memory that is not mapped is not counted.
    let missing = Backing::Segment(LocalSegment { ua: UserAddr::new(BASE - PAGE), bytes: PAGE, owner: None });
    assert_eq!(fixture.map.map(iova(30), PAGE, missing, Access::Read).unwrap_err().errno(), Errno::EFAULT);
    let held = fixture.map.hold(iova(0), PAGE, Access::Read).unwrap();
    assert!(!fixture.map.unmap(iova(0), 3 * PAGE).unwrap().is_done());
    assert!(map(40, 2).is_err(), "the access still holds the three");
    drop(held);
    map(40, 2).unwrap();
    let _ = fixture.map.unmap_all();
    assert_eq!((fixture.map.snapshot().segments, fixture.mapped()), (0, 0));
}

#[test]
fn memory_on_demand_counts_when_it_is_mapped_and_its_parts_when_they_are_supplied() {
    let fixture = limited(8);
    let map = |at, count, piece| fixture.map.map(iova(at), count * PAGE, on_demand(piece), Access::Read);
    map(0, 8, 14).unwrap();
    assert_eq!(fixture.map.snapshot().segments, 2);
    assert_eq!(map(100, 7, 12).unwrap_err(), IovaMapError::SegmentLimit { segments: 7, used: 2, limit: 8 });
    // Four segments instead of one.
    let _ = fixture.map.hold(iova(1), PAGE, Access::Read).unwrap();
    assert_eq!((fixture.map.snapshot().segments, fixture.mapped()), (5, 4));
    map(100, 1, 12).unwrap();
    let refused = fixture.map.hold(iova(4), PAGE, Access::Read).map(drop).unwrap_err();
    let full = ProviderError { errno: Errno::ENOSPC };
    assert_eq!(refused, IovaAccessError::Provider { iova: iova(4), error: full });
    assert_eq!((fixture.map.snapshot().segments, fixture.mapped()), (6, 4));
    assert!(fixture.map.unmap(iova(100), PAGE).unwrap().is_done());
    let _ = fixture.map.hold(iova(4), PAGE, Access::Read).unwrap();
    assert_eq!((fixture.map.snapshot().segments, fixture.mapped()), (8, 8));
    let _ = fixture.map.unmap_all();
    assert_eq!((fixture.map.snapshot().segments, fixture.mapped()), (0, 0));
}

/// Provides like [`Scattered`], to two threads at the same time.
struct Met(Barrier);

impl MemoryProvider for Met {
    fn provide(&self, offset: u64, bytes: u64) -> Result<Vec<LocalSegment>, ProviderError> {
        self.0.wait();
        Scattered.provide(offset, bytes)
    }
}

#[test]
fn a_block_that_two_threads_provide_counts_once() {
    let fixture = limited(8);
    let provider = Arc::new(Met(Barrier::new(2)));
    let backing = Backing::OnDemand { provider, block: PageShift::new(14).unwrap(), skip: 0 };
    fixture.map.map(iova(0), 8 * PAGE, backing, Access::Read).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert!(fixture.map.hold(iova(1), PAGE, Access::Read).unwrap().is_local()));
        }
    });
    // Four segments instead of one, and the other block.
    assert_eq!((fixture.map.snapshot().segments, fixture.mapped()), (5, 4));
}

/// An owner of memory whose drop uses the map.
struct Looks {
    fixture: Weak<Fixture>,
    dropped: Arc<AtomicU64>,
}

impl Drop for Looks {
    fn drop(&mut self) {
        if let Some(fixture) = self.fixture.upgrade() {
            let _ = fixture.map.snapshot();
            let _ = fixture.map.map(iova(999), PAGE, Backing::Remote, Access::Read);
            self.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Provides memory that is not registered.
struct Unregistered(Weak<Fixture>, Arc<AtomicU64>);

impl MemoryProvider for Unregistered {
    fn provide(&self, _: u64, _: u64) -> Result<Vec<LocalSegment>, ProviderError> {
        Ok(unregistered(&self.0, &self.1))
    }
}

/// A page that is registered and two that are not, each with an owner.
fn unregistered(fixture: &Weak<Fixture>, dropped: &Arc<AtomicU64>) -> Vec<LocalSegment> {
    let owner = || Looks { fixture: Weak::clone(fixture), dropped: Arc::clone(dropped) };
    [BASE, BASE - PAGE, BASE - 2 * PAGE]
        .map(|at| LocalSegment { ua: UserAddr::new(at), bytes: PAGE, owner: Some(Arc::new(owner())) })
        .to_vec()
}

#[test]
fn owners_of_memory_that_cannot_be_mapped_are_dropped_without_a_lock() {
    let (done, is_done) = mpsc::channel();
    // Joined only if it ends: with the lock held it would deadlock.
    let thread = std::thread::spawn(move || {
        let fixture = Arc::new(Fixture::new());
        let (weak, dropped) = (Arc::downgrade(&fixture), Arc::new(AtomicU64::new(0)));
        let refused = |at, bytes, to| fixture.map.map(iova(at), bytes, to, Access::Read).unwrap_err().errno();
        assert_eq!(refused(0, 3 * PAGE, Backing::Segments(unregistered(&weak, &dropped))), Errno::EFAULT);
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
        let last = unregistered(&weak, &dropped).pop().unwrap();
        assert_eq!(refused(0, PAGE, Backing::Segment(last)), Errno::EFAULT);
        assert_eq!(dropped.load(Ordering::SeqCst), 6);
        let supply = Arc::new(Unregistered(Weak::clone(&weak), Arc::clone(&dropped)));
        fixture.map.map(iova(0), 3 * PAGE, Backing::PerAccess(supply), Access::Read).unwrap();
        assert!(fixture.map.hold(iova(0), 3 * PAGE, Access::Read).is_err());
        assert_eq!(dropped.load(Ordering::SeqCst) % 3, 0);
        assert_eq!(fixture.mapped(), 0);
        done.send(()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(60)), Ok(()));
    thread.join().unwrap();
}
