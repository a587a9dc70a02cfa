//! The memory of all clients: files by identity, each registered once.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prereg::{Access, AddressSpace, Registration};
use prereg_iommu::iova::IovaMap;
use prereg_linux::{FileIdentity, FileStat, SharedError, SharedFile};

use super::background::{Background, Job};
use super::error::MapMemoryError;
use super::file::{File, Promise, release};
use super::notes::MemoryNote;
use super::policy::MemoryPolicy;
use super::registrar::Registrar;
use super::state::StoreState;

/// The memory of all clients of a server: one address space, and the files that clients handed over, each registered once
/// however many clients named it, as long as one of them is there.
#[derive(Debug)]
pub struct MemoryStore {
    registrar: Registrar,
    files: Mutex<BTreeMap<FileIdentity, Named>>,
    /// The clients' maps, which read the address space's tables.
    maps: Mutex<Vec<Weak<IovaMap>>>,
    /// Held while it is found out whether there is room, until the promise is made.
    admission: Mutex<()>,
    background: Background,
}

/// A file, and how many clients named it.
#[derive(Debug)]
struct Named {
    file: Arc<File>,
    clients: u64,
}

/// There is no room.
struct Refused {
    error: MapMemoryError,
    /// Files with memory that nothing maps, which makes room when it is released; none when that would not be enough.
    relief: Vec<Arc<File>>,
}

impl Refused {
    /// If `bytes` more than what is charged for `files` are more than `limit`. `error` is told what is charged.
    fn over(
        limit: u64,
        bytes: u64,
        files: Vec<Arc<File>>,
        error: impl FnOnce(u64) -> MapMemoryError,
    ) -> Option<Self> {
        let used: u64 = files.iter().map(|file| file.charged_bytes()).sum();
        if used.saturating_add(bytes) <= limit {
            return None;
        }
        let spare = files.iter().map(|file| file.spare_bytes()).sum();
        let is_enough = used.saturating_sub(spare).saturating_add(bytes) <= limit;
        Some(Self { error: error(used), relief: if is_enough { files } else { Vec::new() } })
    }
}

impl MemoryStore {
    /// A store without files. How pages are pinned was chosen with `space`.
    #[must_use]
    pub fn new(space: AddressSpace, policy: MemoryPolicy) -> Self {
        Self {
            registrar: Registrar::new(space, policy),
            files: Mutex::new(BTreeMap::new()),
            maps: Mutex::new(Vec::new()),
            admission: Mutex::new(()),
            background: Background::new(),
        }
    }

    /// The address space that the memory is registered in.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        &self.registrar.space
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> MemoryPolicy {
        self.registrar.policy
    }

    /// Everything there is to see.
    #[must_use]
    pub fn snapshot(&self) -> StoreState {
        let files: Vec<_> =
            self.files().values().map(|named| (Arc::clone(&named.file), named.clients)).collect();
        let counts = &self.registrar.counts;
        StoreState {
            space: self.registrar.space.snapshot(),
            files: files.into_iter().map(|(file, clients)| file.state(clients)).collect(),
            registrations: counts.registrations.get(),
            shared: counts.shared.get(),
            stale: counts.stale.get(),
            pinning_mappings: self.background.jobs(),
            total_bytes_limit: self.policy().total_bytes,
            client_bytes_limit: self.policy().client_bytes,
            refused_maps: counts.refused_maps.get(),
            failed_pins: counts.failed_pins.get(),
        }
    }

    /// Notes about clients since the last call.
    #[must_use]
    pub fn take_notes(&self) -> Vec<MemoryNote> {
        self.registrar.notes.take()
    }

    /// Waits until everything that is mapped and has pages is pinned, or was found not to be pinnable.
    pub fn wait_for_background(&self) {
        self.background.wait();
    }

    /// Starts no pin in the background any more: memory is pinned at its first use from now on. For a server that is to end
    /// soon.
    pub fn stop_background(&self) {
        self.background.stop();
    }

    pub(super) fn pin_in_background(&self, job: Box<dyn Job>) {
        self.background.push(job);
    }

    /// Charges what is needed so that `range` of a file of `length` bytes can be registered, if there is room, now and while
    /// the promise lives. `client_files` answers the files that are charged to the client. No file may be locked.
    pub(super) fn promise(
        &self,
        client_files: impl Fn() -> Vec<Arc<File>>,
        file: &Arc<File>,
        length: u64,
        (first, end): (u64, u64),
    ) -> Result<Promise, MapMemoryError> {
        let policy = self.policy();
        let whole = file.whole(length).max(end);
        // Once for each of the two limits.
        let mut reliefs = 2;
        loop {
            // It guards no data.
            let admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
            let extending = file.lock().ok_or(MapMemoryError::Disconnected)?;
            let (from, to) = extending.around(first, end, whole, policy.piece(length));
            let bytes = extending.uncharged_bytes(from, to);
            // What is charged already has room, unless pages were taken out: those stay charged beside the new ones.
            let is_charged = bytes == 0 && !extending.has_stale();
            drop(extending);
            let refused = self
                .over_client_limit(&client_files, file, bytes)
                .or_else(|| if is_charged { None } else { self.over_total_limit(bytes) });
            let Some(Refused { error, relief }) = refused else { return Ok(file.promise(from, to)) };
            let gone = if reliefs > 0 { self.take_unmapped(&relief, false) } else { Vec::new() };
            // Unpinning takes long, and other clients wait for the admission.
            drop(admission);
            if !self.release(gone) {
                return Err(error);
            }
            reliefs -= 1;
        }
    }

    /// Looks whether memory of a file that is charged may be registered: not if pages that were taken out of it use the room up.
    /// No file may be locked.
    pub(super) fn admit_promised(
        &self,
        client_files: impl Fn() -> Vec<Arc<File>>,
        file: &File,
    ) -> Result<(), MapMemoryError> {
        self.admit(|| {
            let refused =
                || self.over_client_limit(&client_files, file, 0).or_else(|| self.over_total_limit(0));
            if file.has_stale() { refused() } else { None }
        })
    }

    /// Looks whether a client may have what is charged for its files, `file` among them: other clients may have had it charged.
    /// No file may be locked.
    pub(super) fn admit_shared(
        &self,
        client_files: impl Fn() -> Vec<Arc<File>>,
        file: &File,
    ) -> Result<(), MapMemoryError> {
        self.admit(|| self.over_client_limit(&client_files, file, 0))
    }

    /// Looks twice whether there is room, the second time after unmapped memory was released.
    fn admit(&self, refused: impl Fn() -> Option<Refused>) -> Result<(), MapMemoryError> {
        let Some(Refused { error, relief }) = refused() else { return Ok(()) };
        if !self.release(self.take_unmapped(&relief, false)) {
            return Err(error);
        }
        refused().map_or(Ok(()), |refused| Err(refused.error))
    }

    /// Why `bytes` more of `file` cannot be charged to a client. A file counts whole for each client that names it.
    fn over_client_limit(
        &self,
        client_files: impl Fn() -> Vec<Arc<File>>,
        file: &File,
        bytes: u64,
    ) -> Option<Refused> {
        let limit = self.policy().client_bytes?;
        Refused::over(limit, bytes, client_files(), |used| {
            let of_it = file.charged_bytes();
            MapMemoryError::Quota {
                bytes: of_it + bytes,
                left: limit.saturating_add(of_it).saturating_sub(used),
            }
        })
    }

    /// Why `bytes` more cannot be charged in all.
    fn over_total_limit(&self, bytes: u64) -> Option<Refused> {
        let limit = self.policy().total_bytes?;
        let files = self.files().values().map(|named| Arc::clone(&named.file)).collect();
        Refused::over(limit, bytes, files, |used| MapMemoryError::Limit { bytes, used, limit })
    }

    pub(super) fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    // Every change is one insertion, removal or count.
    fn files(&self) -> MutexGuard<'_, BTreeMap<FileIdentity, Named>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn maps(&self) -> MutexGuard<'_, Vec<Weak<IovaMap>>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more client names the file behind `fd`.
    pub(super) fn name(
        &self,
        fd: OwnedFd,
        facts: &FileStat,
        access: Access,
    ) -> Result<Arc<File>, MapMemoryError> {
        let mut files = self.files();
        if let Some(named) = files.get_mut(&facts.identity) {
            // Seals may have come after the registration: who could not write any more may not do it by a device either.
            if access != Access::Read && !SharedFile::may_be_written(fd.as_fd()) {
                return Err(SharedError::Sealed.into());
            }
            named.clients += 1;
            return Ok(Arc::clone(&named.file));
        }
        // No call in here can be made to wait by whoever owns the file.
        let file = Arc::new(File::new(fd, facts)?);
        files.insert(facts.identity, Named { file: Arc::clone(&file), clients: 1 });
        Ok(file)
    }

    /// A client does not name these files any more. What no other one names is given up: released now, or when the last access
    /// has left.
    pub(super) fn unname(&self, gone: impl IntoIterator<Item = Arc<File>>) {
        for file in gone {
            let mut files = self.files();
            let Some(named) = files.get_mut(&file.identity()).filter(|named| Arc::ptr_eq(&named.file, &file))
            else {
                continue;
            };
            named.clients -= 1;
            if named.clients == 0 {
                files.remove(&file.identity());
                drop(files);
                file.close(&self.registrar);
            }
        }
        self.refresh();
    }

    /// Takes a client's map into the list of those that are told when regions go.
    pub(super) fn add_map(&self, map: &Arc<IovaMap>) {
        let mut maps = self.maps();
        maps.retain(|map| map.strong_count() > 0);
        maps.push(Arc::downgrade(map));
    }

    /// Lets every map look at the newest tables: an idle one would keep the old ones, and a number of regions that is bounded.
    pub(super) fn refresh(&self) {
        let maps: Vec<_> = self.maps().iter().filter_map(Weak::upgrade).collect();
        for map in maps {
            map.refresh();
        }
    }

    /// Releases stale memory that nothing maps any more.
    pub(super) fn sweep(&self) {
        if self.registrar.has_stale() {
            self.release_unmapped(true);
        }
    }

    /// Releases memory that nothing maps and that was not promised, of files that no other thread has locked: what is stale,
    /// or everything. What is wanted again is registered again. Answers whether anything was released.
    pub(super) fn release_unmapped(&self, only_stale: bool) -> bool {
        let has_some =
            |file: &&Arc<File>| file.try_lock().is_some_and(|extending| extending.has_unmapped(only_stale));
        // Usually none: then this costs no memory. Released without the lock on the list.
        let files: Vec<_> =
            self.files().values().map(|named| &named.file).filter(has_some).cloned().collect();
        self.release(self.take_unmapped(&files, only_stale))
    }

    /// Takes such memory out of `files`, for [`release`](Self::release).
    fn take_unmapped(&self, files: &[Arc<File>], only_stale: bool) -> Vec<Registration> {
        let mut gone = Vec::new();
        for file in files {
            if let Some(mut extending) = file.try_lock() {
                gone.extend(extending.release_unmapped(only_stale, &self.registrar));
            }
        }
        gone
    }

    /// Releases what was taken out of files. Answers whether that is anything.
    fn release(&self, gone: Vec<Registration>) -> bool {
        let released = !gone.is_empty();
        if released {
            release(gone);
            self.refresh();
        }
        released
    }
}
