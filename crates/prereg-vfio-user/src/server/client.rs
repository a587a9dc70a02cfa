//! One client: what its thread does from the first byte to the last, and what everybody else may see of it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prereg::Errno;
use prereg_iommu::iova::Unmapping;

use super::conversation::{Conversation, Next};
use super::counts::Counts;
use super::device::{Device, Layout, Model};
use super::dma::{DmaSpace, DmaState, MemoryStore};
use super::interrupts::Interrupts;
use super::settings::ServerSettings;
use super::state::{ClientState, Ending, RequestCounts, WaitingUnmap};
use super::transport::Transport;
use crate::answer::{Token, Unmapped};

/// How long a client waits for the place of one that is leaving.
pub(crate) const SUCCESSION: Duration = Duration::from_secs(10);

/// The other clients of a server, for one whose model has no place for it.
pub(crate) trait Others: Send + Sync {
    /// How many clients have left so far.
    fn departures(&self) -> u64;

    /// Waits until more clients have left than `seen`. False at once when no other client has hung up, and when the time is
    /// over, client `number` is gone or the server stops.
    fn await_departure(&self, number: u64, seen: u64, deadline: Instant) -> bool;
}

/// An unmap that is not answered yet.
pub(crate) struct Waiting {
    pub(crate) unmapping: Unmapping,
    pub(crate) token: Token<Unmapped>,
    pub(crate) since: Instant,
}

/// What a client has once it was let in.
pub(crate) struct Attached {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) layout: Layout,
    pub(crate) interrupts: Interrupts,
    pub(crate) space: Arc<DmaSpace>,
}

/// What others may see of an attached client; the client's end takes it away.
struct Seen {
    device: Arc<dyn Device>,
    space: Arc<DmaSpace>,
}

/// A client, for all threads.
pub(crate) struct Shared {
    pub(crate) number: u64,
    pub(crate) socket: Option<PathBuf>,
    pub(crate) model: String,
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) conversation: Arc<Conversation>,
    pub(crate) counts: Arc<Counts>,
    /// The client is gone or to go. Only ends early what would end anyhow, so no ordering is asked of it.
    left: AtomicBool,
    /// The client was told how to map a region. Read when its thread has ended, so no ordering is asked of it.
    offered: AtomicBool,
    waiting: Mutex<Vec<Waiting>>,
    seen: Mutex<Option<Seen>>,
}

/// Nothing that could fail half way is done under these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        number: u64,
        socket: Option<PathBuf>,
        model: String,
        (pid, uid): (i32, u32),
        conversation: Arc<Conversation>,
        counts: Arc<Counts>,
    ) -> Self {
        let (waiting, seen) = (Mutex::default(), Mutex::default());
        let (left, offered) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { number, socket, model, pid, uid, conversation, counts, left, offered, waiting, seen }
    }

    /// The client is told how to map a region.
    pub(crate) fn offered(&self) {
        self.offered.store(true, Ordering::Relaxed);
    }

    /// Whether the client was told how to map a region.
    pub(crate) fn was_offered(&self) -> bool {
        self.offered.load(Ordering::Relaxed)
    }

    /// Whether the client was seen to have gone, or is to go: nothing more need be done for it.
    pub(crate) fn has_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Unmaps that are not answered yet.
    pub(crate) fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        lock(&self.waiting)
    }

    pub(crate) fn attached(&self, space: &Arc<DmaSpace>, device: &Arc<dyn Device>) {
        *lock(&self.seen) = Some(Seen { device: device.clone(), space: space.clone() });
    }

    /// Has a thread that does much for the client return early. For when the client is gone.
    pub(crate) fn release(&self) {
        self.left.store(true, Ordering::Relaxed);
    }

    /// Ends the session: the client sees nothing any more of what its device does.
    pub(crate) fn cut_off(&self) {
        let space = lock(&self.seen).as_ref().map(|seen| seen.space.clone());
        if let Some(space) = space {
            space.cut_off();
        }
        self.conversation.stop();
        self.release();
    }

    /// Gives up memory that was unplugged from the guest.
    pub(crate) fn release_idle(&self) {
        let space = lock(&self.seen).as_ref().map(|seen| seen.space.clone());
        if let Some(space) = space {
            space.release_idle();
        }
    }

    /// Everything there is to see.
    pub(crate) fn snapshot(&self) -> ClientState {
        let seen = lock(&self.seen).as_ref().map(|seen| (seen.device.clone(), seen.space.clone()));
        let (dma, facts) = match seen {
            Some((device, space)) => (space.snapshot(), device.facts()),
            None => (DmaState::default(), Vec::new()),
        };
        let mut requests = RequestCounts::default();
        self.counts.add_to(&mut requests);
        let waited = |waiting: &Waiting| WaitingUnmap {
            id: waiting.token.id(),
            waited: waiting.since.elapsed(),
            mappings: waiting.unmapping.waiting(),
        };
        ClientState {
            client: self.number,
            socket: self.socket.clone(),
            model: self.model.clone(),
            pid: self.pid,
            uid: self.uid,
            terms: self.conversation.terms(),
            dma,
            unmaps: self.waiting().iter().map(waited).collect(),
            requests,
            facts,
        }
    }
}

/// A client, for its own thread.
pub(crate) struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) model: Arc<dyn Model>,
    /// What its VERSION is answered, where there is no place for it.
    pub(crate) refuse: Option<Errno>,
    /// `None` for a client that is served by itself.
    pub(crate) others: Option<Arc<dyn Others>>,
    pub(crate) attached: Option<Attached>,
    /// Room for what is read of regions.
    pub(crate) data: Vec<u8>,
}

impl Client {
    pub(crate) fn new(
        shared: Arc<Shared>,
        store: Arc<MemoryStore>,
        model: Arc<dyn Model>,
        refuse: Option<Errno>,
        others: Option<Arc<dyn Others>>,
    ) -> Self {
        Self { shared, store, model, refuse, others, attached: None, data: Vec::new() }
    }

    /// Serves the client until it ends, and leaves nothing of it behind.
    pub(crate) fn serve(mut self) -> Ending {
        // A device that panics is no reason to keep its client's memory, or to take the others down.
        let ending = catch_unwind(AssertUnwindSafe(|| self.converse())).unwrap_or(Ending::Panicked);
        self.leave();
        ending
    }

    fn converse(&mut self) -> Ending {
        loop {
            match self.shared.conversation.next() {
                Next::Action(action) => self.perform(action),
                Next::OnDrained => self.drained(),
                Next::Over(ending) => return ending,
            }
        }
    }

    fn leave(&mut self) {
        self.shared.conversation.farewell();
        let seen = lock(&self.shared.seen).take();
        drop(seen);
        let Some(Attached { device, interrupts, space, .. }) = self.attached.take() else { return };
        // Accesses and transfers fail from here on: a device that waits for its own threads does not wait for the client.
        space.disconnect();
        interrupts.close();
        let gone = catch_unwind(AssertUnwindSafe(|| device.client_gone()));
        drop(gone);
        self.shared.waiting().clear();
    }
}

/// Serves one client over `transport`, on this thread, until it ends. For who accepts clients himself; a
/// [`Server`](super::Server) does this for each of its own.
pub fn serve(
    transport: impl Transport,
    model: &Arc<dyn Model>,
    store: &Arc<MemoryStore>,
    settings: &ServerSettings,
) -> Ending {
    let counts = Arc::new(Counts::default());
    let ServerSettings { session, patience, .. } = settings;
    let conversation = Conversation::new(Box::new(transport), *session, *patience, counts.clone());
    let name = model.name().to_owned();
    let shared = Shared::new(0, None, name, (0, u32::MAX), Arc::new(conversation), counts);
    Client::new(Arc::new(shared), store.clone(), model.clone(), None, None).serve()
}
