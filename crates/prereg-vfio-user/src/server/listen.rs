//! The server: listening sockets, and a thread for each client.
//!
//! One more thread accepts clients on all sockets. It also detects that a client hung up, so that a client's thread that does
//! not read its socket ends its work early.

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

use super::bound_socket::BoundSocket;
use super::client_thread::{ClientShared, ClientThread, Departures};
use super::counts::Counts;
use super::device::DeviceFactory;
use super::dma::MemoryStore;
use super::error::ServerError;
use super::event::Event;
use super::observer::{EventSource, Reporter};
use super::settings::ServerSettings;
use super::shared_session::SharedSession;
use super::state::{DisconnectReason, RequestCounts, ServerState};
use super::transport::Socket;
use crate::sys::{self, PollFd};

/// Clients at a time that get a reply that there are too many; more are disconnected without one.
const MAX_REJECTED: usize = 16;
/// Timeout for the VERSION of such a client.
const REJECTED_TIMEOUT: Duration = Duration::from_secs(1);
/// Clients accepted on one socket before the next one's turn.
const ACCEPT_BATCH: usize = 16;
/// Pause of accepting when the process has no descriptor or memory left.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A server. Dropping it is [`Server::stop`].
pub struct Server {
    inner: Arc<Inner>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    store: Arc<MemoryStore>,
    settings: ServerSettings,
    /// Wakes the accepting thread when the lists changed.
    state: Mutex<State>,
    /// A client disconnected or hung up, or the server stops.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    wake: Option<Arc<OwnedFd>>,
    sockets: Vec<(Arc<BoundSocket>, Arc<dyn DeviceFactory>)>,
    clients: BTreeMap<u64, Connected>,
    accepted: u64,
    rejected_clients: u64,
    /// Clients that have disconnected.
    departures: u64,
    disconnects: BTreeMap<String, u64>,
    /// Of disconnected clients.
    gone: RequestCounts,
    stopped: bool,
}

struct Connected {
    shared: Arc<ClientShared>,
    socket: Arc<Socket>,
    model: Arc<dyn DeviceFactory>,
    /// Rejected because there are too many; still to be answered.
    rejected: bool,
    /// Evicted before its VERSION.
    evicted: bool,
    /// Has hung up.
    gone: bool,
}

impl Inner {
    /// The lists are changed completely before any call that could panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&self) {
        if let Some(wake) = &self.wake {
            // A full count wakes as well.
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

    /// Listens on a new socket at `path`, creating a device with `model` for each client. The socket of a server that has ended
    /// is replaced.
    ///
    /// # Errors
    /// [`ServerError::Live`], [`ServerError::NotASocket`], [`ServerError::System`], [`ServerError::Stopped`].
    pub fn listen(&self, path: &Path, model: Arc<dyn DeviceFactory>) -> Result<Listening, ServerError> {
        self.accept_clients(path)?;
        let socket = Arc::new(BoundSocket::new(path, self.inner.settings.socket_mode)?);
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

    /// Serves the client connected to `stream` with a device of `model`; returns its number.
    ///
    /// # Errors
    /// [`ServerError::TooMany`], [`ServerError::System`], [`ServerError::Stopped`].
    pub fn adopt(&self, stream: UnixStream, model: &Arc<dyn DeviceFactory>) -> Result<u64, ServerError> {
        self.accept_clients(Path::new(""))?;
        let most = self.inner.settings.max_clients;
        match self.inner.start_client(stream, None, model) {
            Ok(Admitted::Served(number)) => Ok(number),
            Ok(Admitted::Rejected) => Err(ServerError::TooMany { most }),
            Err(Errno::ENXIO) => Err(ServerError::Stopped),
            Err(errno) => Err(ServerError::System { what: "serve a client of", path: PathBuf::new(), errno }),
        }
    }

    /// A snapshot as plain data.
    #[must_use]
    pub fn snapshot(&self) -> ServerState {
        let mut snapshot = ServerState { store: self.inner.store.snapshot(), ..ServerState::default() };
        let clients: Vec<Arc<ClientShared>> = {
            let state = self.inner.lock();
            let name = |(socket, model): &(Arc<BoundSocket>, Arc<dyn DeviceFactory>)| {
                (socket.path().to_owned(), model.name().to_owned())
            };
            snapshot.sockets = state.sockets.iter().map(name).collect();
            (snapshot.accepted, snapshot.rejected) = (state.accepted, state.rejected_clients);
            snapshot.disconnects = state.disconnects.clone();
            snapshot.requests = state.gone.clone();
            state.clients.values().map(|client| client.shared.clone()).collect()
        };
        // Without the lock: a device's metrics may take time.
        for client in clients {
            client.counts.add_to(&mut snapshot.requests);
            snapshot.clients.push(client.snapshot());
        }
        snapshot
    }

    /// Releases memory that was unplugged from guests: files of which nothing is mapped, at this call and the one before, while
    /// others of the client are. The protocol does not tell this from memory that is unused for the moment, so call it every
    /// second or so; memory that is mapped again is registered again.
    pub fn release_idle(&self) {
        let clients: Vec<Arc<ClientShared>> =
            self.inner.lock().clients.values().map(|client| client.shared.clone()).collect();
        for client in clients {
            client.release_idle();
        }
    }

    /// Stops accepting, removes the sockets and ends every session: no client sees what its device does from here on, so that
    /// pins which the caller cancels next do not appear as I/O errors in a guest. [`stop`](Self::stop) waits for the devices.
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

    /// Like [`cut_off`](Self::cut_off), and waits until all devices have ended.
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
        // Its result is `()`.
        let _ = acceptor.map(JoinHandle::join);
    }

    /// Starts the accepting thread at the first call.
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
    Rejected,
}

impl Inner {
    /// The accepting thread: new clients, and clients that hang up.
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
            let mut waiting = vec![PollFd::new(wake.as_raw_fd(), true, false)];
            // Listening sockets are skipped while resources are short.
            waiting.extend(
                sockets.iter().map(|(socket, _)| PollFd::new(socket.listener.as_raw_fd(), !congested, false)),
            );
            waiting.extend(
                clients.iter().map(|(_, socket)| PollFd::new(socket.as_fd().as_raw_fd(), false, false)),
            );
            if sys::poll(&mut waiting, congested.then_some(ACCEPT_BACKOFF)).is_err() {
                thread::sleep(ACCEPT_BACKOFF);
                continue;
            }
            let (woken, waiting) = waiting.split_at(1);
            if woken.iter().any(PollFd::is_readable) {
                let _ = sys::take_count(wake.as_fd());
            }
            let (listening, hung_up) = waiting.split_at(sockets.len());
            congested = false;
            for (socket, model) in
                sockets.iter().zip(listening).filter(|(_, w)| w.is_readable()).map(|(s, _)| s)
            {
                congested |= !self.accept_pending(socket, model);
            }
            for (number, _) in clients.iter().zip(hung_up).filter(|(_, w)| w.is_over()).map(|(c, _)| c) {
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

    /// Accepts a batch of clients of one socket; false if resources are short.
    fn accept_pending(self: &Arc<Self>, socket: &BoundSocket, model: &Arc<dyn DeviceFactory>) -> bool {
        for _ in 0..ACCEPT_BATCH {
            let admitted = match socket.listener.accept() {
                Ok((stream, _)) => self.start_client(stream, Some(socket.path()), model),
                Err(error) => Err(sys::errno_of(&error)),
            };
            match admitted {
                Ok(_) => {}
                Err(Errno::EAGAIN) => return true,
                // The client has disconnected already.
                Err(errno) if errno.raw() == libc::ECONNABORTED || errno == Errno::EINTR => {}
                Err(Errno::ENXIO) => return true,
                Err(errno) => {
                    self.reporter(Some(socket.path()), model, None).report(&Event::AcceptFailed { errno });
                    return false;
                }
            }
        }
        true
    }

    /// The reporter of a socket, or of a client of it with its number, process and user.
    fn reporter(
        &self,
        socket: Option<&Path>,
        model: &Arc<dyn DeviceFactory>,
        client: Option<(u64, (i32, u32))>,
    ) -> Reporter<Event> {
        let (pid, uid) = client.map_or((0, u32::MAX), |(_, peer)| peer);
        let source = EventSource {
            socket: socket.map(Path::to_owned),
            device: model.name().to_owned(),
            client: client.map(|(number, _)| number),
            pid,
            uid,
        };
        Reporter::new(Arc::new(source), self.settings.observer.clone())
    }

    /// Starts a client's thread.
    ///
    /// # Errors
    /// The system's; ENXIO when the server is stopped.
    fn start_client(
        self: &Arc<Self>,
        stream: UnixStream,
        path: Option<&Path>,
        model: &Arc<dyn DeviceFactory>,
    ) -> Result<Admitted, Errno> {
        let socket = Arc::new(Socket::new(stream)?);
        let peer = socket.peer().unwrap_or((0, u32::MAX));
        let mut state = self.lock();
        // Bounds the number of evicted clients whose threads have not ended.
        while state.clients.values().filter(|client| client.evicted).count() >= MAX_REJECTED && !state.stopped
        {
            let waited = self.ended.wait_timeout(state, ACCEPT_BACKOFF);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.stopped {
            return Err(Errno::ENXIO);
        }
        let rejected = state.clients.values().filter(|client| client.rejected).count();
        let placed = state.clients.values().filter(|client| !client.rejected && !client.evicted).count();
        let mut reject = placed >= self.settings.max_clients;
        if reject {
            // A client without VERSION gives way to a new one; the oldest first.
            let is_silent = |client: &&mut Connected| {
                !client.rejected && !client.evicted && client.shared.session.negotiated().is_none()
            };
            if let Some(silent) = state.clients.values_mut().find(is_silent) {
                silent.evicted = true;
                silent.shared.session.evict();
                reject = false;
            }
        }
        state.rejected_clients += u64::from(reject);
        let is_answered = !reject || rejected < MAX_REJECTED;
        let number = state.accepted;
        state.accepted += u64::from(is_answered);
        let events = self.reporter(path, model, is_answered.then_some((number, peer)));
        if !is_answered {
            drop(state);
            events.report(&Event::TooManyClients { limit: self.settings.max_clients });
            return Ok(Admitted::Rejected);
        }
        let patience = if reject { Some(REJECTED_TIMEOUT) } else { self.settings.stall_timeout };
        let counts = Arc::new(Counts::default());
        let transport = Box::new(socket.clone());
        let session = self.settings.session;
        let session = SharedSession::new(transport, session, patience, counts.clone(), events.clone());
        let shared = Arc::new(ClientShared::new(events.clone(), Arc::new(session), counts));
        let errno = reject.then_some(Errno::ENFILE);
        let departures_of_others: Arc<dyn Departures> = self.clone();
        let client = ClientThread::new(
            shared.clone(),
            self.store.clone(),
            model.clone(),
            errno,
            Some(departures_of_others),
        );
        let inner = self.clone();
        let thread = thread::Builder::new().name(format!("vfio-user-{number}"));
        let started = thread.spawn(move || {
            let reason =
                catch_unwind(AssertUnwindSafe(|| client.serve())).unwrap_or(DisconnectReason::Panicked);
            inner.finish(number, reason);
        });
        started.map_err(|error| sys::errno_of(&error))?;
        // The thread's `finish` finds this entry: it needs the lock that is held here.
        let model = model.clone();
        state.clients.insert(
            number,
            Connected { shared, socket, model, rejected: reject, evicted: false, gone: false },
        );
        state.wake();
        drop(state);
        if reject {
            events.report(&Event::TooManyClients { limit: self.settings.max_clients });
            return Ok(Admitted::Rejected);
        }
        Ok(Admitted::Served(number))
    }

    /// Removes a client at the end of its thread.
    fn finish(&self, number: u64, reason: DisconnectReason) {
        let served = self
            .lock()
            .clients
            .get(&number)
            .filter(|client| !client.rejected)
            .map(|client| client.shared.clone());
        // While it is in the list, so that a stop waits for the report; without the lock, which an observer must not hold up.
        if let Some(client) = served {
            // The client's end does not depend on the observer.
            drop(catch_unwind(AssertUnwindSafe(|| client.report_end(reason))));
        }
        let mut state = self.lock();
        if let Some(client) = state.clients.remove(&number) {
            client.shared.counts.add_to(&mut state.gone);
        }
        *state.disconnects.entry(reason.name().to_owned()).or_default() += 1;
        state.departures += 1;
        state.wake();
        self.ended.notify_all();
    }
}

impl Departures for Inner {
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
            // A client that is about to leave has closed its socket, whether or not its thread has noticed.
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

/// A listening socket, until [`Listening::close`] or the server's end.
#[derive(Clone)]
pub struct Listening {
    socket: Arc<BoundSocket>,
    server: Weak<Inner>,
}

impl Listening {
    /// The path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Stops accepting and removes the socket; its clients stay connected.
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
