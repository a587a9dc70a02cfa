//! One client's files: those it named, and what it may have registered of them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, Errno, Holder};
use prereg_linux::{FileIdentity, FileStat, SharedError};

use super::error::MapMemoryError;
use super::extents::Room;
use super::file::{File, Order, Promise};
use super::notes::{MemoryNote, NoteKind};
use super::store::MemoryStore;

/// One client's files.
#[derive(Debug)]
pub(super) struct Client {
    store: Arc<MemoryStore>,
    holder: Holder,
    /// In the order they were named last; `None` when the client is gone.
    named: Mutex<Option<Vec<Arc<File>>>>,
    /// Those that nothing mapped when idle ones were looked for last.
    idle: Mutex<Vec<FileIdentity>>,
    /// By [`NoteKind`]: each is noted once.
    noted: [AtomicBool; 3],
}

/// Files that one client may hand over at a time.
const FILES: usize = 128;
/// Stretches of files that are mapped for one client at most; each is two mappings of this process, which has 65,530.
const BASES: usize = 384;
/// Extents that are fragments of pieces, for one client at most: each is a region, and a slot for fixed buffers.
const FRAGMENTS: usize = 1024;
/// Files that nothing maps any more and that stay registered all the same: a guest without a driver has none mapped either.
const IDLE_FILES: usize = 4;

/// What is behind a descriptor of a client.
pub(super) enum Named {
    /// Memory that can be registered.
    File(NamedFile),
    /// Memory that cannot be pinned, or not without the right to write it. It is reached through the client.
    Unpinnable(FileStat),
}

/// A file a client named, for a DMA_MAP.
pub(super) struct NamedFile {
    pub(super) file: Arc<File>,
    pub(super) facts: FileStat,
    /// It was not named before, so a DMA_MAP that fails takes that back.
    pub(super) is_new: bool,
}

impl Client {
    pub(super) fn new(store: Arc<MemoryStore>, holder: Holder) -> Self {
        Self {
            store,
            holder,
            named: Mutex::new(Some(Vec::new())),
            idle: Mutex::new(Vec::new()),
            noted: Default::default(),
        }
    }

    pub(super) fn store(&self) -> &Arc<MemoryStore> {
        &self.store
    }

    // Every change is one insertion or removal.
    fn named(&self) -> MutexGuard<'_, Option<Vec<Arc<File>>>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self) -> u64 {
        self.named().as_ref().map_or(0, |named| named.len() as u64)
    }

    /// The file behind `fd`, which the client names from here on. The descriptor is closed unless it is the first for its file.
    pub(super) fn name(&self, fd: OwnedFd, access: Access) -> Result<Named, MapMemoryError> {
        let facts = FileStat::of(fd.as_fd())?;
        if !facts.readable {
            return Err(SharedError::Mode { wanted: "reading" }.into());
        }
        if access.bits() & Access::Write.bits() != 0 && !facts.writable {
            return Err(SharedError::Mode { wanted: "writing, which the device is to do" }.into());
        }
        let mut guard = self.named();
        let named = guard.as_mut().ok_or(MapMemoryError::Disconnected)?;
        // Newest last: a client goes on with the file it named last.
        let is_it = |file: &Arc<File>| file.identity() == facts.identity;
        if let Some(at) = named.iter().rposition(is_it) {
            let file = Arc::clone(&named[at]);
            if at + 1 != named.len() {
                named.remove(at);
                named.push(Arc::clone(&file));
            }
            return Ok(Named::File(NamedFile { file, facts, is_new: false }));
        }
        if named.len() >= FILES {
            return Err(MapMemoryError::TooManyFiles(FILES));
        }
        let file = match self.store.name(fd, &facts, access) {
            Ok(file) => file,
            // The descriptor allows what the device is to do, but pinned memory can always be written, and that of a disk is not
            // pinned.
            Err(MapMemoryError::Memory(SharedError::NotMemory { .. })) => {
                return Ok(Named::Unpinnable(facts));
            }
            Err(MapMemoryError::Memory(SharedError::Mode { .. } | SharedError::Sealed))
                if access == Access::Read =>
            {
                return Ok(Named::Unpinnable(facts));
            }
            Err(error) => return Err(error),
        };
        let idle = Self::take_idle(named);
        named.push(Arc::clone(&file));
        drop(guard);
        self.store.unname(idle);
        Ok(Named::File(NamedFile { file, facts, is_new: true }))
    }

    /// Takes out a file that nothing maps, the one that was named longest ago, if there are enough of them: memory that was
    /// unplugged from a guest is not told from memory that it does not use at the moment.
    fn take_idle(named: &mut Vec<Arc<File>>) -> Option<Arc<File>> {
        if named.len() <= IDLE_FILES {
            return None;
        }
        let mut idle = named.iter().enumerate().filter(|(_, file)| is_idle(file)).map(|(at, _)| at);
        let oldest = idle.next()?;
        let enough = idle.nth(IDLE_FILES - 1).is_some();
        enough.then(|| named.remove(oldest))
    }

    /// Gives up files that nothing maps, and nothing mapped when this was called before, as long as something maps another one.
    pub(super) fn release_idle(&self) {
        let mut guard = self.named();
        let Some(named) = guard.as_mut() else { return };
        let is_mapped = |file: &Arc<File>| file.try_lock().is_some_and(|extending| extending.is_mapped());
        let now: Vec<FileIdentity> = if named.iter().any(is_mapped) {
            named.iter().filter(|file| is_idle(file)).map(|file| file.identity()).collect()
        } else {
            // Between a reset and its driver a guest maps nothing, and will map all of it again.
            Vec::new()
        };
        // Every change is one assignment.
        let mut before = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<Arc<File>> = named
            .iter()
            .filter(|file| now.contains(&file.identity()) && before.contains(&file.identity()))
            .cloned()
            .collect();
        named.retain(|file| gone.iter().all(|gone| !Arc::ptr_eq(gone, file)));
        *before = now;
        drop(before);
        drop(guard);
        if !gone.is_empty() {
            self.store.unname(gone);
        }
    }

    /// Takes back that the client named a file.
    pub(super) fn unname(&self, file: &Arc<File>) {
        let mut guard = self.named();
        let Some(named) = guard.as_mut() else { return };
        if let Some(at) = named.iter().position(|other| Arc::ptr_eq(other, file)) {
            named.remove(at);
            drop(guard);
            self.store.unname([Arc::clone(file)]);
        }
    }

    /// The client's files, which are charged to it, those it shares included.
    pub(super) fn charged_files(&self) -> Vec<Arc<File>> {
        self.named().clone().unwrap_or_default()
    }

    /// Registers what is not of a range of one of the client's files of `length` bytes. The answer keeps it charged; nothing was
    /// charged for it when `is_promised` says that it is already. No file may be locked.
    pub(super) fn register(
        &self,
        file: &Arc<File>,
        length: u64,
        (first, end): (u64, u64),
        is_promised: bool,
    ) -> Result<Option<Promise>, MapMemoryError> {
        let store = &self.store;
        let promise = if is_promised {
            store.admit_promised(|| self.charged_files(), file)?;
            None
        } else {
            Some(store.promise(|| self.charged_files(), file, length, (first, end))?)
        };
        // `None` when the client is gone.
        let files = self.named().clone().ok_or(MapMemoryError::Disconnected)?;
        let mut room = Room { bases: BASES, fragments: FRAGMENTS };
        for file in files {
            let Some(used) = file.lock().map(|extending| extending.scatter()) else { continue };
            room.bases = room.bases.saturating_sub(used.bases);
            room.fragments = room.fragments.saturating_sub(used.fragments);
        }
        let order = Order { length, extent: store.policy().piece(length), room, holder: self.holder };
        file.register((first, end), order, store.registrar(), || store.release_unmapped(false))?.keep();
        Ok(promise)
    }

    /// A map was refused: counted, and noted once a client, if it was for want of room.
    pub(super) fn map_refused(&self, error: &MapMemoryError) {
        if matches!(error.errno(), Errno::ENOMEM | Errno::ENOSPC) {
            self.store.registrar().counts.refused_maps.add();
            self.note(NoteKind::MapRefused, error);
        }
    }

    /// Memory that was promised could not be pinned: noted once a client.
    pub(super) fn pin_failed(&self, error: &MapMemoryError) {
        if *error != MapMemoryError::Disconnected {
            self.store.registrar().counts.failed_pins.add();
            self.note(NoteKind::PinFailed, error);
        }
    }

    /// The background ended its work for a mapping early: noted once a client.
    pub(super) fn background_ended(&self, error: &MapMemoryError) {
        self.store.registrar().counts.failed_pins.add();
        self.note(NoteKind::BackgroundEnded, error);
    }

    /// Its number.
    pub(super) fn number(&self) -> u64 {
        self.holder.container
    }

    fn note(&self, kind: NoteKind, error: &MapMemoryError) {
        // Relaxed: it publishes nothing; one of several threads sees `false`.
        if !self.noted[kind as usize].swap(true, Ordering::Relaxed) {
            self.store.registrar().notes.add(MemoryNote {
                client: self.holder.container,
                kind,
                error: *error,
            });
        }
    }

    /// The client is gone.
    pub(super) fn disconnect(&self) {
        let gone = self.named().take();
        self.store.unname(gone.into_iter().flatten());
    }
}

/// Whether nothing maps a file and nobody is about to: besides its client's list and the store's, only memory that is supplied at
/// first use has it, and whoever is naming it.
fn is_idle(file: &Arc<File>) -> bool {
    Arc::strong_count(file) <= 2 && file.try_lock().is_some_and(|extending| !extending.is_mapped())
}
