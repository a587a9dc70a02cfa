//! The files of one client, and its limits.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, Errno, Holder, Iova};
use prereg_iommu::iova::IovaMapError;
use prereg_linux::{FileIdentity, FileStat, SharedError};

use super::error::MapMemoryError;
use super::event::MemoryEvent;
use super::extents::FragmentBudget;
use super::file::{File, Promise, RegisterRequest};
use super::store::MemoryStore;
use crate::server::observer::Reporter;

/// The files of one client.
#[derive(Debug)]
pub(super) struct ClientFiles {
    store: Arc<MemoryStore>,
    holder: Holder,
    /// Most recently used last; `None` after the disconnect.
    named: Mutex<Option<Vec<Arc<File>>>>,
    /// Files without mappings at the last call of `release_idle`.
    idle: Mutex<Vec<FileIdentity>>,
    events: Reporter<MemoryEvent>,
}

/// Files of one client at a time.
const FILES: usize = 128;
/// Bases of one client's files at a time; each is two mappings of this process, which has 65,530.
const BASES: usize = 384;
/// Fragments of one client at a time; each is a region, and a slot for fixed buffers.
const FRAGMENTS: usize = 1024;
/// Unmapped files that stay registered: a guest without a driver has none mapped either.
const IDLE_FILES: usize = 4;

/// The memory behind a descriptor of a client.
pub(super) enum DescriptorMemory {
    /// Memory that can be registered.
    File(ClientFile),
    /// Memory that cannot be pinned, or only with write permission. It is accessed through the client.
    Unpinnable(FileStat),
}

/// A file of the client, for a DMA_MAP.
pub(super) struct ClientFile {
    pub(super) file: Arc<File>,
    pub(super) stat: FileStat,
    /// First used by this DMA_MAP, and removed again if that fails.
    pub(super) is_new: bool,
}

impl ClientFiles {
    pub(super) fn new(store: Arc<MemoryStore>, holder: Holder, events: Reporter<MemoryEvent>) -> Self {
        Self { store, holder, named: Mutex::new(Some(Vec::new())), idle: Mutex::new(Vec::new()), events }
    }

    pub(super) fn store(&self) -> &Arc<MemoryStore> {
        &self.store
    }

    // Every change is one insertion or removal, so a poisoned lock is consistent.
    fn named(&self) -> MutexGuard<'_, Option<Vec<Arc<File>>>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn files(&self) -> u64 {
        self.named().as_ref().map_or(0, |named| named.len() as u64)
    }

    /// The file behind `fd`, added to the client's files. The descriptor is closed unless it is the first of its file.
    pub(super) fn name(&self, fd: OwnedFd, access: Access) -> Result<DescriptorMemory, MapMemoryError> {
        let stat = FileStat::of(fd.as_fd())?;
        if !stat.readable {
            return Err(SharedError::Mode { wanted: "reading" }.into());
        }
        if access.bits() & Access::Write.bits() != 0 && !stat.writable {
            return Err(SharedError::Mode { wanted: "writing, which the device is to do" }.into());
        }
        let mut guard = self.named();
        let named = guard.as_mut().ok_or(MapMemoryError::Disconnected)?;
        // From the end: clients tend to map the file that they mapped last.
        let is_it = |file: &Arc<File>| file.identity() == stat.identity;
        if let Some(at) = named.iter().rposition(is_it) {
            let file = Arc::clone(&named[at]);
            if at + 1 != named.len() {
                named.remove(at);
                named.push(Arc::clone(&file));
            }
            return Ok(DescriptorMemory::File(ClientFile { file, stat, is_new: false }));
        }
        if named.len() >= FILES {
            return Err(MapMemoryError::TooManyFiles(FILES));
        }
        let file = match self.store.name(fd, &stat, access) {
            Ok(file) => file,
            // The descriptor allows the access, but pinned memory must be writable, and files on disk are not pinned.
            Err(MapMemoryError::Memory(SharedError::NotMemory { .. })) => {
                return Ok(DescriptorMemory::Unpinnable(stat));
            }
            Err(MapMemoryError::Memory(SharedError::Mode { .. } | SharedError::Sealed))
                if access == Access::Read =>
            {
                return Ok(DescriptorMemory::Unpinnable(stat));
            }
            Err(error) => return Err(error),
        };
        let idle = Self::take_idle(named);
        named.push(Arc::clone(&file));
        drop(guard);
        self.store.remove_file(idle);
        Ok(DescriptorMemory::File(ClientFile { file, stat, is_new: true }))
    }

    /// Removes the least recently used unmapped file if there are more than [`IDLE_FILES`]: memory that was unplugged from a
    /// guest cannot be distinguished from memory that it does not map at the moment.
    fn take_idle(named: &mut Vec<Arc<File>>) -> Option<Arc<File>> {
        if named.len() <= IDLE_FILES {
            return None;
        }
        let mut idle = named.iter().enumerate().filter(|(_, file)| is_idle(file)).map(|(at, _)| at);
        let oldest = idle.next()?;
        let enough = idle.nth(IDLE_FILES - 1).is_some();
        enough.then(|| named.remove(oldest))
    }

    /// Releases files that are unmapped at this call and the one before, while another file is mapped.
    pub(super) fn release_idle(&self) {
        let mut guard = self.named();
        let Some(named) = guard.as_mut() else { return };
        let is_mapped = |file: &Arc<File>| file.try_lock().is_some_and(|extents| extents.is_mapped());
        let now: Vec<FileIdentity> = if named.iter().any(is_mapped) {
            named.iter().filter(|file| is_idle(file)).map(|file| file.identity()).collect()
        } else {
            // Between a reset and its driver a guest maps nothing, and will map everything again.
            Vec::new()
        };
        // Every change is one assignment, so a poisoned lock is consistent.
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
            self.store.remove_file(gone);
        }
    }

    /// Removes a file of the client.
    pub(super) fn remove_file(&self, file: &Arc<File>) {
        let mut guard = self.named();
        let Some(named) = guard.as_mut() else { return };
        if let Some(at) = named.iter().position(|other| Arc::ptr_eq(other, file)) {
            named.remove(at);
            drop(guard);
            self.store.remove_file([Arc::clone(file)]);
        }
    }

    /// The client's files; each is charged to it, also if shared.
    pub(super) fn charged_files(&self) -> Vec<Arc<File>> {
        self.named().clone().unwrap_or_default()
    }

    /// Registers the missing parts of a range of one of the client's files of `length` bytes. Returns a promise that keeps it
    /// charged, or `None` with `is_promised`, if the caller has one. No file may be locked.
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
        // `None` after the disconnect.
        let files = self.named().clone().ok_or(MapMemoryError::Disconnected)?;
        let mut budget = FragmentBudget { bases: BASES, fragments: FRAGMENTS };
        for file in files {
            let Some(used) = file.lock().map(|extents| extents.fragmentation()) else { continue };
            budget.bases = budget.bases.saturating_sub(used.bases);
            budget.fragments = budget.fragments.saturating_sub(used.fragments);
        }
        let request =
            RegisterRequest { length, extent: store.policy().piece(length), budget, holder: self.holder };
        file.register((first, end), request, store.context(), || store.release_unmapped(false))?.keep();
        Ok(promise)
    }

    /// Reports a refused map, and counts it if there was no room for it.
    pub(super) fn map_refused(&self, iova: Iova, bytes: u64, error: &MapMemoryError) {
        if matches!(error.errno(), Errno::ENOMEM | Errno::ENOSPC) {
            self.store.context().counts.refused_maps.add();
        }
        if *error != MapMemoryError::Disconnected {
            self.events.report(&MemoryEvent::MapRefused { iova, bytes, error: *error });
        }
    }

    /// Counts and reports promised memory that could not be pinned.
    pub(super) fn pin_failed(&self, error: &MapMemoryError) {
        if *error != MapMemoryError::Disconnected {
            self.store.context().counts.failed_pins.add();
            self.events.report(&MemoryEvent::PinFailed { error: *error });
        }
    }

    /// Counts and reports a background job that ended early.
    pub(super) fn background_ended(&self, error: &MapMemoryError) {
        self.store.context().counts.failed_pins.add();
        self.events.report(&MemoryEvent::BackgroundEnded { error: *error });
    }

    /// Reports a refused unmap.
    pub(super) fn unmap_refused(&self, iova: Iova, bytes: u64, error: IovaMapError) {
        self.events.report(&MemoryEvent::UnmapRefused { iova, bytes, error });
    }

    /// The client's number.
    pub(super) fn number(&self) -> u64 {
        self.holder.container
    }

    /// Removes all files, because the client is gone.
    pub(super) fn disconnect(&self) {
        let gone = self.named().take();
        self.store.remove_file(gone.into_iter().flatten());
    }
}

/// Whether nothing maps the file or is about to: further references belong to providers and to DMA_MAPs under way.
fn is_idle(file: &Arc<File>) -> bool {
    Arc::strong_count(file) <= 2 && file.try_lock().is_some_and(|extents| !extents.is_mapped())
}
