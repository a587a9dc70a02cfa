//! One client's files: those it named, and what it may have registered of them.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, Holder};
use prereg_linux::{FileFacts, FileIdentity, SharedError};

use super::error::MapMemoryError;
use super::file::{Budget, File};
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
}

/// Files that one client may hand over at a time.
const FILES: usize = 128;
/// Stretches of files that are mapped for one client at most; each is two mappings of this process, which has 65,530.
const BASES: usize = 384;
/// Files that nothing maps any more and that stay registered all the same: a guest without a driver has none mapped either.
const IDLE_FILES: usize = 4;

/// A file a client named, for a DMA_MAP.
pub(super) struct NamedFile {
    pub(super) file: Arc<File>,
    pub(super) facts: FileFacts,
    /// It was not named before, so a DMA_MAP that fails takes that back.
    pub(super) is_new: bool,
}

impl Client {
    pub(super) fn new(store: Arc<MemoryStore>, holder: Holder) -> Self {
        Self { store, holder, named: Mutex::new(Some(Vec::new())), idle: Mutex::new(Vec::new()) }
    }

    pub(super) fn store(&self) -> &Arc<MemoryStore> {
        &self.store
    }

    pub(super) fn holder(&self) -> Holder {
        self.holder
    }

    // Every change is one insertion or removal.
    fn named(&self) -> MutexGuard<'_, Option<Vec<Arc<File>>>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self) -> u64 {
        self.named().as_ref().map_or(0, |named| named.len() as u64)
    }

    /// The file behind `fd`, which the client names from here on. The descriptor is closed unless it is the first for its file.
    pub(super) fn name(&self, fd: OwnedFd, access: Access) -> Result<NamedFile, MapMemoryError> {
        let facts = FileFacts::of(fd.as_fd())?;
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
            return Ok(NamedFile { file, facts, is_new: false });
        }
        if named.len() >= FILES {
            return Err(MapMemoryError::TooManyFiles(FILES));
        }
        let file = self.store.name(fd, &facts, access)?;
        let idle = Self::take_idle(named);
        named.push(Arc::clone(&file));
        drop(guard);
        self.store.unname(idle);
        Ok(NamedFile { file, facts, is_new: true })
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

    /// What the client may have registered beside what it has. `None` when it is gone. No file may be locked.
    pub(super) fn budget(&self) -> Option<Budget> {
        let files = self.named().clone()?;
        let mut bytes = 0u64;
        let mut bases = 0;
        for file in files {
            let Some(extending) = file.lock() else { continue };
            bytes = bytes.saturating_add(extending.registered_bytes());
            bases += extending.bases();
        }
        Some(Budget {
            bytes: self.store.policy().client_bytes.map(|most| most.saturating_sub(bytes)),
            bases: BASES.saturating_sub(bases),
        })
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
