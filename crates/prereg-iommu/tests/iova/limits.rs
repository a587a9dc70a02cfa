//! Limits: the number of mappings, their size, the aperture.

use prereg::{Access, Errno, Iova, PageShift};
use prereg_iommu::iova::{Backing, IovaLimits, IovaMapError};

use crate::fixture::{Fixture, PAGE, iova, local};

#[test]
fn one_mapping_more_than_allowed_is_no_space_until_another_goes() {
    let fixture = Fixture::with(IovaLimits { mappings: 3, ..IovaLimits::default() });
    for at in 0..3 {
        fixture.map(at, 1, at).unwrap();
    }
    let error = fixture.map(3, 1, 3).unwrap_err();
    assert_eq!((error, error.errno()), (IovaMapError::Limit { limit: 3 }, Errno::ENOSPC));
    assert_eq!(fixture.map(0, 1, 0).unwrap_err().errno(), Errno::EEXIST, "what is in the way is said first");
    assert_eq!(fixture.mapped(), 3);
    let held = fixture.map.hold(iova(1), 1, Access::Read).unwrap();
    assert!(!fixture.map.unmap(iova(1), PAGE).unwrap().is_done());
    fixture.map(3, 1, 3).unwrap();
    drop(held);
}

#[test]
fn as_many_as_the_kernel_allows_can_live_at_once() {
    let count = if cfg!(miri) { 60 } else { 65_535 };
    let fixture = Fixture::with(IovaLimits { mappings: count, ..IovaLimits::default() });
    for at in 0..u64::from(count) {
        fixture.map(2 * at, 1, at % 64).unwrap();
    }
    assert_eq!(fixture.map(1, 1, 0).unwrap_err().errno(), Errno::ENOSPC);
    assert_eq!(fixture.mapped(), u64::from(count));
    let state = fixture.map.snapshot();
    assert_eq!((state.mappings, state.bytes), (u64::from(count), u128::from(u64::from(count) * PAGE)));
    let unmapping = fixture.map.unmap(iova(0), u64::from(count) * PAGE).unwrap();
    assert_eq!(unmapping.mappings(), u64::from(count).div_ceil(2));
    assert_eq!(fixture.map.unmap_all().mappings(), u64::from(count) / 2);
    assert_eq!(fixture.mapped(), 0);
}

#[test]
fn an_aperture_bounds_maps_and_not_unmaps() {
    let aperture = (iova(16), Iova::new(32 * PAGE - 1));
    let fixture = Fixture::with(IovaLimits { aperture, ..IovaLimits::default() });
    for (at, pages) in [(15, 1), (15, 2), (31, 2), (32, 1)] {
        let error = fixture.map(at, pages, 0).unwrap_err();
        assert!(matches!(error, IovaMapError::Aperture { .. }), "{error}");
        assert_eq!(error.errno(), Errno::EINVAL);
        assert_eq!(fixture.map.admits(iova(at), pages * PAGE), Err(error));
    }
    fixture.map(16, 16, 0).unwrap();
    assert_eq!(fixture.map.unmap(iova(0), 1 << 60).unwrap().mappings(), 1);
}

#[test]
fn larger_pages_ask_for_larger_alignment() {
    let fixture = Fixture::with(IovaLimits { page: PageShift::K64, ..IovaLimits::default() });
    let map = |at, bytes, to| fixture.map.map(Iova::new(at), bytes, local(to), Access::Read);
    assert_eq!(map(PAGE, 16 * PAGE, 0).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(map(0, PAGE, 0).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(map(0, 16 * PAGE, 1).unwrap_err().errno(), Errno::EINVAL);
    map(0, 16 * PAGE, 0).unwrap();
    map(16 * PAGE, 32 * PAGE, 16).unwrap();
    let remote = fixture.map.map(Iova::new(1 << 32), 1 << 16, Backing::Remote, Access::Read);
    remote.unwrap();
}
