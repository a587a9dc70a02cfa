//! Maps during a close: between the store of CLOSING and the sum of the counters.
//!
//! A close waits in the fence on every thread, so a fence that first lets another thread map places that map there.
#![expect(unsafe_code, reason = "implements `Barrier`")]

use std::sync::{Arc, Mutex, mpsc};

use prereg::{
    AddressSpace, Barrier, Errno, Granule, MapError, Mapping, PageShift, Registration, Translator, UserAddr,
};
use prereg_sim::SimHost;

use crate::process_fence::process_fence;

const A: u64 = 0x7f00_0000_0000;
const K4: PageShift = PageShift::K4;

type Act = Box<dyn FnOnce() + Send>;

/// Runs an action once in the next fence, then the fence of the process.
struct Meeting {
    act: Mutex<Option<Act>>,
    fence: Arc<dyn Barrier>,
}

// SAFETY: the fence of the process is passed before the return.
unsafe impl Barrier for Meeting {
    fn all_threads(&self) {
        if let Some(act) = self.act.lock().unwrap().take() {
            act();
        }
        self.fence.all_threads();
    }
}

struct Fixture {
    host: SimHost,
    space: AddressSpace,
    meeting: Arc<Meeting>,
    /// A thread maps the pages that it receives.
    ask: mpsc::Sender<UserAddr>,
    mapped: Arc<Mutex<mpsc::Receiver<Result<Mapping, MapError>>>>,
    mapper: std::thread::JoinHandle<Translator>,
}

impl Fixture {
    fn new() -> Self {
        let host = SimHost::new(Granule::K4);
        let meeting = Arc::new(Meeting { act: Mutex::new(None), fence: process_fence() });
        let space = AddressSpace::builder(host.clone()).barrier(meeting.clone()).build().unwrap();
        let mut t = space.translator();
        let (ask, asked) = mpsc::channel();
        let (say, said) = mpsc::channel();
        let mapper = std::thread::spawn(move || {
            for ua in asked {
                say.send(t.map(ua, K4)).unwrap();
            }
            t
        });
        Self { host, space, meeting, ask, mapped: Arc::new(Mutex::new(said)), mapper }
    }

    fn register(&self, first: u64) -> Registration {
        self.space.register(&self.host.memory(A + (first << 12), 4 << 12)).unwrap()
    }

    fn map(&self, ua: UserAddr) -> Result<Mapping, MapError> {
        self.ask.send(ua).unwrap();
        self.mapped.lock().unwrap().recv().unwrap()
    }

    /// In the next close `ua` is mapped; the result is received.
    fn map_in_the_next_fence(&self, ua: UserAddr) -> mpsc::Receiver<Result<Mapping, MapError>> {
        let (ask, mapped) = (self.ask.clone(), self.mapped.clone());
        let (send, receive) = mpsc::channel();
        *self.meeting.act.lock().unwrap() = Some(Box::new(move || {
            ask.send(ua).unwrap();
            send.send(mapped.lock().unwrap().recv().unwrap()).unwrap();
        }));
        receive
    }

    fn end(self) {
        let Self { host, space, ask, mapper, .. } = self;
        drop(ask);
        // The action may have the other sender.
        *self.meeting.act.lock().unwrap() = None;
        drop(mapper.join().unwrap());
        drop(space);
        host.assert_clean();
    }
}

#[test]
fn a_map_that_meets_a_close_wins_and_the_close_is_refused() {
    let w = Fixture::new();
    let mut registration = w.register(0);
    let ua = UserAddr::new(A + 0x2345);
    // One in the index of the mapper's snapshot, and one known only after it looks for a newer snapshot.
    for known in [false, true] {
        if known {
            drop(w.map(ua).unwrap());
        }
        let met = w.map_in_the_next_fence(ua);
        let refused = registration.unregister().unwrap_err();
        assert_eq!((refused.mapped(), refused.errno()), (1, Errno::EBUSY));
        registration = refused.into_inner();
        let mapping = met.recv().unwrap().unwrap();
        assert_eq!(Some(mapping.hpa()), w.host.backs(ua.raw()));
        assert_eq!(registration.state().unwrap().mapped, 1);
        drop(mapping);
        drop(w.map(ua).unwrap());
    }
    registration.unregister().unwrap();
    assert_eq!(w.map(ua).unwrap_err().errno(), Errno::EFAULT);
    w.end();
}

#[test]
fn one_of_many_that_is_mapped_meanwhile_is_refused_and_the_others_are_released() {
    let w = Fixture::new();
    let many = vec![w.register(0), w.register(10), w.register(20)];
    let ua = many[1].ua();
    drop(w.map(ua).unwrap());
    let met = w.map_in_the_next_fence(ua);
    let refused = Registration::unregister_many(many);
    assert_eq!(
        refused.iter().map(|error| (error.mapped(), error.errno())).collect::<Vec<_>>(),
        [(1, Errno::EBUSY)]
    );
    assert_eq!(w.host.pinned_pages(), 4);
    let mapping = met.recv().unwrap().unwrap();
    assert_eq!(Some(mapping.hpa()), w.host.backs(ua.raw()));
    drop(mapping);
    for error in refused {
        assert_eq!(error.holders().iter().map(|held| held.count).sum::<u64>(), 1);
        error.into_inner().unregister().unwrap();
    }
    w.end();
}

#[test]
fn a_map_that_meets_a_drain_is_closed_out() {
    let w = Fixture::new();
    let registration = w.register(0);
    let ua = registration.ua();
    let kept = w.map(ua).unwrap();
    let met = w.map_in_the_next_fence(ua);
    drop(registration);
    assert_eq!(met.recv().unwrap().map(drop), Err(MapError::Closing { ua }));
    assert_eq!(w.host.pinned_pages(), 4, "one mapping lives");
    drop(kept);
    w.host.assert_clean();
    w.end();
}

#[test]
fn a_map_that_meets_the_end_of_the_space_is_closed_out() {
    let w = Fixture::new();
    let registration = w.register(0);
    let ua = registration.ua();
    drop(w.map(ua).unwrap());
    let met = w.map_in_the_next_fence(ua);
    let Fixture { host, space, ask, mapper, meeting, .. } = w;
    drop(space);
    assert_eq!(met.recv().unwrap().map(drop), Err(MapError::Closing { ua }));
    host.assert_clean();
    assert_eq!(registration.unregister().unwrap_err().errno(), Errno::ENOENT);
    drop((ask, meeting));
    drop(mapper.join().unwrap());
}
