//! One file that clients handed over, registered once for all of them.
//!
//! Its lock is held while its memory is registered: clients of the same file wait for the one pin they all want, clients of
//! other files do not. Unmapping takes it only to release stale extents, and then only if it is free.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use prereg::{Errno, Holder, Registration};
use prereg_iommu::iova::LocalPiece;
use prereg_linux::{FileFacts, FileIdentity, SharedError, SharedFile};

use super::error::MapMemoryError;
use super::extents::Extents;
use super::registrar::Registrar;
use super::state::FileState;

/// One file that clients handed over.
#[derive(Debug)]
pub(super) struct File {
    shared: SharedFile,
    extents: Mutex<Extents>,
}

/// What a client may have registered, and what it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Bytes that may be registered; `None` for as many as there are.
    pub(super) bytes: Option<u64>,
    /// Mapped stretches of files.
    pub(super) bases: usize,
}

impl File {
    /// Takes a descriptor that turned out to be memory.
    pub(super) fn new(fd: OwnedFd, facts: &FileFacts) -> Result<Self, SharedError> {
        let shared = SharedFile::new(fd, facts)?;
        let extents = Mutex::new(Extents::new(shared.page().bytes(), shared.tells_changes()));
        Ok(Self { shared, extents })
    }

    pub(super) fn identity(&self) -> FileIdentity {
        self.shared.identity()
    }

    /// Its extents. `None` when no client names it any more: whoever still has it is too late.
    pub(super) fn lock(&self) -> Option<Extending<'_>> {
        let extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        (!extents.is_closed()).then_some(Extending { file: self, extents })
    }

    /// The same if nobody has them.
    pub(super) fn try_lock(&self) -> Option<Extending<'_>> {
        let extents = match self.extents.try_lock() {
            Ok(extents) => extents,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        (!extents.is_closed()).then_some(Extending { file: self, extents })
    }

    /// Gives every registration up: no client names it any more.
    pub(super) fn close(&self, registrar: &Registrar) {
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = extents.close(registrar);
        drop(extents);
        // What is mapped is released when that is over.
        drop(gone);
    }

    pub(super) fn state(&self, clients: u64) -> FileState {
        let FileIdentity { dev, ino } = self.identity();
        let extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        let (count, stale_extents, registered_bytes) = extents.totals();
        let bytes = self.shared.bytes().unwrap_or(0);
        FileState { dev, ino, bytes, clients, extents: count, registered_bytes, stale_extents }
    }
}

/// A file's extents, locked.
pub(super) struct Extending<'a> {
    file: &'a File,
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
    /// Looks whether what is registered of `[first, end)` still is the file's. What is not is released as far as nothing maps
    /// it, and will be registered anew.
    pub(super) fn freshen(
        &mut self,
        first: u64,
        end: u64,
        facts: &FileFacts,
        registrar: &Registrar,
    ) -> Result<(), MapMemoryError> {
        if self.extents.freshen(first, end, facts, registrar)? {
            self.extents.release_unmapped(true, registrar);
        }
        Ok(())
    }

    /// Whether all of `[first, end)` is registered.
    pub(super) fn covers(&self, first: u64, end: u64) -> bool {
        self.extents.covers(first, end)
    }

    /// The registered memory of `[first, end)` if it is in one piece.
    pub(super) fn piece(&self, first: u64, end: u64) -> Option<LocalPiece> {
        self.extents.piece(first, end)
    }

    /// The registered memory of `[first, end)`.
    pub(super) fn pieces(&self, first: u64, end: u64) -> Vec<LocalPiece> {
        self.extents.pieces(first, end)
    }

    /// Registers what is not of `[first, end)`, in a file of `length` bytes. `relief` is asked to release memory when there is
    /// none left; it may not lock this file. Nothing is registered when this fails.
    pub(super) fn register(
        &mut self,
        (first, end): (u64, u64),
        length: u64,
        budget: Budget,
        holder: Holder,
        registrar: &Registrar,
        relief: impl Fn() -> bool,
    ) -> Result<Added, MapMemoryError> {
        let page = self.file.shared.page().bytes();
        let whole = length - length % page;
        if end > whole {
            return Err(SharedError::Short { offset: first, bytes: end - first, length }.into());
        }
        let missing = self.extents.missing(first, end, whole, registrar.policy.extent);
        let bytes: u64 = missing.iter().map(|(from, to)| to - from).sum();
        if let Some(left) = budget.bytes.filter(|left| bytes > *left) {
            return Err(MapMemoryError::Quota { bytes, left });
        }
        let mut added = Added::default();
        for (from, to) in missing {
            match self.add(from, to, whole, budget, holder, registrar, &relief) {
                Ok(number) => added.0.push(number),
                Err(error) => {
                    self.take_back(added, registrar);
                    return Err(error);
                }
            }
        }
        Ok(added)
    }

    #[expect(clippy::too_many_arguments, reason = "one step of `register`, with all of its circumstances")]
    fn add(
        &mut self,
        from: u64,
        to: u64,
        whole: u64,
        budget: Budget,
        holder: Holder,
        registrar: &Registrar,
        relief: impl Fn() -> bool,
    ) -> Result<u64, MapMemoryError> {
        let file = self.file;
        let bases = budget.bases;
        let (base, memory) = self.extents.memory(from, to, whole, |from, to| {
            if bases == 0 {
                return Err(MapMemoryError::TooScattered);
            }
            Ok(file.shared.map(from, to - from)?)
        })?;
        let mut registered = registrar.space.register_for(&memory, holder);
        let is_short = |errno| matches!(errno, Errno::ENOMEM | Errno::ENOSPC);
        if registered.as_ref().is_err_and(|error| is_short(error.errno())) && relief() {
            registered = registrar.space.register_for(&memory, holder);
        }
        match registered {
            Ok(registration) => {
                registrar.counts.registered();
                Ok(self.extents.add(base, memory, registration))
            }
            Err(error) => {
                drop(memory);
                self.extents.forget_unused(base);
                Err(error.into())
            }
        }
    }

    /// Takes back what a call registered that failed after all.
    pub(super) fn take_back(&mut self, added: Added, registrar: &Registrar) {
        let gone: Vec<Registration> =
            added.0.into_iter().filter_map(|number| self.extents.remove(number, registrar)).collect();
        drop(gone);
    }

    /// Whether there is something that nothing maps: something stale, or anything.
    pub(super) fn has_unmapped(&self, only_stale: bool) -> bool {
        self.extents.has_unmapped(only_stale)
    }

    /// Releases what nothing maps: what is stale, or everything. Answers whether anything was released.
    pub(super) fn release_unmapped(&mut self, only_stale: bool, registrar: &Registrar) -> bool {
        self.extents.release_unmapped(only_stale, registrar)
    }

    /// Bytes that are registered.
    pub(super) fn registered_bytes(&self) -> u64 {
        self.extents.totals().2
    }

    pub(super) fn bases(&self) -> usize {
        self.extents.bases()
    }

    /// Whether something maps any of it.
    pub(super) fn is_mapped(&self) -> bool {
        self.extents.is_mapped()
    }
}
