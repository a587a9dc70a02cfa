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
use super::policy::MemoryPolicy;
use super::register_context::RegisterContext;
use super::state::StoreState;

/// The memory of all clients of a server: one address space, and the clients' files, each registered once as long as a client
/// uses it.
#[derive(Debug)]
pub struct MemoryStore {
    context: RegisterContext,
    files: Mutex<BTreeMap<FileIdentity, FileEntry>>,
    /// The clients' maps, which read the tables of the address space.
    maps: Mutex<Vec<Weak<IovaMap>>>,
    /// Held from checking the limits until the promise is made.
    admission: Mutex<()>,
    background: Background,
}

/// A file, and how many clients use it.
#[derive(Debug)]
struct FileEntry {
    file: Arc<File>,
    clients: u64,
}

/// A limit would be exceeded.
struct OverLimit {
    error: MapMemoryError,
    /// Files with unmapped memory whose release would make room; empty if that is not enough.
    reclaim: Vec<Arc<File>>,
}

impl OverLimit {
    /// Checks whether `bytes` more than the charges of `files` exceed `limit`. `error` gets the charged bytes.
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
        let releasable = files.iter().map(|file| file.releasable_bytes()).sum();
        let is_enough = used.saturating_sub(releasable).saturating_add(bytes) <= limit;
        Some(Self { error: error(used), reclaim: if is_enough { files } else { Vec::new() } })
    }
}

impl MemoryStore {
    /// A store without files. `space` determines how pages are pinned.
    #[must_use]
    pub fn new(space: AddressSpace, policy: MemoryPolicy) -> Self {
        Self {
            context: RegisterContext::new(space, policy),
            files: Mutex::new(BTreeMap::new()),
            maps: Mutex::new(Vec::new()),
            admission: Mutex::new(()),
            background: Background::new(),
        }
    }

    /// The address space of all registrations.
    #[must_use]
    pub fn space(&self) -> &AddressSpace {
        &self.context.space
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> MemoryPolicy {
        self.context.policy
    }

    /// A snapshot as plain data.
    #[must_use]
    pub fn snapshot(&self) -> StoreState {
        let files: Vec<_> =
            self.files().values().map(|named| (Arc::clone(&named.file), named.clients)).collect();
        let counts = &self.context.counts;
        StoreState {
            space: self.context.space.snapshot(),
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

    /// Waits until all mapped memory with pages is pinned, or its pin has failed.
    pub fn wait_for_background(&self) {
        self.background.wait();
    }

    /// Starts no further pin in the background: memory is pinned at first use from now on. For a server that is about to stop.
    pub fn stop_background(&self) {
        self.background.stop();
    }

    pub(super) fn pin_in_background(&self, job: Box<dyn Job>) {
        self.background.push(job);
    }

    /// Charges, within the limits, what `range` of a file of `length` bytes needs to be registered, while the promise lives.
    /// `client_files` returns the files charged to the client. No file may be locked.
    pub(super) fn promise(
        &self,
        client_files: impl Fn() -> Vec<Arc<File>>,
        file: &Arc<File>,
        length: u64,
        (first, end): (u64, u64),
    ) -> Result<Promise, MapMemoryError> {
        let policy = self.policy();
        let whole = file.whole(length).max(end);
        // One for each of the two limits.
        let mut reliefs = 2;
        loop {
            // It protects no data.
            let admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
            let extents = file.lock().ok_or(MapMemoryError::Disconnected)?;
            let (from, to) = extents.around(first, end, whole, policy.piece(length));
            let bytes = extents.uncharged_bytes(from, to);
            // Charged memory fits the limits, unless pages were removed: those stay charged besides the new ones.
            let is_charged = bytes == 0 && !extents.has_stale();
            drop(extents);
            let refused = self
                .over_client_limit(&client_files, file, bytes)
                .or_else(|| if is_charged { None } else { self.over_total_limit(bytes) });
            let Some(OverLimit { error, reclaim }) = refused else { return Ok(file.promise(from, to)) };
            let gone = if reliefs > 0 { self.take_unmapped(&reclaim, false) } else { Vec::new() };
            // Unpinning takes long, and other clients wait for the admission.
            drop(admission);
            if !self.release(gone) {
                return Err(error);
            }
            reliefs -= 1;
        }
    }

    /// Checks whether promised memory of a file may be registered: not if removed pages use up the limit. No file may be
    /// locked.
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

    /// Checks whether a client may use the charged memory of its files, `file` among them, which other clients may have had
    /// charged. No file may be locked.
    pub(super) fn admit_shared(
        &self,
        client_files: impl Fn() -> Vec<Arc<File>>,
        file: &File,
    ) -> Result<(), MapMemoryError> {
        self.admit(|| self.over_client_limit(&client_files, file, 0))
    }

    /// Checks a limit, a second time after releasing unmapped memory.
    fn admit(&self, refused: impl Fn() -> Option<OverLimit>) -> Result<(), MapMemoryError> {
        let Some(OverLimit { error, reclaim }) = refused() else { return Ok(()) };
        if !self.release(self.take_unmapped(&reclaim, false)) {
            return Err(error);
        }
        refused().map_or(Ok(()), |refused| Err(refused.error))
    }

    /// Checks whether `bytes` more of `file` exceed the client's limit. A file counts whole for each client that uses it.
    fn over_client_limit(
        &self,
        client_files: impl Fn() -> Vec<Arc<File>>,
        file: &File,
        bytes: u64,
    ) -> Option<OverLimit> {
        let limit = self.policy().client_bytes?;
        OverLimit::over(limit, bytes, client_files(), |used| {
            let of_it = file.charged_bytes();
            MapMemoryError::Quota {
                bytes: of_it + bytes,
                left: limit.saturating_add(of_it).saturating_sub(used),
            }
        })
    }

    /// Checks whether `bytes` more exceed the total limit.
    fn over_total_limit(&self, bytes: u64) -> Option<OverLimit> {
        let limit = self.policy().total_bytes?;
        let files = self.files().values().map(|named| Arc::clone(&named.file)).collect();
        OverLimit::over(limit, bytes, files, |used| MapMemoryError::Limit { bytes, used, limit })
    }

    pub(super) fn context(&self) -> &RegisterContext {
        &self.context
    }

    // Every change is one insertion, removal or count, so a poisoned lock is consistent.
    fn files(&self) -> MutexGuard<'_, BTreeMap<FileIdentity, FileEntry>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn maps(&self) -> MutexGuard<'_, Vec<Weak<IovaMap>>> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client to the file behind `fd`.
    pub(super) fn name(
        &self,
        fd: OwnedFd,
        stat: &FileStat,
        access: Access,
    ) -> Result<Arc<File>, MapMemoryError> {
        let mut files = self.files();
        if let Some(named) = files.get_mut(&stat.identity) {
            // Seals may have been added after the registration: a client that cannot write any more may not write by a device
            // either.
            if access != Access::Read && !SharedFile::may_be_written(fd.as_fd()) {
                return Err(SharedError::Sealed.into());
            }
            named.clients += 1;
            return Ok(Arc::clone(&named.file));
        }
        // The owner of the file cannot make these calls block.
        let file = Arc::new(File::new(fd, stat)?);
        files.insert(stat.identity, FileEntry { file: Arc::clone(&file), clients: 1 });
        Ok(file)
    }

    /// Removes a client from these files. A file without clients is released, now or with its last access.
    pub(super) fn remove_file(&self, gone: impl IntoIterator<Item = Arc<File>>) {
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
                file.close(&self.context);
            }
        }
        self.refresh();
    }

    /// Adds a client's map to those that are refreshed when regions are released.
    pub(super) fn add_map(&self, map: &Arc<IovaMap>) {
        let mut maps = self.maps();
        maps.retain(|map| map.strong_count() > 0);
        maps.push(Arc::downgrade(map));
    }

    /// Updates the region snapshot of every map: an idle one would keep old tables, and a bounded number of regions.
    pub(super) fn refresh(&self) {
        let maps: Vec<_> = self.maps().iter().filter_map(Weak::upgrade).collect();
        for map in maps {
            map.refresh();
        }
    }

    /// Releases unmapped stale memory.
    pub(super) fn release_stale(&self) {
        if self.context.has_stale() {
            self.release_unmapped(true);
        }
    }

    /// Releases unmapped memory that is not promised, of files that no other thread has locked: stale, or all. It is registered
    /// again when it is mapped. Returns whether anything was released.
    pub(super) fn release_unmapped(&self, only_stale: bool) -> bool {
        let has_some =
            |file: &&Arc<File>| file.try_lock().is_some_and(|extents| extents.has_unmapped(only_stale));
        // Usually none, without an allocation. Released without the lock of the list.
        let files: Vec<_> =
            self.files().values().map(|named| &named.file).filter(has_some).cloned().collect();
        self.release(self.take_unmapped(&files, only_stale))
    }

    /// Removes unmapped extents of `files`, for [`release`](Self::release).
    fn take_unmapped(&self, files: &[Arc<File>], only_stale: bool) -> Vec<Registration> {
        let mut gone = Vec::new();
        for file in files {
            if let Some(mut extents) = file.try_lock() {
                gone.extend(extents.release_unmapped(only_stale, &self.context));
            }
        }
        gone
    }

    /// Releases removed extents. Returns whether there were any.
    fn release(&self, gone: Vec<Registration>) -> bool {
        let released = !gone.is_empty();
        if released {
            release(gone);
            self.refresh();
        }
        released
    }
}
