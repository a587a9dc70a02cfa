//! Ports that return wrong results, panic, block or call back: the space stays usable, its totals are right, and no thread waits forever.
#![expect(unsafe_code, reason = "implements `Pin` and `Memory` over a host whose addresses are invented")]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use prereg::PageSink;
use prereg::{
    AddressKind, AddressSpace, Charge, ChargeError, DirtyPages, Errno, Granule, HostAddr, Memory, PageList,
    PageShift, Pin, PinError, PinId, RegisterError, Registration, UserAddr, UserRange,
};
use prereg_sim::SimHost;

const A: u64 = 0x7f00_0000_0000;
const PAGES: u64 = 16;

/// The call of the host that misbehaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Call {
    Charge,
    Pin,
    Unpin,
    Uncharge,
}

type Act = Box<dyn FnOnce(&mut PageSink<'_>) + Send>;

/// A host with an additional action, once, in a chosen call. Its pins and charges are correct.
struct Contrary {
    host: SimHost,
    next: Mutex<Option<(Call, Act)>>,
}

impl Contrary {
    fn new() -> Arc<Self> {
        Arc::new(Self { host: SimHost::new(Granule::K4), next: Mutex::new(None) })
    }

    fn next(&self, call: Call, act: impl FnOnce(&mut PageSink<'_>) + Send + 'static) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some((call, Box::new(act)));
    }

    fn act(&self, call: Call, sink: Option<&mut PageSink<'_>>) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, act)) = next.take_if(|(of, _)| *of == call) else { return };
        drop(next);
        match sink {
            Some(sink) => act(sink),
            None => {
                let range = UserRange::new(UserAddr::new(A), 0x1000, Granule::K4).unwrap();
                act(&mut PageList::new(range, Granule::K4).sink());
            }
        }
    }

    fn space(self: &Arc<Self>) -> Arc<AddressSpace> {
        Arc::new(super::builder(self.clone()).build().unwrap())
    }

    fn range(&self, first: u64, pages: u64) -> impl Memory + use<> {
        self.host.memory(A + (first << 12), pages << 12)
    }
}

// SAFETY: the addresses are invented, and no device exists.
unsafe impl Pin for Contrary {
    fn name(&self) -> &'static str {
        "contrary"
    }

    fn granule(&self) -> Granule {
        Granule::K4
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        self.act(Call::Pin, Some(pages));
        self.host.pin(range, pages)
    }

    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        self.host.unpin(pin, range, dirty);
        self.act(Call::Unpin, None);
    }
}

impl Charge for Contrary {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.act(Call::Charge, None);
        self.host.charge(pages)
    }

    fn uncharge(&self, pages: u64) {
        self.host.uncharge(pages);
        self.act(Call::Uncharge, None);
    }
}

/// Registers, maps and unregisters: everything works, and nothing is left.
fn assert_usable(host: &Contrary, space: &AddressSpace) {
    let registration = space.register(&host.range(0, PAGES)).unwrap();
    assert_eq!(registration.state().unwrap().used, 1);
    let ua = UserAddr::new(A + 0x3456);
    let mut t = space.translator();
    let mapping = t.map(ua, PageShift::K4).unwrap();
    assert_eq!(Some(mapping.hpa()), host.host.backs(ua.raw()));
    let registration = registration.unregister().unwrap_err().into_inner();
    t.unmap(mapping);
    registration.unregister().unwrap();
    drop(t);
    let state = space.snapshot();
    assert_eq!((state.regions.len(), state.pinned_pages, state.charged_pages), (0, 0, 0));
    assert_eq!(state.pins, state.unpins);
    host.host.assert_clean();
}

fn panics(call: impl FnOnce()) {
    let payload = catch_unwind(AssertUnwindSafe(call)).expect_err("the port's panic goes on to the caller");
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"a port that panics"));
}

#[test]
fn a_sink_that_is_exchanged_fails_the_registration() {
    let host = Contrary::new();
    let space = host.space();
    let standing = space.register(&host.range(100, 1)).unwrap();
    for pages in [1, PAGES, PAGES + 1] {
        let range = UserRange::new(UserAddr::new(A), pages << 12, Granule::K4).unwrap();
        // A list of the back end's own, shorter or longer than the range.
        let list = Box::into_raw(Box::new(PageList::new(range, Granule::K4)));
        // SAFETY: the list is freed below, after the registration that uses it returned.
        let other = unsafe { &mut *list }.sink();
        host.next(Call::Pin, move |sink| {
            let mut other = other;
            std::mem::swap(sink, &mut other);
        });
        let error = space.register(&host.range(0, PAGES)).unwrap_err();
        assert_eq!(error.errno(), Errno::EFAULT, "{error}");
        // SAFETY: made by `Box::into_raw` above; its sinks ended with the call.
        drop(unsafe { Box::from_raw(list) });
    }
    drop(standing);
    assert_usable(&host, &space);
}

#[test]
fn a_list_too_short_too_long_or_past_the_end_fails_the_registration() {
    let host = Contrary::new();
    let space = host.space();
    // The host pushes all sixteen afterwards.
    for (pages, at) in [(1, 0x1000), (PAGES, 0x1000), (PAGES + 1, 0x1000), (2, !0xfff), (1, !0xfff)] {
        host.next(Call::Pin, move |sink| {
            let pushed = sink.push(HostAddr::new(at), pages);
            assert_eq!(pushed.is_ok(), pages <= PAGES && (at == 0x1000 || pages == 1), "{pages} at {at:#x}");
        });
        if (pages, at) == (PAGES + 1, 0x1000) || (pages, at) == (2, !0xfff) {
            // Refused by the sink, so the pages that the host pushes are accepted.
            space.register(&host.range(0, PAGES)).unwrap().unregister().unwrap();
            continue;
        }
        let error = space.register(&host.range(0, PAGES)).unwrap_err();
        assert_eq!(error.errno(), Errno::EFAULT, "{error}");
        assert_usable(&host, &space);
    }
}

#[test]
fn a_panic_of_any_port_leaves_the_space_usable() {
    for call in [Call::Charge, Call::Pin, Call::Unpin, Call::Uncharge] {
        let host = Contrary::new();
        let space = host.space();
        host.next(call, |_| panic!("a port that panics"));
        let memory = host.range(0, PAGES);
        panics(|| space.register(&memory).unwrap().unregister().unwrap());
        assert_usable(&host, &space);
        // With the release deferred to the last unmap.
        host.next(call, |_| panic!("a port that panics"));
        panics(|| {
            let registration = space.register(&memory).unwrap();
            let mut t = space.translator();
            let mapping = t.map(UserAddr::new(A), PageShift::K4).unwrap();
            drop(registration);
            drop(mapping);
        });
        assert_usable(&host, &space);
    }
}

#[test]
fn a_panic_while_many_are_released_leaves_none_behind() {
    for call in [Call::Unpin, Call::Uncharge] {
        let host = Contrary::new();
        let space = host.space();
        let register = |index: u64| space.register(&host.range(index * 20, PAGES)).unwrap();
        let many: Vec<Registration> = (0..5).map(register).collect();
        host.next(call, |_| panic!("a port that panics"));
        panics(|| drop(Registration::unregister_many(many)));
        assert_usable(&host, &space);

        // The space is dropped with all its regions; so is a space with draining regions only.
        let _many: Vec<Registration> = (0..5).map(register).collect();
        host.next(call, |_| panic!("a port that panics"));
        let space = Arc::into_inner(space).unwrap();
        panics(|| drop(space));
        host.host.assert_clean();
    }
}

#[test]
fn a_panic_of_what_keeps_the_memory_leaves_the_space_usable() {
    struct Loud;
    impl Drop for Loud {
        fn drop(&mut self) {
            panic!("a port that panics");
        }
    }
    let host = Contrary::new();
    let space = host.space();
    let memory = Kept { memory: host.range(0, PAGES), keep: Mutex::new(Some(Arc::new(Loud))) };
    let registration = space.register(&memory).unwrap();
    panics(|| registration.unregister().unwrap());
    assert_usable(&host, &space);
}

/// Memory with a value that is dropped with its region.
struct Kept<M> {
    memory: M,
    keep: Mutex<Option<Arc<dyn Any + Send + Sync>>>,
}

// SAFETY: the addresses have no memory.
unsafe impl<M: Memory> Memory for Kept<M> {
    fn ua(&self) -> UserAddr {
        self.memory.ua()
    }

    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.keep.lock().unwrap().take()
    }
}

#[test]
fn what_keeps_the_memory_may_register_it_again_when_it_is_dropped() {
    struct Again(Arc<AddressSpace>, Arc<Contrary>, Arc<Mutex<Option<Registration>>>);
    impl Drop for Again {
        fn drop(&mut self) {
            *self.2.lock().unwrap() = Some(self.0.register(&self.1.range(0, PAGES)).unwrap());
        }
    }
    let host = Contrary::new();
    let space = host.space();
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::new(Again(space.clone(), host.clone(), kept.clone()));
    let memory = Kept { memory: host.range(0, PAGES), keep: Mutex::new(Some(keep)) };
    space.register(&memory).unwrap().unregister().unwrap();
    kept.lock().unwrap().take().unwrap().unregister().unwrap();
    assert_usable(&host, &space);
}

#[test]
fn a_port_that_calls_back_for_its_own_range_is_refused() {
    for call in [Call::Charge, Call::Pin, Call::Unpin, Call::Uncharge] {
        let host = Contrary::new();
        let space = host.space();
        let (inside, memory) = (Arc::downgrade(&space), host.range(0, PAGES));
        let (send, receive) = mpsc::channel();
        host.next(call, move |_| {
            let space = inside.upgrade().unwrap();
            let again = space.register(&memory).map(drop);
            let part = space.share(UserAddr::new(A), PAGES << 12).map(drop);
            let new = space.register_new(&memory).map(drop);
            send.send((again, part, new, space.snapshot().regions.len())).unwrap();
        });
        space.register(&host.range(0, PAGES)).unwrap().unregister().unwrap();
        let (again, shared, new, regions) = receive.recv().unwrap();
        let error = again.unwrap_err();
        assert!(matches!(error, RegisterError::Reentrant { .. }), "{call:?}: {error}");
        assert_eq!((error.errno(), shared, regions), (Errno::EDEADLK, None, 0));
        // A span that is being pinned blocks a new region; for one that is being unpinned a caller would wait.
        assert_eq!(
            new.unwrap_err().errno(),
            if matches!(call, Call::Charge | Call::Pin) { Errno::EINVAL } else { Errno::EDEADLK }
        );
        assert_usable(&host, &space);
    }
}

#[test]
fn a_port_may_use_the_space_for_other_ranges() {
    for call in [Call::Charge, Call::Pin, Call::Unpin, Call::Uncharge] {
        let host = Contrary::new();
        let space = host.space();
        let (inside, memory) = (Arc::downgrade(&space), host.range(100, PAGES));
        host.next(call, move |_| {
            let space = inside.upgrade().unwrap();
            let registration = space.register(&memory).unwrap();
            drop(space.translator().map(registration.ua(), PageShift::K4).unwrap());
            registration.unregister().unwrap();
        });
        space.register(&host.range(0, PAGES)).unwrap().unregister().unwrap();
        assert_usable(&host, &space);
    }
}

#[test]
fn a_port_that_blocks_holds_up_its_own_range_only() {
    for call in [Call::Charge, Call::Pin, Call::Unpin, Call::Uncharge] {
        let host = Contrary::new();
        let space = host.space();
        let (entered, wait) = (mpsc::channel(), mpsc::channel::<()>());
        host.next(call, move |_| {
            entered.0.send(()).unwrap();
            wait.1.recv().unwrap();
        });
        std::thread::scope(|scope| {
            let blocked = scope.spawn(|| {
                space.register(&host.range(0, PAGES)).unwrap().unregister().unwrap();
            });
            entered.1.recv().unwrap();
            let other = space.register(&host.range(100, PAGES)).unwrap();
            let mut t = space.translator();
            drop(t.map(other.ua(), PageShift::K4).unwrap());
            other.unregister().unwrap();
            if matches!(call, Call::Charge | Call::Pin) {
                let overlapping = space.register(&host.range(4, PAGES));
                assert!(matches!(overlapping, Err(RegisterError::Overlap { .. })));
            }
            // Another thread that registers the range waits, and then succeeds.
            let waiter = scope.spawn(|| space.register(&host.range(0, PAGES)).unwrap());
            wait.0.send(()).unwrap();
            waiter.join().unwrap().unregister().unwrap();
            blocked.join().unwrap();
        });
        assert_usable(&host, &space);
    }
}

#[test]
fn a_share_waits_for_the_registration_under_way() {
    for call in [Call::Charge, Call::Pin] {
        let host = Contrary::new();
        let space = host.space();
        let (entered, wait) = (mpsc::channel(), mpsc::channel::<()>());
        host.next(call, move |_| {
            entered.0.send(()).unwrap();
            wait.1.recv().unwrap();
        });
        std::thread::scope(|scope| {
            let registrar = scope.spawn(|| space.register(&host.range(0, PAGES)).unwrap());
            entered.1.recv().unwrap();
            let (asking, asked) = mpsc::channel();
            let space = &space;
            let sharer = scope.spawn(move || {
                asking.send(()).unwrap();
                space.share(UserAddr::new(A), PAGES << 12)
            });
            asked.recv().unwrap();
            // The sharer's call may be early or late; the result is equal.
            for _ in 0..if cfg!(miri) { 20 } else { 1000 } {
                std::thread::yield_now();
            }
            let early = sharer.is_finished();
            assert!(
                space.share(UserAddr::new(A), (PAGES - 1) << 12).is_none(),
                "another range is not waited for"
            );
            wait.0.send(()).unwrap();
            let registered = registrar.join().unwrap();
            assert!(!early, "the share did not wait");
            let shared = sharer.join().unwrap().expect("the registration that was under way");
            assert_eq!(shared.range(), registered.range());
            registered.unregister().unwrap();
            shared.unregister().unwrap();
        });
        assert_usable(&host, &space);
    }
}
