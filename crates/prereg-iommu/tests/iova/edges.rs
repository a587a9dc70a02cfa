//! Edge cases: exact errors, offsets of mappings that do not begin at zero, retries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{Access, Iova, MapError, PageShift, UserAddr};
use prereg_iommu::iova::{
    Backing, HostSegment, IovaAccessError, IovaLimits, IovaMapError, LocalSegment, MemoryProvider,
    ProviderError,
};

use crate::fixture::{BASE, Fixture, PAGE, PAGES, iova, local};

/// Provides the region's pages, but unregistered memory for the first `misses` times.
struct Late {
    misses: u64,
    asked: AtomicU64,
}

impl Late {
    fn new(misses: u64) -> Arc<Self> {
        Arc::new(Self { misses, asked: AtomicU64::new(0) })
    }
}

impl MemoryProvider for Late {
    fn provide(&self, offset: u64, bytes: u64) -> Result<Vec<LocalSegment>, ProviderError> {
        let missed = self.asked.fetch_add(1, Ordering::SeqCst) < self.misses;
        let base = if missed { BASE + 2 * PAGES * PAGE } else { BASE };
        Ok(vec![LocalSegment { ua: UserAddr::new(base + offset), bytes, owner: None }])
    }
}

#[test]
fn limits_are_those_it_was_made_with() {
    let limits = IovaLimits {
        page: PageShift::K64,
        mappings: 5,
        segments: 9,
        aperture: (iova(16), Iova::new(0xff_ffff)),
    };
    assert_eq!(Fixture::with(limits).map.limits(), limits);
}

#[test]
fn each_bad_range_is_its_own_error() {
    let fixture = Fixture::new();
    let map = |at, bytes| fixture.map.map(Iova::new(at), bytes, local(0), Access::Read).unwrap_err();
    assert_eq!(map(0x1800, 0x800), IovaMapError::Misaligned { iova: Iova::new(0x1800), bytes: 0x800 });
    assert_eq!(map(0x1800, PAGE), IovaMapError::Misaligned { iova: Iova::new(0x1800), bytes: PAGE });
    assert_eq!(map(PAGE, 0), IovaMapError::Empty { iova: iova(1) });
    let top = Iova::new(u64::MAX - 0xfff);
    assert_eq!(map(top.raw(), 2 * PAGE), IovaMapError::Wraps { iova: top, bytes: 2 * PAGE });
    let hold = |at, bytes| fixture.map.hold(Iova::new(at), bytes, Access::Read).map(|_| ()).unwrap_err();
    assert_eq!(hold(PAGE, 0), IovaAccessError::Empty { iova: iova(1) });
    assert_eq!(hold(top.raw(), 2 * PAGE), IovaAccessError::Wraps { iova: top, bytes: 2 * PAGE });
}

#[test]
fn supplied_memory_is_asked_for_at_the_offset_in_its_mapping() {
    let fixture = Fixture::new();
    let supplier = Late::new(0);
    let backing = Backing::PerAccess(Arc::clone(&supplier) as Arc<dyn MemoryProvider>);
    fixture.map.map(iova(40), 8 * PAGE, backing, Access::Read).unwrap();
    let held = fixture.map.hold(Iova::new(43 * PAGE + 9), 16, Access::Read).unwrap();
    let piece = held.host_segments().next().unwrap();
    assert!(
        matches!(piece, HostSegment::Local { ua, bytes: 16, .. } if ua.raw() == BASE + 3 * PAGE + 9),
        "{piece:?}"
    );
}

#[test]
fn supplied_memory_that_is_not_registered_is_asked_for_again_but_not_for_ever() {
    let fixture = Fixture::new();
    let supplied = |at, misses| {
        let supplier = Late::new(misses);
        let backing = Backing::PerAccess(Arc::clone(&supplier) as Arc<dyn MemoryProvider>);
        fixture.map.map(iova(at), PAGE, backing, Access::Read).unwrap();
        let result = fixture.map.hold(iova(at), 8, Access::Read).map(|held| held.bytes());
        (result, supplier.asked.load(Ordering::SeqCst))
    };
    assert_eq!(supplied(0, 0), (Ok(8), 1));
    assert_eq!(supplied(1, 1), (Ok(8), 2));
    assert_eq!(supplied(2, 3), (Ok(8), 4));
    let (refused, asked) = supplied(3, u64::MAX);
    assert!(matches!(refused, Err(IovaAccessError::Memory(MapError::Unregistered { .. }))), "{refused:?}");
    assert_eq!(asked, 4, "once and three times more");
    assert_eq!((fixture.map.snapshot().accesses, fixture.mapped()), (0, 0));
}

#[test]
fn only_what_is_being_unmapped_is_said_to_be() {
    let fixture = Fixture::new();
    fixture.map(4, 4, 0).unwrap();
    let held = fixture.map.hold(iova(5), 8, Access::Read).unwrap();
    assert!(!fixture.map.unmap(iova(4), 4 * PAGE).unwrap().is_done());
    let refused = |at: u64| fixture.map.hold(Iova::new(at), 1, Access::Read).map(|_| ()).unwrap_err();
    for at in [4 * PAGE, 6 * PAGE, 8 * PAGE - 1] {
        assert_eq!(refused(at), IovaAccessError::Closing { iova: Iova::new(at) });
    }
    for at in [0, 4 * PAGE - 1, 8 * PAGE, 1 << 40] {
        assert_eq!(refused(at), IovaAccessError::Unmapped { iova: Iova::new(at) });
    }
    drop(held);
    assert_eq!(refused(4 * PAGE), IovaAccessError::Unmapped { iova: iova(4) });
}

#[test]
fn an_access_that_ends_at_a_segment_end_has_no_part_of_the_next() {
    let fixture = Fixture::new();
    let far = BASE + 4 * PAGES * PAGE;
    let _other = fixture.space.register(&fixture.host.memory(far, 8 * PAGE)).unwrap();
    let piece =
        |ua: u64, pages: u64| LocalSegment { ua: UserAddr::new(ua), bytes: pages * PAGE, owner: None };
    let pieces = vec![piece(BASE, 2), piece(far, 3), piece(BASE + 9 * PAGE, 1)];
    fixture.map.map(iova(50), 6 * PAGE, Backing::Segments(pieces), Access::ReadWrite).unwrap();
    let parts = |at: u64, bytes| {
        let held = fixture.map.hold(Iova::new(at), bytes, Access::Read).unwrap();
        let parts: Vec<_> = held
            .user_segments()
            .map(|stretch| match stretch {
                prereg_iommu::iova::UserSegment::Local { ua, bytes, .. } => (ua.raw(), bytes),
                _ => panic!("{stretch:?}"),
            })
            .collect();
        parts
    };
    assert_eq!(parts(50 * PAGE, 2 * PAGE), [(BASE, 2 * PAGE)]);
    assert_eq!(parts(52 * PAGE, 3 * PAGE), [(far, 3 * PAGE)]);
    assert_eq!(parts(52 * PAGE - 1, 2), [(BASE + 2 * PAGE - 1, 1), (far, 1)]);
    assert_eq!(parts(55 * PAGE, PAGE), [(BASE + 9 * PAGE, PAGE)]);
    assert_eq!(parts(55 * PAGE - 1, 1), [(far + 3 * PAGE - 1, 1)]);
}

#[test]
fn an_unmap_that_begins_and_ends_with_mappings_takes_them_all() {
    let fixture = Fixture::new();
    for at in [10, 12, 14] {
        fixture.map(at, 1, at).unwrap();
    }
    fixture.map(20, 2, 20).unwrap();
    let unmapping = fixture.map.unmap(iova(10), 5 * PAGE).unwrap();
    assert_eq!((unmapping.mappings(), unmapping.bytes()), (3, 3 * PAGE));
    let state = fixture.map.snapshot();
    assert_eq!((state.mappings, state.bytes, fixture.mapped()), (1, u128::from(2 * PAGE), 1));
}

#[test]
fn a_refreshed_map_lets_old_tables_go() {
    // Memory of the tables after the registrations, with and without a refresh at the end.
    let used = |refreshes: bool| {
        let fixture = Fixture::new();
        let register = |at: u64| {
            let memory = fixture.host.memory(BASE + (at << 30), PAGE);
            fixture.space.register(&memory).unwrap()
        };
        let registrations: Vec<_> = (1..20).map(register).collect();
        fixture.map(0, 1, 0).unwrap();
        fixture.map.refresh();
        registrations.into_iter().for_each(|registration| registration.unregister().unwrap());
        if refreshes {
            fixture.map.refresh();
        }
        let last = register(20);
        assert_eq!(fixture.map.hold(iova(0), 1, Access::Read).map(|held| held.bytes()), Ok(1));
        let used = fixture.space.snapshot().tables.used;
        drop(last);
        used
    };
    let (refreshed, idle) = (used(true), used(false));
    assert!(refreshed < idle, "{refreshed} bytes, and {idle} with the list of regions that are gone");
}
