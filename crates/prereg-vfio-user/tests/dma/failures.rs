//! Every port call fails once: nothing is left of its operation.

use prereg::{AddressSpace, Granule};
use prereg_sim::SimHost;
use prereg_vfio_user::server::{MemoryPolicy, MemoryStore};
use std::sync::Arc;

use crate::fixture::{Client, PAGE, sealed};
use crate::hooked::everywhere;

fn play(policy: MemoryPolicy, fail: u64) -> bool {
    let host = SimHost::new(Granule::K4);
    let store = Arc::new(MemoryStore::new(
        AddressSpace::builder(everywhere(&host, || Ok(()))).build().unwrap(),
        policy,
    ));
    let (_memory, fd) = sealed(32);
    let (_other_memory, other) = sealed(32);
    // Whole files are registered by their first map.
    let fd_of_two = if policy == MemoryPolicy::EAGER { &other } else { &fd };
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 1, &fd, 20).unwrap();
    let _ = one.dma.hold(crate::fixture::iova(0), 1, prereg::Access::Read).unwrap();
    let before = (host.pinned_pages(), host.charged_pages());
    host.fail_nth(fail);
    let mapped = two.map(0, 16, fd_of_two, 2).and_then(|()| {
        // Memory at first use fails here instead.
        let held = two.dma.hold(crate::fixture::iova(1), 14 * PAGE, prereg::Access::Read);
        held.map(|_| ()).map_err(|_| prereg_vfio_user::server::MapMemoryError::Disconnected)
    });
    let failed = host.has_failed();
    host.fail_nth(0);
    assert_eq!(mapped.is_err(), failed);
    if failed {
        assert_eq!((host.pinned_pages(), host.charged_pages()), before, "after failing call {fail}");
        assert_eq!(two.space.snapshot().iova.accesses, 0);
        // Without the failure it succeeds.
        if two.space.snapshot().iova.mappings == 0 {
            two.map(0, 16, fd_of_two, 2).unwrap();
        }
        assert!(two.dma.hold(crate::fixture::iova(1), 14 * PAGE, prereg::Access::Read).is_ok());
    }
    drop((one, two));
    host.assert_clean();
    failed
}

#[test]
fn a_failed_call_leaves_nothing() {
    for policy in [
        MemoryPolicy::EAGER,
        MemoryPolicy::EAGER.with_extent(4 * PAGE),
        MemoryPolicy::FIRST_USE.with_extent(8 * PAGE),
    ] {
        let failures = (1..).take_while(|&fail| play(policy, fail)).count();
        let expected = if policy == MemoryPolicy::EAGER { 2 } else { 4 };
        assert!(failures >= expected, "{failures} calls for {policy:?}");
    }
}
