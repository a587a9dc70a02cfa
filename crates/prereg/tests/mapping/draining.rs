//! Regions whose registrations are dropped while they are mapped: deferred release, waiting, registering again.

use std::future::IntoFuture;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};

use prereg::{
    AddressSpace, Errno, Granule, Holder, HolderKind, HolderTotal, PageShift, Registration, UserAddr,
};
use prereg_sim::{SimHost, SimMemory};

const A: u64 = 0x7f00_0000_0000;
const K4: PageShift = PageShift::K4;

fn set_up() -> (SimHost, AddressSpace, SimMemory) {
    let host = SimHost::new(Granule::K4);
    let memory = host.memory(A, 16 << 12);
    (host.clone(), super::builder(host).build().unwrap(), memory)
}

fn a(page: u64) -> UserAddr {
    UserAddr::new(A + (page << 12))
}

#[test]
fn a_dropped_registration_is_released_by_the_last_unmap() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mut t = space.translator();
    let (one, two) = (t.map(a(0), K4).unwrap(), t.map(a(1), K4).unwrap());
    drop(registration);
    assert_eq!(host.pinned_pages(), 16);
    assert!(space.snapshot().regions[0].draining);
    assert_eq!(t.map(a(2), K4).unwrap_err().errno(), Errno::ENXIO);
    drop(one);
    assert_eq!(host.pinned_pages(), 16);
    drop(two);
    assert_eq!(space.snapshot().regions.len(), 0);
    host.assert_clean();
}

#[test]
fn a_translator_only_queues_and_the_next_writer_releases() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mut t = space.translator();
    let mapping = t.map(a(0), K4).unwrap();
    drop(registration);
    t.unmap(mapping);
    assert_eq!(host.pinned_pages(), 16, "real mode makes no system call");
    space.reap();
    host.assert_clean();
}

#[test]
fn registering_a_draining_range_again_shares_what_is_pinned() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mut t = space.translator();
    let mapping = t.map(a(0), K4).unwrap();
    drop(registration);
    let again = space.register(&memory).unwrap();
    assert_eq!(host.pin_calls(), 1);
    assert!(!again.state().unwrap().draining);
    drop(t.map(a(1), K4).unwrap());
    drop(mapping);
    assert_eq!(host.pinned_pages(), 16, "the new registration keeps it");
    again.unregister().unwrap();
    host.assert_clean();
}

#[test]
fn overlapping_a_draining_region_is_refused_until_it_is_gone() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mut t = space.translator();
    let mapping = t.map(a(0), K4).unwrap();
    drop(registration);
    let part = host.range(A, 8 << 12);
    assert_eq!(space.register(&part).unwrap_err().errno(), Errno::EINVAL);
    drop(mapping);
    drop(space.register(&part).unwrap());
    host.assert_clean();
}

#[test]
fn unregister_when_idle_waits_for_the_mapping() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mut t = space.translator();
    let mapping = t.map(a(0), K4).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            registration.unregister_when_idle();
            done.store(true, Ordering::SeqCst);
        });
        // Until the other thread has closed the region, this maps.
        while t.map(a(1), K4).is_ok() {
            std::thread::yield_now();
        }
        assert!(!done.load(Ordering::SeqCst));
        assert_eq!(host.pinned_pages(), 16);
        t.unmap(mapping);
    });
    assert!(done.load(Ordering::SeqCst));
    host.assert_clean();
}

#[test]
fn drain_of_an_idle_or_shared_region_is_done_at_once() {
    let (host, space, memory) = set_up();
    let (one, two) = (space.register(&memory).unwrap(), space.register(&memory).unwrap());
    let mut t = space.translator();
    let mapping = t.map(a(0), K4).unwrap();
    assert!(one.drain().is_done(), "not the last");
    let draining = two.drain();
    assert!(!draining.is_done());
    drop(mapping);
    assert!(draining.is_done());
    host.assert_clean();
    assert!(space.register(&memory).unwrap().drain().is_done(), "idle");
    host.assert_clean();
}

#[test]
fn a_callback_is_called_once_when_the_region_is_released() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mapping = space.translator().map(a(0), K4).unwrap();
    let (done, calls) = mpsc::channel();
    let pinned = host.clone();
    registration.drain().on_done(move || done.send(pinned.pinned_pages()).unwrap());
    assert!(calls.try_recv().is_err(), "a mapping lives");
    drop(mapping);
    assert_eq!(calls.recv(), Ok(0), "after the unpin");
    assert!(calls.recv().is_err(), "the callback is gone");
    let (done, calls) = mpsc::channel();
    space.register(&memory).unwrap().drain().on_done(move || done.send(()).unwrap());
    assert_eq!(calls.try_recv(), Ok(()), "idle: at once");
    host.assert_clean();
}

#[test]
fn a_callback_is_called_when_a_translator_unmaps_and_makes_no_call() {
    let (host, space, memory) = set_up();
    let registrations =
        [space.register(&memory).unwrap(), space.register(&host.memory(A + (32 << 12), 1 << 12)).unwrap()];
    let mut t = space.translator();
    let mappings = [t.map(a(0), K4).unwrap(), t.map(a(32), K4).unwrap()];
    let (done, calls) = mpsc::channel();
    for registration in registrations {
        let done = done.clone();
        registration.drain().on_done(move || done.send(()).unwrap());
    }
    for mapping in mappings {
        t.unmap(mapping);
        assert_eq!(calls.recv(), Ok(()));
    }
    host.assert_clean();
}

#[test]
fn registering_again_ends_a_drain_and_a_later_one_has_callbacks_of_its_own() {
    let (host, space, memory) = set_up();
    let mapping = {
        let _registration = space.register(&memory).unwrap();
        space.translator().map(a(0), K4).unwrap()
    };
    let (done, calls) = mpsc::channel();
    let call = |name: &'static str| {
        let done = done.clone();
        move || done.send(name).unwrap()
    };
    space.register(&memory).unwrap().drain().on_done(call("first"));
    let again = space.register(&memory).unwrap();
    assert_eq!(calls.try_recv(), Ok("first"));
    again.drain().on_done(call("second"));
    let shared = space.share(a(0), 16 << 12).unwrap();
    assert_eq!(calls.try_recv(), Ok("second"));
    shared.drain().on_done(call("third"));
    assert!(calls.try_recv().is_err());
    drop(mapping);
    assert_eq!(calls.recv(), Ok("third"));
    host.assert_clean();
}

#[test]
fn a_callback_that_panics_stops_neither_the_release_nor_the_others() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mapping = space.translator().map(a(0), K4).unwrap();
    let called = Arc::new(AtomicU64::new(0));
    let second = registration.drain();
    second.on_done(|| panic!("expected by the test"));
    // Registered again, which ends the drain: the claim is undone with the caller.
    let again = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| space.register(&memory)));
    assert!(again.is_err());
    assert!(space.snapshot().regions[0].draining);
    let registration = space.register(&memory).unwrap();
    let one = space.share(a(0), 16 << 12).unwrap();
    drop(registration);
    one.drain().on_done(|| panic!("expected by the test"));
    let other = space.register(&host.memory(A + (32 << 12), 1 << 12)).unwrap();
    let mut t = space.translator();
    let late = t.map(a(32), K4).unwrap();
    let counter = Arc::clone(&called);
    let (done, calls) = mpsc::channel();
    other.drain().on_done(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        done.send(()).unwrap();
    });
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(mapping)));
    t.unmap(late);
    calls.recv().unwrap();
    assert_eq!(called.load(Ordering::Relaxed), 1);
    host.assert_clean();
}

/// Counts wakes.
#[derive(Default)]
struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_drain_can_be_awaited() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mapping = space.translator().map(a(0), K4).unwrap();
    let mut future = pin!(registration.drain().into_future());
    assert!(format!("{future:?}").contains("is_done: false"));
    let wakes = [Arc::new(Wakes::default()), Arc::new(Wakes::default())];
    for wakes in &wakes {
        let waker = Waker::from(Arc::clone(wakes));
        assert_eq!(future.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
    }
    drop(mapping);
    let counts = || wakes.each_ref().map(|wakes| wakes.0.load(Ordering::SeqCst));
    while counts() == [0, 0] {
        std::thread::yield_now();
    }
    assert_eq!(counts(), [0, 1], "the last task that polled");
    assert_eq!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
    host.assert_clean();
    // One that is never polled, or dropped, leaves nothing.
    let registration = space.register(&memory).unwrap();
    let mapping = space.translator().map(a(0), K4).unwrap();
    drop(registration.drain().into_future());
    drop(mapping);
    // Waits for a thread that is releasing the range.
    space.register(&memory).unwrap().unregister().unwrap();
    host.assert_clean();
}

#[test]
fn busy_tells_who_holds_what() {
    let (_host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let tables = Holder { container: 1, kind: HolderKind::TableEntry };
    let flights = Holder { container: 2, kind: HolderKind::InFlight };
    let (mut t1, mut t2) = (space.translator_for(tables), space.translator_for(flights));
    let mut held: Vec<_> = (0..3).map(|page| t1.map(a(page), K4).unwrap()).collect();
    held.push(t2.map(a(9), K4).unwrap());
    let error = registration.unregister().unwrap_err();
    assert_eq!(
        error.holders(),
        [HolderTotal { holder: tables, count: 3 }, HolderTotal { holder: flights, count: 1 }]
    );
    assert_eq!(
        error.to_string(),
        "ua 0x7f0000000000..=0x7f000000ffff is still mapped 4 times (3 by table entries of container 1, 1 by I/O in flight \
         of container 2); unmap first, then unregister again"
    );
    // Units outlive the translator that acquired them, and may be released by a drop or by another translator of the
    // holder.
    let registration = error.into_inner();
    drop(t1);
    let mut t3 = space.translator_for(tables);
    t3.unmap(held.remove(0));
    drop(held.remove(0));
    let state = registration.state().unwrap();
    assert_eq!(
        state.mappings,
        [HolderTotal { holder: tables, count: 1 }, HolderTotal { holder: flights, count: 1 }]
    );
    drop((t2, t3, held));
    assert_eq!(registration.state().unwrap().mappings, []);
    registration.unregister().unwrap();
}

#[test]
fn registrations_are_reported_by_holder() {
    let (_host, space, memory) = set_up();
    let holder = |container| Holder { container, kind: HolderKind::Other };
    let registrations: Vec<Registration> =
        [1, 2, 1].iter().map(|&container| space.register_for(&memory, holder(container)).unwrap()).collect();
    let state = space.snapshot();
    assert_eq!(
        state.regions[0].registrations,
        [HolderTotal { holder: holder(1), count: 2 }, HolderTotal { holder: holder(2), count: 1 }]
    );
    drop(registrations);
}

#[test]
fn a_mapping_may_be_given_to_a_translator_of_another_space() {
    let (host, space, memory) = set_up();
    let (host2, space2, memory2) = set_up();
    let (_one, _two) = (space.register(&memory).unwrap(), space2.register(&memory2).unwrap());
    let (mut t1, mut t2) = (space.translator(), space2.translator());
    t2.unmap(t1.map(a(0), K4).unwrap());
    assert_eq!(space.snapshot().regions[0].mapped, 0);
    assert_eq!(space2.snapshot().regions[0].mapped, 0);
    drop((space, space2));
    host.assert_clean();
    host2.assert_clean();
}

#[test]
fn handles_that_outlive_the_owner_find_nothing() {
    let (host, space, memory) = set_up();
    let registration = space.register(&memory).unwrap();
    let mut t = space.translator();
    drop(space);
    assert!(registration.state().is_none());
    assert_eq!(t.map(a(0), K4).unwrap_err().errno(), Errno::EFAULT);
    host.assert_clean();
}

#[test]
fn many_are_unregistered_together_and_each_is_judged_by_itself() {
    let (host, space, memory) = set_up();
    let (host2, space2, memory2) = set_up();
    let more = host.memory(A + (64 << 12), 16 << 12);
    let mut t = space.translator();
    let all = vec![
        space.register(&memory).unwrap(),
        space.register(&memory).unwrap(),
        space.register(&more).unwrap(),
        space2.register(&memory2).unwrap(),
    ];
    let mapping = t.map(a(64), K4).unwrap();
    let mut refused = Registration::unregister_many(all);
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].errno(), refused[0].mapped()), (Errno::EBUSY, 1));
    assert_eq!(host.pinned_pages(), 16);
    host2.assert_clean();
    drop(t.map(a(65), K4).unwrap());
    t.unmap(mapping);
    let again = refused.remove(0).into_inner();
    assert!(Registration::unregister_many(vec![again]).is_empty());
    host.assert_clean();
    assert_eq!(t.map(a(64), K4).unwrap_err().errno(), Errno::EFAULT);
}
