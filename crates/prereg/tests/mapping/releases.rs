//! Releases and their cost: the call that unpins, the number of fences of a close, and no confusion of regions, slots and
//! counters with earlier ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{
    AddressSpace, Barrier, Errno, Granule, Holder, HolderKind, PageShift, Registration, Translator, UserAddr,
};
use prereg_sim::{SimHost, SimMemory};

const A: u64 = 0x7f00_0000_0000;
const K4: PageShift = PageShift::K4;
/// Too far away for the index that covers `A`, so a region there is listed in a snapshot.
const FAR: u64 = 0x5500_0000_0000;

fn set_up() -> (SimHost, AddressSpace, SimMemory) {
    let host = SimHost::new(Granule::K4);
    let memory = host.memory(A, 16 << 12);
    (host.clone(), super::builder(host).build().unwrap(), memory)
}

fn a(page: u64) -> UserAddr {
    UserAddr::new(A + (page << 12))
}

fn other(container: u64) -> Holder {
    Holder { container, kind: HolderKind::InFlight }
}

#[test]
fn a_translator_of_another_space_releases_a_drained_region_at_once() {
    let (host, space, memory) = set_up();
    let (_, elsewhere, _) = set_up();
    let registration = space.register(&memory).unwrap();
    let mapping = space.translator().map(a(0), K4).unwrap();
    drop(registration);
    elsewhere.translator().unmap(mapping);
    assert_eq!(host.pinned_pages(), 0, "as a drop of the mapping does");
    host.assert_clean();
}

#[test]
fn no_translator_of_the_space_releases_a_drained_region() {
    for (holder, page_last) in [(Holder::default(), false), (Holder::default(), true), (other(1), true)] {
        let (host, space, memory) = set_up();
        let registration = space.register(&memory).unwrap();
        let (mut t, mut u) = (space.translator(), space.translator_for(holder));
        let (page, range) = (t.map(a(0), K4).unwrap(), t.map_range(a(0), 3 << 12).unwrap());
        drop(registration);
        if page_last {
            t.unmap_range(range);
            u.unmap(page);
        } else {
            u.unmap(page);
            t.unmap_range(range);
        }
        assert_eq!(host.pinned_pages(), 16, "unmap makes no system call");
        space.reap();
        assert_eq!(host.pinned_pages(), 0);
        host.assert_clean();
    }
}

#[test]
fn a_drain_is_done_when_its_region_is_gone_whatever_came_after() {
    let (host, space, memory) = set_up();
    let mut t = space.translator();
    let drain = |registration: Registration, t: &mut Translator| {
        let mapping = t.map(a(0), K4).unwrap();
        (registration.drain(), mapping)
    };
    let (first, mapping) = drain(space.register(&memory).unwrap(), &mut t);
    assert!(!first.is_done());
    drop(mapping);
    assert!(first.is_done());
    let (second, mapping) = drain(space.register(&memory).unwrap(), &mut t);
    assert!(first.is_done(), "another region drains at the same place");
    assert!(!second.is_done());
    drop(mapping);
    second.wait();
    host.assert_clean();
}

#[test]
fn a_large_page_of_a_region_that_went_unseen_is_unregistered() {
    let (host, space, _) = set_up();
    let _standing = space.register(&host.memory(A + (16 << 12), 64 << 12)).unwrap();
    let scattered = host.range(FAR, 16 << 12);
    for page in 0..16 {
        host.memory(FAR + (page << 12), 1 << 12);
        host.memory(A + ((100 + 2 * page) << 12), 1 << 12);
    }
    let registration = space.register(&scattered).unwrap();
    let mut t = space.translator();
    let large = PageShift::K64;
    let error = t.map(UserAddr::new(FAR), large).unwrap_err();
    assert!(matches!(error, prereg::MapError::TooLarge { .. }), "{error}");
    registration.unregister().unwrap();
    let error = t.map(UserAddr::new(FAR), large).unwrap_err();
    assert!(matches!(error, prereg::MapError::Unregistered { .. }), "{error}");
}

#[test]
fn regions_that_come_and_go_in_the_index_are_freed_though_translators_are_idle() {
    let (host, space, _) = set_up();
    let (_below, _above) = (
        space.register(&host.memory(A + (16 << 12), 16 << 12)).unwrap(),
        space.register(&host.memory(A + (48 << 12), 16 << 12)).unwrap(),
    );
    let (_idle, mut busy) = (space.translator_for(other(1)), space.translator());
    let between = host.memory(A + (32 << 12), 16 << 12);
    for _ in 0..if cfg!(miri) { 70 } else { 400 } {
        let registration = space.register(&between).unwrap();
        let mapping = busy.map(a(37), K4).unwrap();
        busy.unmap(mapping);
        registration.unregister().unwrap();
    }
    let kept = space.snapshot().unreclaimed;
    assert!(kept <= 3 * 64, "{kept} regions are kept");
}

#[test]
fn a_break_inside_a_large_page_counts_where_user_and_host_addresses_are_aligned_alike() {
    let (host, space, _) = set_up();
    // One page at the beginning of a large one on the host, then 15 pages that follow the beginning of another.
    let large = 1 << 21;
    let at = A + (1 << 30);
    host.map(at + (1 << 28), large, prereg_sim::MapSpec::huge(PageShift::M2));
    host.map(at + (1 << 29), large, prereg_sim::MapSpec::huge(PageShift::M2));
    host.map_alias(at, at + (1 << 28), 0x1000);
    host.map_alias(at + 0x1000, at + (1 << 29) + 0x1000, 0xf000);
    let registration = space.register(&host.range(at, 0x1_0000)).unwrap();
    assert_eq!(registration.largest_page(), K4);
    assert_eq!(registration.largest_page_in(UserAddr::new(at), 0x1_0000), Some(K4));
    assert_eq!(registration.largest_page_in(UserAddr::new(at + 0x8000), 0x8000), PageShift::new(15));
}

/// Fences by the standard barrier, counted.
struct Counted(Arc<dyn Barrier>, AtomicU64);

// SAFETY: guaranteed by the inner barrier.
#[expect(unsafe_code, reason = "counts the calls of a barrier")]
unsafe impl Barrier for Counted {
    fn all_threads(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.all_threads();
    }
}

#[test]
fn closing_fences_all_threads_once_and_only_when_there_are_translators() {
    let barrier = Arc::new(Counted(crate::process_fence::process_fence(), AtomicU64::new(0)));
    let host = SimHost::new(Granule::K4);
    let space = AddressSpace::builder(host.clone()).barrier(barrier.clone()).build().unwrap();
    let register = |page: u64| space.register(&host.memory(A + (page << 12), 1 << 12)).unwrap();
    let fences = |act: &mut dyn FnMut()| {
        let before = barrier.1.load(Ordering::SeqCst);
        act();
        barrier.1.load(Ordering::SeqCst) - before
    };
    let alone = register(0);
    let mut alone = Some(alone);
    assert_eq!(fences(&mut || alone.take().unwrap().unregister().unwrap()), 0, "no thread maps");

    let mut t = space.translator();
    let mut one = Some(register(1));
    assert_eq!(fences(&mut || one.take().unwrap().unregister().unwrap()), 1);
    let mut many: Vec<_> = (2..10).map(register).collect();
    assert_eq!(
        fences(&mut || assert!(Registration::unregister_many(std::mem::take(&mut many)).is_empty())),
        1
    );
    let mut busy = vec![register(10)];
    let mapping = t.map(a(10), K4).unwrap();
    let mut refused = Vec::new();
    assert_eq!(
        fences(&mut || refused = Registration::unregister_many(std::mem::take(&mut busy))),
        0,
        "a plain sum refuses"
    );
    assert_eq!(refused[0].errno(), Errno::EBUSY);
    t.unmap(mapping);
    drop(refused);
    let mut drained = Some(register(11));
    assert_eq!(fences(&mut || drop(drained.take().unwrap().drain())), 1);
    drop(t);
    host.assert_clean();
}
