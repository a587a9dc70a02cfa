//! The thread of one client, and the client's state that other threads see.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prereg::Errno;
use prereg_iommu::iova::Unmapping;

use super::attach_failure::AttachFailure;
use super::counts::Counts;
use super::device::{Device, DeviceFactory, Layout};
use super::dma::{DmaSpace, DmaState, MemoryStore};
use super::event::Event;
use super::interrupts::Interrupts;
use super::observer::{EventSource, Reporter};
use super::settings::ServerSettings;
use super::shared_session::{Next, SharedSession};
use super::state::{ClientState, DisconnectReason, PendingUnmap, RequestCounts};
use super::transport::Transport;
use crate::reply::{Token, UnmapReply};

/// Longest wait of a reconnecting client for the end of its old session.
pub(crate) const RECONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The departures of a server's other clients, for a client whose factory is busy.
pub(crate) trait Departures: Send + Sync {
    /// Clients that have left so far.
    fn departures(&self) -> u64;

    /// Waits until more than `seen` clients have left. False without waiting if no other client has hung up; false at the
    /// deadline, when client `number` is gone, or when the server stops.
    fn await_departure(&self, number: u64, observed: u64, deadline: Instant) -> bool;
}

/// An unmap without a reply yet.
pub(crate) struct UnansweredUnmap {
    pub(crate) unmapping: Unmapping,
    pub(crate) token: Token<UnmapReply>,
    pub(crate) since: Instant,
}

/// The state of a client after VERSION.
pub(crate) struct Attached {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) layout: Layout,
    pub(crate) interrupts: Interrupts,
    pub(crate) space: Arc<DmaSpace>,
}

/// Parts of an attached client that other threads use; removed at its end.
struct Observed {
    device: Arc<dyn Device>,
    space: Arc<DmaSpace>,
}

/// A client's state for all threads.
pub(crate) struct ClientShared {
    pub(crate) number: u64,
    pub(crate) events: Reporter<Event>,
    pub(crate) session: Arc<SharedSession>,
    pub(crate) counts: Arc<Counts>,
    /// The client is gone or to be disconnected. Relaxed: only ends work early that would end anyway.
    left: AtomicBool,
    /// The client has seen how to map a region. Relaxed: read after its thread has ended.
    offered: AtomicBool,
    /// The client got its device. Relaxed: read after its thread has ended.
    served: AtomicBool,
    waiting: Mutex<Vec<UnansweredUnmap>>,
    observed: Mutex<Option<Observed>>,
}

/// No operation under these locks can fail half way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientShared {
    pub(crate) fn new(events: Reporter<Event>, session: Arc<SharedSession>, counts: Arc<Counts>) -> Self {
        Self {
            number: events.source().client.unwrap_or_default(),
            events,
            session,
            counts,
            left: AtomicBool::new(false),
            offered: AtomicBool::new(false),
            served: AtomicBool::new(false),
            waiting: Mutex::default(),
            observed: Mutex::default(),
        }
    }

    /// Notes that the client has seen how to map a region.
    pub(crate) fn offered(&self) {
        self.offered.store(true, Ordering::Relaxed);
    }

    /// Notes and reports that the client has its device.
    pub(crate) fn served(&self) {
        self.served.store(true, Ordering::Relaxed);
        self.events.report(&Event::Connected);
    }

    /// Reports the client's end, and if it did not use its device, why.
    pub(crate) fn report_end(&self, reason: DisconnectReason) {
        let mut requests = RequestCounts::default();
        self.counts.add_to(&mut requests);
        let is_mappable = self.offered.load(Ordering::Relaxed);
        if let Some(failure) = AttachFailure::of(&reason, &requests, is_mappable) {
            self.events.report(&Event::NotAttached { failure });
        }
        let served = self.served.load(Ordering::Relaxed);
        self.events.report(&Event::Disconnected { reason, served });
    }

    /// Whether the client is gone or to be disconnected, so that work for it can stop.
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Unmaps without a reply yet.
    pub(crate) fn waiting(&self) -> MutexGuard<'_, Vec<UnansweredUnmap>> {
        lock(&self.waiting)
    }

    pub(crate) fn attached(&self, space: &Arc<DmaSpace>, device: &Arc<dyn Device>) {
        *lock(&self.observed) = Some(Observed { device: device.clone(), space: space.clone() });
    }

    /// Makes long operations for the client return early, because it is gone.
    pub(crate) fn release(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Ends the session: the client no longer sees what its device does.
    pub(crate) fn cut_off(&self) {
        let space = lock(&self.observed).as_ref().map(|observed| observed.space.clone());
        if let Some(space) = space {
            space.cut_off();
        }
        self.session.stop();
        self.release();
    }

    /// Releases memory that was unplugged from the guest.
    pub(crate) fn release_idle(&self) {
        let space = lock(&self.observed).as_ref().map(|observed| observed.space.clone());
        if let Some(space) = space {
            space.release_idle();
        }
    }

    /// A snapshot as plain data.
    pub(crate) fn snapshot(&self) -> ClientState {
        let observed =
            lock(&self.observed).as_ref().map(|observed| (observed.device.clone(), observed.space.clone()));
        let (dma, metrics) = match observed {
            Some((device, space)) => (space.snapshot(), device.metrics()),
            None => (DmaState::default(), Vec::new()),
        };
        let mut requests = RequestCounts::default();
        self.counts.add_to(&mut requests);
        let waited = |waiting: &UnansweredUnmap| PendingUnmap {
            id: waiting.token.id(),
            waited: waiting.since.elapsed(),
            mappings: waiting.unmapping.waiting(),
        };
        let EventSource { socket, device, pid, uid, .. } = &**self.events.source();
        ClientState {
            client: self.number,
            socket: socket.clone(),
            model: device.clone(),
            pid: *pid,
            uid: *uid,
            negotiated: self.session.negotiated(),
            dma,
            unmaps: self.waiting().iter().map(waited).collect(),
            requests,
            metrics,
        }
    }
}

/// A client's state for its own thread.
pub(crate) struct ClientThread {
    pub(crate) shared: Arc<ClientShared>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) model: Arc<dyn DeviceFactory>,
    /// The errno to reject its VERSION with.
    pub(crate) reject_with: Option<Errno>,
    /// `None` for a client outside a [`Server`](super::Server).
    pub(crate) departures_of_others: Option<Arc<dyn Departures>>,
    pub(crate) attached: Option<Attached>,
    /// Buffer for region reads.
    pub(crate) data: Vec<u8>,
}

impl ClientThread {
    pub(crate) fn new(
        shared: Arc<ClientShared>,
        store: Arc<MemoryStore>,
        model: Arc<dyn DeviceFactory>,
        reject_with: Option<Errno>,
        departures_of_others: Option<Arc<dyn Departures>>,
    ) -> Self {
        Self { shared, store, model, reject_with, departures_of_others, attached: None, data: Vec::new() }
    }

    /// Serves the client until it disconnects, and releases everything of it.
    pub(crate) fn serve(mut self) -> DisconnectReason {
        // A panic of a device must neither leak its client's memory nor end other clients.
        let ending = catch_unwind(AssertUnwindSafe(|| self.run())).unwrap_or(DisconnectReason::Panicked);
        self.detach();
        ending
    }

    fn run(&mut self) -> DisconnectReason {
        loop {
            match self.shared.session.next() {
                Next::Action(action) => self.perform(action),
                Next::OnDrained => self.drained(),
                Next::Over(ending) => return ending,
            }
        }
    }

    fn detach(&mut self) {
        self.shared.session.close_gracefully();
        let observed = lock(&self.shared.observed).take();
        drop(observed);
        let Some(Attached { device, interrupts, space, .. }) = self.attached.take() else { return };
        // Accesses and transfers fail from here on, so a device that joins its threads does not wait for the client.
        space.disconnect();
        interrupts.close();
        let gone = catch_unwind(AssertUnwindSafe(|| device.client_gone()));
        drop(gone);
        self.shared.waiting().clear();
    }
}

/// Serves one client over `transport` on this thread until it disconnects, without a [`Server`](super::Server).
pub fn serve(
    transport: impl Transport,
    model: &Arc<dyn DeviceFactory>,
    store: &Arc<MemoryStore>,
    settings: &ServerSettings,
) -> DisconnectReason {
    let counts = Arc::new(Counts::default());
    let ServerSettings { session, stall_timeout, observer, .. } = settings;
    let device = model.name().to_owned();
    let source = EventSource { device, client: Some(0), uid: u32::MAX, ..EventSource::default() };
    let events = Reporter::new(Arc::new(source), observer.clone());
    let session =
        SharedSession::new(Box::new(transport), *session, *stall_timeout, counts.clone(), events.clone());
    let shared = Arc::new(ClientShared::new(events, Arc::new(session), counts));
    let reason = ClientThread::new(shared.clone(), store.clone(), model.clone(), None, None).serve();
    shared.report_end(reason);
    reason
}
