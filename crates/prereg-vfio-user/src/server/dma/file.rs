//! A file of clients, registered once for all of them.
//!
//! Its lock is not held while memory is pinned or unpinned: a thread reserves a range, pins it without the lock, and then adds
//! it. Only threads that need that range wait.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use prereg::{Errno, Holder, Registration};
use prereg_linux::{DataExtents, FileIdentity, FileStat, SharedError, SharedFile};

use super::error::MapMemoryError;
use super::extents::{Extents, FragmentBudget, Missing, Reserved};
use super::register_context::RegisterContext;
use super::state::FileState;

/// A file of clients.
#[derive(Debug)]
pub(super) struct File {
    shared: SharedFile,
    extents: Mutex<Extents>,
    /// Notified when a range is no longer being pinned.
    settled: Condvar,
}

/// A range of a file that is charged and may be pinned, until this is dropped.
#[derive(Debug)]
pub(super) struct Promise {
    file: Arc<File>,
    first: u64,
    end: u64,
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.file.extents().forget_promise(self.first, self.end);
    }
}

/// Parameters of a registration.
#[derive(Clone, Copy)]
pub(super) struct RegisterRequest {
    /// The file's length known to the caller.
    pub(super) length: u64,
    /// The size of a piece; `None` for the longest possible range.
    pub(super) extent: Option<u64>,
    /// Bases and fragments left to the client.
    pub(super) budget: FragmentBudget,
    pub(super) holder: Holder,
}

impl File {
    /// A file of which the descriptor was checked to be memory.
    pub(super) fn new(fd: OwnedFd, stat: &FileStat) -> Result<Self, SharedError> {
        let shared = SharedFile::new(fd, stat)?;
        let extents = Mutex::new(Extents::new(shared.page().bytes(), shared.tracks_changes()));
        Ok(Self { shared, extents, settled: Condvar::new() })
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.shared.identity()
    }

    /// The parts of it that have pages.
    pub(super) fn residency(&self) -> Result<DataExtents, SharedError> {
        self.shared.data_extents()
    }

    /// The end of its last whole page at `length` bytes.
    pub(super) fn whole(&self, length: u64) -> u64 {
        length - length % self.shared.page().bytes()
    }

    /// Its extents, also after [`close`](Self::close).
    fn extents(&self) -> MutexGuard<'_, Extents> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its extents; `None` after [`close`](Self::close).
    pub(super) fn lock(&self) -> Option<MutexGuard<'_, Extents>> {
        let extents = self.extents();
        (!extents.is_closed()).then_some(extents)
    }

    /// [`lock`](Self::lock) without waiting.
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, Extents>> {
        let extents = match self.extents.try_lock() {
            Ok(extents) => extents,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!extents.is_closed()).then_some(extents)
    }

    /// Releases every registration: no client uses the file any more.
    pub(super) fn close(&self, context: &RegisterContext) {
        let mut extents = self.extents();
        let gone = extents.close(context);
        drop(extents);
        self.settled.notify_all();
        release(gone);
    }

    pub(super) fn state(&self, clients: u64) -> FileState {
        let FileIdentity { dev, ino } = self.identity();
        let bytes = self.shared.bytes().unwrap_or(0);
        let extents = self.extents();
        let (count, stale_extents, registered_bytes) = extents.totals();
        let promised_bytes = extents.promised_bytes();
        FileState {
            dev,
            ino,
            bytes,
            clients,
            extents: count,
            registered_bytes,
            promised_bytes,
            stale_extents,
        }
    }

    /// Charged bytes.
    pub(super) fn charged_bytes(&self) -> u64 {
        self.extents().charged_bytes()
    }

    /// Charged bytes that nothing maps.
    pub(super) fn releasable_bytes(&self) -> u64 {
        self.extents().releasable_bytes()
    }

    /// Whether any extent is stale.
    pub(super) fn has_stale(&self) -> bool {
        self.extents().has_stale()
    }

    /// Charges `[first, end)` until the promise is dropped. The caller has checked the limits.
    pub(super) fn promise(self: &Arc<Self>, first: u64, end: u64) -> Promise {
        self.extents().promise(first, end);
        Promise { file: Arc::clone(self), first, end }
    }

    /// Registers the missing parts of `[first, end)`; only threads that need one of them wait. `reclaim` releases memory when
    /// there is none left. After a failure nothing of this call stays registered unless others map it.
    pub(super) fn register(
        &self,
        (first, end): (u64, u64),
        request: RegisterRequest,
        context: &RegisterContext,
        reclaim: impl Fn() -> bool,
    ) -> Result<NewExtents, MapMemoryError> {
        let whole = self.whole(request.length);
        if end > whole {
            return Err(
                SharedError::Short { offset: first, bytes: end - first, length: request.length }.into()
            );
        }
        let mut added = NewExtents::default();
        loop {
            match self.register_next((first, end), whole, request, context, &reclaim) {
                Ok(Some(number)) => added.0.push(number),
                Ok(None) => return Ok(added),
                Err(error) => {
                    self.roll_back(added, context);
                    return Err(error);
                }
            }
        }
    }

    /// Registers the first missing range; returns its number, or `None` if none is missing.
    fn register_next(
        &self,
        (first, end): (u64, u64),
        whole: u64,
        request: RegisterRequest,
        context: &RegisterContext,
        reclaim: impl Fn() -> bool,
    ) -> Result<Option<u64>, MapMemoryError> {
        let mut extents = self.extents();
        let (from, to) = loop {
            if extents.is_closed() {
                return Err(MapMemoryError::Disconnected);
            }
            match extents.missing(first, end, whole, request.extent) {
                Missing::Nothing => return Ok(None),
                Missing::Range(from, to) => break (from, to),
                Missing::Pinning => {
                    extents = self.settled.wait(extents).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        let map = |from, to| Ok(self.shared.map(from, to - from)?);
        let (reserved, memory) = extents.reserve((from, to), whole, request.extent, request.budget, map)?;
        drop(extents);
        let reservation = Reservation { file: self, reserved: Some(reserved) };
        let mut registered = context.space.register_for(&memory, request.holder);
        let is_short = |errno| matches!(errno, Errno::ENOMEM | Errno::ENOSPC);
        if registered.as_ref().is_err_and(|error| is_short(error.errno())) && reclaim() {
            registered = context.space.register_for(&memory, request.holder);
        }
        let registration = registered?;
        context.counts.registrations.add();
        match reservation.fill(memory, registration, context) {
            Ok(number) => Ok(Some(number)),
            Err(unwanted) => {
                drop(unwanted);
                Err(MapMemoryError::Disconnected)
            }
        }
    }

    /// Releases what a failed call registered, except for extents that others map.
    pub(super) fn roll_back(&self, added: NewExtents, context: &RegisterContext) {
        let mut extents = self.extents();
        let gone: Vec<Registration> =
            added.0.into_iter().filter_map(|number| extents.remove_unmapped(number, context)).collect();
        drop(extents);
        release(gone);
    }
}

/// Releases removed extents with one fence; mapped ones follow with their last mapping. No file may be locked: it unpins.
pub(super) fn release(gone: Vec<Registration>) {
    drop(Registration::unregister_many(gone));
}

/// A range that this thread is pinning. If dropped, others may pin it.
struct Reservation<'a> {
    file: &'a File,
    reserved: Option<Reserved>,
}

impl Reservation<'_> {
    /// Adds the pinned range, as far as it is not stale; returns the registration if no client uses the file any more.
    fn fill(
        mut self,
        memory: prereg_linux::SharedMemory,
        registration: Registration,
        context: &RegisterContext,
    ) -> Result<u64, Registration> {
        let mut extents = self.file.extents();
        let reserved = match self.reserved {
            Some(reserved) if !extents.is_closed() => reserved,
            _ => {
                // Dropping this takes the lock again.
                drop(extents);
                return Err(registration);
            }
        };
        self.reserved = None;
        let (number, is_stale) = extents.add(reserved, memory, registration, context);
        let gone = if is_stale { extents.release_unmapped(true, context) } else { Vec::new() };
        drop(extents);
        self.file.settled.notify_all();
        release(gone);
        Ok(number)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            self.file.extents().unreserve(reserved);
            self.file.settled.notify_all();
        }
    }
}

/// Extents that a call registered, to be released if it fails.
#[derive(Debug, Default)]
#[must_use = "what a failed call registered must be taken back"]
pub(super) struct NewExtents(Vec<u64>);

impl NewExtents {
    /// Keeps them: the call succeeded.
    pub(super) fn keep(self) {}
}
