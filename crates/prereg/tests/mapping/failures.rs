//! The failure sweep: every port call of every operation fails in turn, the 1st, the 2nd, ... until the operation
//! succeeds; after each failure the host and the state are unchanged (contract clause 10).

use prereg::{
    Access, AddressSpace, EntryBlock, Granule, Holder, PageShift, RegisterError, SpaceState, UserAddr,
};
use prereg_sim::SimHost;

const A: u64 = 0x7f00_0000_0000;

/// The state that must not change when an operation fails.
#[derive(PartialEq, Debug)]
struct Before {
    space: SpaceState,
    pinned: u64,
    charged: u64,
}

fn see(host: &SimHost, space: &AddressSpace) -> Before {
    Before { space: space.snapshot(), pinned: host.pinned_pages(), charged: host.charged_pages() }
}

/// Runs `operation` with the n-th port call failing, for n = 1, 2, ... until it succeeds. Returns the number of calls that
/// can fail.
fn sweep<T>(
    host: &SimHost,
    space: &AddressSpace,
    mut operation: impl FnMut() -> Result<T, RegisterError>,
) -> (u64, T) {
    for n in 1.. {
        let before = see(host, space);
        host.fail_nth(n);
        let result = operation();
        let failed = host.has_failed();
        host.fail_nth(0);
        match result {
            Ok(value) => {
                assert!(!failed, "outside call {n} failed and the operation returned no error");
                return (n - 1, value);
            }
            Err(error) => {
                assert!(failed, "failed without a cause: {error}");
                assert_eq!(see(host, space), before, "after outside call {n} failed");
            }
        }
    }
    unreachable!("some n is past the last call")
}

fn set_up() -> (SimHost, AddressSpace) {
    let host = SimHost::new(Granule::K4);
    (host.clone(), super::builder(host).build().unwrap())
}

#[test]
fn register_charges_then_pins_and_gives_both_back() {
    let (host, space) = set_up();
    let memory = host.memory(A, 64 << 12);
    let (calls, registration) = sweep(&host, &space, || space.register(&memory));
    assert_eq!(calls, 2, "one charge, one pin");
    drop(registration);
    host.assert_clean();
}

#[test]
fn register_beside_others_leaves_them_alone() {
    let (host, space) = set_up();
    let _left = space.register(&host.memory(A, 16 << 12)).unwrap();
    let _right = space.register(&host.memory(A + (32 << 12), 16 << 12)).unwrap();
    let mut t = space.translator();
    let held = t.map(UserAddr::new(A), PageShift::K4).unwrap();
    let between = host.memory(A + (16 << 12), 16 << 12);
    let (calls, _) = sweep(&host, &space, || space.register_new(&between));
    assert_eq!(calls, 2);
    assert_eq!(Some(held.hpa()), host.backs(A));
}

#[test]
fn sharing_makes_no_outside_call() {
    let (host, space) = set_up();
    let memory = host.memory(A, 16 << 12);
    let _first = space.register(&memory).unwrap();
    let (calls, again) = sweep(&host, &space, || space.register(&memory));
    assert_eq!(calls, 0);
    assert_eq!(again.state().unwrap().used, 2);
}

#[test]
fn unregister_map_and_cleanup_have_nothing_that_can_fail() {
    let (host, space) = set_up();
    let memory = host.memory(A, 16 << 12);
    // Every port call from here on is set to fail in turn; those that release cannot.
    for n in 1..8 {
        let registration = space.register(&memory).unwrap();
        let other = space.register(&memory).unwrap();
        host.fail_nth(n);
        let mut t = space.translator();
        let mapping = t.map(UserAddr::new(A), PageShift::K4).unwrap();
        let block = EntryBlock::new(&space, PageShift::K4, 4, Holder::default()).unwrap();
        block.set(&mut t, 0, UserAddr::new(A + 0x1000), Access::ReadWrite).unwrap();
        block.clear(&mut t, 0).unwrap();
        block.set(&mut t, 1, UserAddr::new(A + 0x1000), Access::ReadWrite).unwrap();
        other.unregister().unwrap();
        let registration = registration.unregister().unwrap_err().into_inner();
        drop(block);
        drop(mapping);
        registration.unregister().unwrap();
        assert!(!host.has_failed());
        host.fail_nth(0);
        host.assert_clean();
    }
    let _registration = space.register(&memory).unwrap();
    host.fail_nth(1);
    drop(space);
    assert!(!host.has_failed());
    host.assert_clean();
}
