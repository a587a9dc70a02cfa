//! The server: listening sockets, and a thread for each client.
//!
//! One more thread accepts, on all sockets. It also sees when a client hangs up, so that a thread of that client which is held
//! up by an eventfd that the client filled is freed even though it does not look at its socket.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use prereg::Errno;

use super::bound::Bound;
use super::client::{Client, Others, Shared};
use super::conversation::Conversation;
use super::counts::Counts;
use super::device::Model;
use super::dma::MemoryStore;
use super::error::ServerError;
use super::notices::{self, Notice, Notices};
use super::settings::ServerSettings;
use super::state::{Ending, RequestCounts, ServerState};
use super::transport::Socket;
use crate::sys::{self, Waiting};

/// Clients that are told that there are too many, at a time; what comes after that is cut off unheard.
const MOST_REFUSED: usize = 16;
/// How long one of them is listened to.
const REFUSED_PATIENCE: Duration = Duration::from_secs(1);
/// How many are accepted on one socket before the next has its turn.
const ACCEPTED: usize = 16;
/// How long nobody is accepted when the process has no descriptor or memory left.
const CONGESTION: Duration = Duration::from_millis(100);

/// A server. Dropping it is [`Server::stop`].
pub struct Server {
    inner: Arc<Inner>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    store: Arc<MemoryStore>,
    settings: ServerSettings,
    /// Tells the accepting thread that the lists changed; made with it.
    state: Mutex<State>,
    /// A client ended or was seen to have hung up, or the server stops.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    wake: Option<Arc<OwnedFd>>,
    sockets: Vec<(Arc<Bound>, Arc<dyn Model>)>,
    clients: BTreeMap<u64, Connected>,
    accepted: u64,
    turned_away: u64,
    /// Clients that have left.
    departures: u64,
    endings: BTreeMap<String, u64>,
    notices: Notices,
    /// Of clients that are gone.
    gone: RequestCounts,
    stopped: bool,
}

struct Connected {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    model: Arc<dyn Model>,
    /// There is no place for it, which it is told.
    refused: bool,
    /// It lost its place before it said anything.
    cut: bool,
    /// Seen to have hung up.
    gone: bool,
}

impl Inner {
    /// Every change of the lists is whole before anything is called that could fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&self) {
        if let Some(wake) = &self.wake {
            // A count that is full wakes as well.
            let _ = sys::add_one(wake.as_fd());
        }
    }
}

impl Server {
    /// A server without sockets, over `store`.
    #[must_use]
    pub fn new(store: Arc<MemoryStore>, settings: ServerSettings) -> Self {
        let (state, ended) = (Mutex::default(), Condvar::new());
        Self { inner: Arc::new(Inner { store, settings, state, ended }), acceptor: Mutex::default() }
    }

    /// Listens on a new socket at `path` and makes a device of `model` for each client. The socket of a server that is dead is
    /// replaced.
    ///
    /// # Errors
    /// [`ServerError::Live`], [`ServerError::NotASocket`], [`ServerError::System`], [`ServerError::Stopped`].
    pub fn listen(&self, path: &Path, model: Arc<dyn Model>) -> Result<Listening, ServerError> {
        self.accept_clients(path)?;
        let socket = Arc::new(Bound::new(path, self.inner.settings.socket_mode)?);
        let mut state = self.inner.lock();
        if state.stopped {
            drop(state);
            socket.remove();
            return Err(ServerError::Stopped);
        }
        state.sockets.push((socket.clone(), model));
        state.wake();
        Ok(Listening { socket, server: Arc::downgrade(&self.inner) })
    }

    /// Serves the client at the other end of `stream`, a device of `model`; says its number.
    ///
    /// # Errors
    /// [`ServerError::TooMany`], [`ServerError::System`], [`ServerError::Stopped`].
    pub fn adopt(&self, stream: UnixStream, model: &Arc<dyn Model>) -> Result<u64, ServerError> {
        self.accept_clients(Path::new(""))?;
        let most = self.inner.settings.max_clients;
        match self.inner.admit(stream, None, model) {
            Ok(Admitted::Served(number)) => Ok(number),
            Ok(Admitted::TurnedAway) => Err(ServerError::TooMany { most }),
            Err(Errno::ENXIO) => Err(ServerError::Stopped),
            Err(errno) => Err(ServerError::System { what: "serve a client of", path: PathBuf::new(), errno }),
        }
    }

    /// Everything that is to be known, as plain data.
    #[must_use]
    pub fn snapshot(&self) -> ServerState {
        let mut snapshot = ServerState { store: self.inner.store.snapshot(), ..ServerState::default() };
        let clients: Vec<Arc<Shared>> = {
            let state = self.inner.lock();
            let name = |(socket, model): &(Arc<Bound>, Arc<dyn Model>)| {
                (socket.path().to_owned(), model.name().to_owned())
            };
            snapshot.sockets = state.sockets.iter().map(name).collect();
            (snapshot.accepted, snapshot.turned_away) = (state.accepted, state.turned_away);
            snapshot.endings = state.endings.clone();
            snapshot.requests = state.gone.clone();
            state.clients.values().map(|client| client.shared.clone()).collect()
        };
        // Not under the lock: a device may take its time.
        for client in clients {
            client.counts.add_to(&mut snapshot.requests);
            snapshot.clients.push(client.snapshot());
        }
        snapshot
    }

    /// Takes what an operator should hear of clients that could not attach, oldest first. Few are kept.
    #[must_use]
    pub fn take_notices(&self) -> Vec<Notice> {
        self.inner.lock().notices.take()
    }

    /// Releases memory that was unplugged from guests: files of which nothing was mapped at this call and the one before,
    /// though others of the same client were. The protocol does not tell it from memory that is not in use at the moment, so
    /// whoever has a clock calls this every second or so; memory that is wanted again is registered again.
    pub fn release_idle(&self) {
        let clients: Vec<Arc<Shared>> =
            self.inner.lock().clients.values().map(|client| client.shared.clone()).collect();
        for client in clients {
            client.release_idle();
        }
    }

    /// Accepts no client any more, removes the sockets and ends every session: from here on no client sees what its device
    /// does, so what the caller has fail after this (pins that it cancels) is not told to a guest as an I/O error.
    /// [`stop`](Self::stop) waits for the devices.
    pub fn cut_off(&self) {
        let (sockets, clients) = {
            let mut state = self.inner.lock();
            state.stopped = true;
            state.wake();
            self.inner.ended.notify_all();
            let clients: Vec<_> = state.clients.values().map(|client| client.shared.clone()).collect();
            (std::mem::take(&mut state.sockets), clients)
        };
        sockets.iter().for_each(|(socket, _)| socket.remove());
        for client in clients {
            client.cut_off();
        }
    }

    /// As [`cut_off`](Self::cut_off), and waits until the devices are quiet.
    pub fn stop(self) {
        self.end();
    }

    fn end(&self) {
        self.cut_off();
        let wake = self.inner.lock().wake.take();
        let mut state = self.inner.lock();
        while !state.clients.is_empty() {
            state = self.inner.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        if let Some(wake) = wake {
            let _ = sys::add_one(wake.as_fd());
        }
        let acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        // It has nothing to say.
        let _ = acceptor.map(JoinHandle::join);
    }

    /// Starts the accepting thread, the first time.
    fn accept_clients(&self, path: &Path) -> Result<(), ServerError> {
        let mut acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner);
        if self.inner.lock().stopped {
            return Err(ServerError::Stopped);
        }
        if acceptor.is_none() {
            let failed = |errno| ServerError::System { what: "listen on", path: path.to_owned(), errno };
            let wake = Arc::new(sys::eventfd().map_err(failed)?);
            let (inner, theirs) = (self.inner.clone(), wake.clone());
            let thread = thread::Builder::new().name("vfio-user".to_owned());
            let started = thread.spawn(move || inner.accept(&theirs));
            *acceptor = Some(started.map_err(|error| failed(sys::errno_of(&error)))?);
            self.inner.lock().wake = Some(wake);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.lock();
        f.debug_struct("Server")
            .field("sockets", &state.sockets.len())
            .field("clients", &state.clients.len())
            .finish_non_exhaustive()
    }
}

enum Admitted {
    Served(u64),
    TurnedAway,
}

impl Inner {
    /// The accepting thread: whoever knocks, and whoever hangs up.
    fn accept(self: &Arc<Self>, wake: &Arc<OwnedFd>) {
        let mut congested = false;
        loop {
            let (sockets, clients) = {
                let state = self.lock();
                if state.stopped && state.clients.is_empty() {
                    return;
                }
                let there = |(number, client): (&u64, &Connected)| {
                    (!client.gone).then(|| (*number, client.socket.clone()))
                };
                (state.sockets.clone(), state.clients.iter().filter_map(there).collect::<Vec<_>>())
            };
            let mut waiting = vec![Waiting::new(wake.as_raw_fd(), true, false)];
            // A socket is passed over while nothing could be made of its clients.
            waiting.extend(
                sockets
                    .iter()
                    .map(|(socket, _)| Waiting::new(socket.listener.as_raw_fd(), !congested, false)),
            );
            waiting.extend(
                clients.iter().map(|(_, socket)| Waiting::new(socket.as_fd().as_raw_fd(), false, false)),
            );
            if sys::poll(&mut waiting, congested.then_some(CONGESTION)).is_err() {
                thread::sleep(CONGESTION);
                continue;
            }
            let (woken, waiting) = waiting.split_at(1);
            if woken.iter().any(Waiting::is_readable) {
                let _ = sys::take_count(wake.as_fd());
            }
            let (knocking, hanging) = waiting.split_at(sockets.len());
            congested = false;
            for (socket, model) in
                sockets.iter().zip(knocking).filter(|(_, w)| w.is_readable()).map(|(s, _)| s)
            {
                congested |= !self.answer_the_door(socket, model);
            }
            for (number, _) in clients.iter().zip(hanging).filter(|(_, w)| w.is_over()).map(|(c, _)| c) {
                let shared = self.lock().clients.get_mut(number).map(|client| {
                    client.gone = true;
                    client.shared.clone()
                });
                if let Some(shared) = shared {
                    shared.release();
                    self.ended.notify_all();
                }
            }
        }
    }

    /// Accepts who knocks, but not for ever, because others knock elsewhere; false when the process lacks what that takes.
    fn answer_the_door(self: &Arc<Self>, socket: &Bound, model: &Arc<dyn Model>) -> bool {
        for _ in 0..ACCEPTED {
            let admitted = match socket.listener.accept() {
                Ok((stream, _)) => self.admit(stream, Some(socket.path()), model),
                Err(error) => Err(sys::errno_of(&error)),
            };
            match admitted {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return true,
                // Whoever knocked has left again.
                Err(errno) if errno.raw() == libc::ECONNABORTED || errno == Errno::EINTR => {}
                Err(Errno::ENXIO) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Gives a client its thread.
    ///
    /// # Errors
    /// The system's; ENXIO when the server is stopped.
    fn admit(
        self: &Arc<Self>,
        stream: UnixStream,
        path: Option<&Path>,
        model: &Arc<dyn Model>,
    ) -> Result<Admitted, Errno> {
        let socket = Arc::new(Socket::new(stream)?);
        let peer = socket.peer().unwrap_or((0, u32::MAX));
        let mut state = self.lock();
        // Those that were cut off are gone in a moment; until then few more are.
        while state.clients.values().filter(|client| client.cut).count() >= MOST_REFUSED && !state.stopped {
            let waited = self.ended.wait_timeout(state, CONGESTION);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.stopped {
            return Err(Errno::ENXIO);
        }
        let refused = state.clients.values().filter(|client| client.refused).count();
        let placed = state.clients.values().filter(|client| !client.refused && !client.cut).count();
        let mut refuse = placed >= self.settings.max_clients;
        if refuse {
            // One that has said nothing so far has no place to keep against one that comes; the oldest goes first.
            let is_silent = |client: &&mut Connected| {
                !client.refused && !client.cut && client.shared.conversation.terms().is_none()
            };
            if let Some(silent) = state.clients.values_mut().find(is_silent) {
                silent.cut = true;
                silent.shared.conversation.cut();
                refuse = false;
            }
        }
        state.turned_away += u64::from(refuse);
        if refuse && refused >= MOST_REFUSED {
            return Ok(Admitted::TurnedAway);
        }
        let number = state.accepted;
        state.accepted += 1;
        let patience = if refuse { Some(REFUSED_PATIENCE) } else { self.settings.patience };
        let counts = Arc::new(Counts::default());
        let transport = Box::new(socket.clone());
        let session = self.settings.session;
        let conversation = Arc::new(Conversation::new(transport, session, patience, counts.clone()));
        let path = path.map(Path::to_owned);
        let name = model.name().to_owned();
        let shared = Arc::new(Shared::new(number, path, name, peer, conversation, counts));
        let errno = refuse.then_some(Errno::ENFILE);
        let others: Arc<dyn Others> = self.clone();
        let client = Client::new(shared.clone(), self.store.clone(), model.clone(), errno, Some(others));
        let inner = self.clone();
        let thread = thread::Builder::new().name(format!("vfio-user-{number}"));
        let started = thread.spawn(move || {
            let ending = catch_unwind(AssertUnwindSafe(|| client.serve())).unwrap_or(Ending::Panicked);
            inner.finish(number, ending);
        });
        started.map_err(|error| sys::errno_of(&error))?;
        // The thread finds this when it ends: it cannot take the lock before.
        let model = model.clone();
        state
            .clients
            .insert(number, Connected { shared, socket, model, refused: refuse, cut: false, gone: false });
        state.wake();
        Ok(if refuse { Admitted::TurnedAway } else { Admitted::Served(number) })
    }

    /// A client's thread is at its end.
    fn finish(&self, number: u64, ending: Ending) {
        let mut state = self.lock();
        if let Some(client) = state.clients.remove(&number) {
            client.shared.counts.add_to(&mut state.gone);
            let mut requests = RequestCounts::default();
            client.shared.counts.add_to(&mut requests);
            if let Some(reason) = notices::reason(&ending, &requests, client.shared.was_offered()) {
                let Shared { number, pid, socket, .. } = &*client.shared;
                let (socket, is_unmappable) = (socket.clone(), reason == notices::UNMAPPABLE);
                let notice = Notice { client: *number, pid: *pid, socket, reason, is_unmappable };
                state.notices.add(notice, Instant::now());
            }
        }
        *state.endings.entry(ending.name().to_owned()).or_default() += 1;
        state.departures += 1;
        state.wake();
        self.ended.notify_all();
    }
}

impl Others for Inner {
    fn departures(&self) -> u64 {
        self.lock().departures
    }

    fn await_departure(&self, number: u64, seen: u64, deadline: Instant) -> bool {
        let mut state = self.lock();
        loop {
            if state.departures != seen {
                return true;
            }
            let Some(own) = state.clients.get(&number).filter(|own| !own.gone && !state.stopped) else {
                return false;
            };
            // A client that is about to leave has closed its end, whether or not its thread has come to that.
            let leaves = |other: &Connected| {
                other.shared.number != number
                    && Arc::ptr_eq(&other.model, &own.model)
                    && (other.gone || other.socket.is_hung_up())
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !state.clients.values().any(leaves) {
                return false;
            }
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A socket that is listened on, until [`Listening::close`] or the server's end.
#[derive(Clone)]
pub struct Listening {
    socket: Arc<Bound>,
    server: Weak<Inner>,
}

impl Listening {
    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Accepts nobody any more and removes the socket; the clients that it has stay.
    pub fn close(&self) {
        let Some(server) = self.server.upgrade() else { return };
        let mut state = server.lock();
        let before = state.sockets.len();
        state.sockets.retain(|(socket, _)| !Arc::ptr_eq(socket, &self.socket));
        let was_there = state.sockets.len() < before;
        state.wake();
        drop(state);
        if was_there {
            self.socket.remove();
        }
    }
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listening").field(&self.socket.path()).finish()
    }
}
