//! One file that clients handed over, registered once for all of them.
//!
//! Its lock is never held while memory is pinned or unpinned: a thread that pins reserves a stretch, pins it without the
//! lock, and then shows it. A thread that wants the same stretch waits for that one; threads that want other user_segments, and
//! threads that only look, do not wait.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};

use prereg::{Errno, Holder, Registration};
use prereg_iommu::iova::LocalSegment;
use prereg_linux::{DataExtents, FileIdentity, FileStat, SharedError, SharedFile};

use super::error::MapMemoryError;
use super::extents::{Extents, Missing, Reserved, Room};
use super::registrar::Registrar;
use super::state::FileState;

/// One file that clients handed over.
#[derive(Debug)]
pub(super) struct File {
    shared: SharedFile,
    extents: Mutex<Extents>,
    /// A stretch is not being pinned any more.
    settled: Condvar,
}

/// A stretch of a file that is charged and may be pinned, until this is dropped.
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

/// How a stretch is registered.
#[derive(Clone, Copy)]
pub(super) struct Order {
    /// The file's length, as the caller knows it.
    pub(super) length: u64,
    /// The size of a piece; `None` for as much as can be.
    pub(super) extent: Option<u64>,
    /// What the client may still have.
    pub(super) room: Room,
    pub(super) holder: Holder,
}

impl File {
    /// Takes a descriptor that turned out to be memory.
    pub(super) fn new(fd: OwnedFd, facts: &FileStat) -> Result<Self, SharedError> {
        let shared = SharedFile::new(fd, facts)?;
        let extents = Mutex::new(Extents::new(shared.page().bytes(), shared.tracks_changes()));
        Ok(Self { shared, extents, settled: Condvar::new() })
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.shared.identity()
    }

    /// Which parts of it have pages.
    pub(super) fn residency(&self) -> Result<DataExtents, SharedError> {
        self.shared.data_extents()
    }

    /// The end of its last whole page, at `length` bytes.
    pub(super) fn whole(&self, length: u64) -> u64 {
        length - length % self.shared.page().bytes()
    }

    /// Its extents, whether a client names it or not.
    fn extents(&self) -> MutexGuard<'_, Extents> {
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its extents. `None` when no client names it any more.
    pub(super) fn lock(&self) -> Option<Extending<'_>> {
        let extents = self.extents();
        (!extents.is_closed()).then_some(Extending { extents })
    }

    /// The same if no other thread has them.
    pub(super) fn try_lock(&self) -> Option<Extending<'_>> {
        let extents = match self.extents.try_lock() {
            Ok(extents) => extents,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!extents.is_closed()).then_some(Extending { extents })
    }

    /// Gives every registration up: no client names it any more.
    pub(super) fn close(&self, registrar: &Registrar) {
        let mut extents = self.extents();
        let gone = extents.close(registrar);
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

    /// Bytes that are charged for it.
    pub(super) fn charged_bytes(&self) -> u64 {
        self.extents().charged_bytes()
    }

    /// Those of them that nothing maps.
    pub(super) fn spare_bytes(&self) -> u64 {
        self.extents().spare_bytes()
    }

    /// Whether pages are registered that are not the file's any more.
    pub(super) fn has_stale(&self) -> bool {
        self.extents().has_stale()
    }

    /// Charges `[first, end)` until the promise is dropped. The caller saw to it that there is room.
    pub(super) fn promise(self: &Arc<Self>, first: u64, end: u64) -> Promise {
        self.extents().promise(first, end);
        Promise { file: Arc::clone(self), first, end }
    }

    /// Registers what is not of `[first, end)`, stretch by stretch; nothing else waits for that but threads that want the same
    /// stretch. `relief` is asked to release memory when there is none left. Nothing that nothing else maps stays
    /// registered by this call when it fails.
    pub(super) fn register(
        &self,
        (first, end): (u64, u64),
        order: Order,
        registrar: &Registrar,
        relief: impl Fn() -> bool,
    ) -> Result<Added, MapMemoryError> {
        let whole = self.whole(order.length);
        if end > whole {
            return Err(SharedError::Short { offset: first, bytes: end - first, length: order.length }.into());
        }
        let mut added = Added::default();
        loop {
            match self.register_next((first, end), whole, order, registrar, &relief) {
                Ok(Some(number)) => added.0.push(number),
                Ok(None) => return Ok(added),
                Err(error) => {
                    self.take_back(added, registrar);
                    return Err(error);
                }
            }
        }
    }

    /// Registers the first stretch that is missing; answers its number, or `None` when nothing is missing.
    fn register_next(
        &self,
        (first, end): (u64, u64),
        whole: u64,
        order: Order,
        registrar: &Registrar,
        relief: impl Fn() -> bool,
    ) -> Result<Option<u64>, MapMemoryError> {
        let mut extents = self.extents();
        let (from, to) = loop {
            if extents.is_closed() {
                return Err(MapMemoryError::Disconnected);
            }
            match extents.missing(first, end, whole, order.extent) {
                Missing::Nothing => return Ok(None),
                Missing::UserSegment(from, to) => break (from, to),
                Missing::Pinning => {
                    extents = self.settled.wait(extents).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        let map = |from, to| Ok(self.shared.map(from, to - from)?);
        let (reserved, memory) = extents.reserve((from, to), whole, order.extent, order.room, map)?;
        drop(extents);
        let reservation = Reservation { file: self, reserved: Some(reserved) };
        let mut registered = registrar.space.register_for(&memory, order.holder);
        let is_short = |errno| matches!(errno, Errno::ENOMEM | Errno::ENOSPC);
        if registered.as_ref().is_err_and(|error| is_short(error.errno())) && relief() {
            registered = registrar.space.register_for(&memory, order.holder);
        }
        let registration = registered?;
        registrar.counts.registrations.add();
        match reservation.fill(memory, registration, registrar) {
            Ok(number) => Ok(Some(number)),
            Err(unwanted) => {
                drop(unwanted);
                Err(MapMemoryError::Disconnected)
            }
        }
    }

    /// Takes back what a call registered that failed after all, but for what other mappings have found there.
    pub(super) fn take_back(&self, added: Added, registrar: &Registrar) {
        let mut extents = self.extents();
        let gone: Vec<Registration> =
            added.0.into_iter().filter_map(|number| extents.remove_unmapped(number, registrar)).collect();
        drop(extents);
        release(gone);
    }
}

/// Releases what was taken out of a file, with one fence for all of it; what is still mapped goes with its last mapping. No file
/// may be locked: it unpins.
pub(super) fn release(gone: Vec<Registration>) {
    drop(Registration::unregister_many(gone));
}

/// A stretch that this thread is pinning. Dropped, others may.
struct Reservation<'a> {
    file: &'a File,
    reserved: Option<Reserved>,
}

impl Reservation<'_> {
    /// Shows what was pinned, as far as it still is the file's; it comes back when no client names the file any more.
    fn fill(
        mut self,
        memory: prereg_linux::SharedMemory,
        registration: Registration,
        registrar: &Registrar,
    ) -> Result<u64, Registration> {
        let mut extents = self.file.extents();
        let reserved = match self.reserved {
            Some(reserved) if !extents.is_closed() => reserved,
            _ => {
                // The lock is taken again when this is dropped.
                drop(extents);
                return Err(registration);
            }
        };
        self.reserved = None;
        let (number, is_stale) = extents.add(reserved, memory, registration, registrar);
        let gone = if is_stale { extents.release_unmapped(true, registrar) } else { Vec::new() };
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

/// A file's extents, locked.
pub(super) struct Extending<'a> {
    extents: MutexGuard<'a, Extents>,
}

/// Extents that a call registered, to be taken back if it fails.
#[derive(Debug, Default)]
#[must_use = "what a failed call registered must be taken back"]
pub(super) struct Added(Vec<u64>);

impl Added {
    /// The call did not fail: what it registered stays.
    pub(super) fn keep(self) {}
}

impl Extending<'_> {
    /// Looks whether what is registered of `[first, end)` still is the file's. What is not shows no more, and will be
    /// registered anew. Answers stale registrations that nothing maps, for [`release`] without the lock.
    pub(super) fn freshen(
        &mut self,
        first: u64,
        end: u64,
        facts: &FileStat,
        registrar: &Registrar,
    ) -> Result<Vec<Registration>, MapMemoryError> {
        if self.extents.freshen(first, end, facts, registrar)? {
            return Ok(self.extents.release_unmapped(true, registrar));
        }
        Ok(Vec::new())
    }

    /// Whether all of `[first, end)` is registered.
    pub(super) fn covers(&self, first: u64, end: u64) -> bool {
        self.extents.covers(first, end)
    }

    /// The registered memory of `[first, end)` if it is in one piece.
    pub(super) fn piece(&self, first: u64, end: u64) -> Option<LocalSegment> {
        self.extents.piece(first, end)
    }

    /// The registered memory of `[first, end)`.
    pub(super) fn pieces(&self, first: u64, end: u64) -> Vec<LocalSegment> {
        self.extents.pieces(first, end)
    }

    /// The stretch to be charged so that `[first, end)` can be registered.
    pub(super) fn around(&self, first: u64, end: u64, whole: u64, extent: Option<u64>) -> (u64, u64) {
        self.extents.around(first, end, whole, extent)
    }

    /// Bytes of `[first, end)` that are not charged.
    pub(super) fn uncharged_bytes(&self, first: u64, end: u64) -> u64 {
        self.extents.uncharged_bytes(first, end)
    }

    /// Whether pages are registered that are not the file's any more.
    pub(super) fn has_stale(&self) -> bool {
        self.extents.has_stale()
    }

    /// Whether there is something that nothing maps: something stale, or anything.
    pub(super) fn has_unmapped(&self, only_stale: bool) -> bool {
        self.extents.has_unmapped(only_stale)
    }

    /// Takes out what nothing maps: what is stale, or everything; for [`release`] without the lock.
    pub(super) fn release_unmapped(&mut self, only_stale: bool, registrar: &Registrar) -> Vec<Registration> {
        self.extents.release_unmapped(only_stale, registrar)
    }

    /// The bases and fragments that it has.
    pub(super) fn scatter(&self) -> Room {
        self.extents.scatter()
    }

    /// Whether something maps any of it, or is about to.
    pub(super) fn is_mapped(&self) -> bool {
        self.extents.is_mapped()
    }
}
