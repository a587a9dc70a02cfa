//! The mappings of one client.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{Access, Holder, Iova, OutOfMemory, PageShift};
use prereg_iommu::iova::{Backing, IovaLimits, IovaMap, IovaMapError, OnDrained, Unmapping};
use prereg_linux::{FileStat, SharedError};

use super::client_files::{ClientFile, ClientFiles, DescriptorMemory};
use super::error::MapMemoryError;
use super::event::MemoryEvent;
use super::extents::Extents;
use super::file::{Promise, release};
use super::guard::{Dma, DmaLink};
use super::policy::RegisterWhen;
use super::provider::{FileProvider, PinJob};
use super::remote::Remote;
use super::state::DmaState;
use super::store::MemoryStore;
use crate::server::observer::Reporter;

/// The mappings and files of one client. Dropping it is [`disconnect`](Self::disconnect).
pub struct DmaSpace {
    link: Arc<DmaLink>,
    client: Arc<ClientFiles>,
    maps: AtomicU64,
    unmaps: AtomicU64,
}

/// Releases what a drained mapping freed, then passes the notification on.
struct DrainNotifier {
    store: Arc<MemoryStore>,
    drained: Arc<dyn OnDrained>,
}

impl OnDrained for DrainNotifier {
    fn on_drained(&self) {
        self.store.release_stale();
        self.drained.on_drained();
    }
}

impl DmaSpace {
    /// A client without mappings, which are counted for `holder`. `drained` is called when the last access of an unmapped
    /// mapping is dropped, on that thread.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        store: &Arc<MemoryStore>,
        remote: Arc<dyn Remote>,
        drained: Arc<dyn OnDrained>,
        limits: IovaLimits,
        holder: Holder,
    ) -> Result<Self, OutOfMemory> {
        Self::with_reporter(store, remote, drained, limits, holder, Reporter::default())
    }

    /// Like [`new`](Self::new); what is refused or fails is reported to `events`.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn with_reporter(
        store: &Arc<MemoryStore>,
        remote: Arc<dyn Remote>,
        drained: Arc<dyn OnDrained>,
        limits: IovaLimits,
        holder: Holder,
        events: Reporter<MemoryEvent>,
    ) -> Result<Self, OutOfMemory> {
        let notifier = Arc::new(DrainNotifier { store: Arc::clone(store), drained });
        let map = Arc::new(IovaMap::new(store.space(), limits, holder, notifier)?);
        store.add_map(&map);
        Ok(Self {
            link: Arc::new(DmaLink::new(map, remote)),
            client: Arc::new(ClientFiles::new(Arc::clone(store), holder, events)),
            maps: AtomicU64::new(0),
            unmaps: AtomicU64::new(0),
        })
    }

    /// DMA_MAP: lets the device access `bytes` bytes of `memory`, a descriptor and an offset, at `iova`. Without memory they
    /// are accessed through the client, and so is memory that cannot be pinned: a file on disk, or a read-only one. The
    /// descriptor is closed unless it is the first of its file.
    ///
    /// # Errors
    /// [`MapMemoryError`]; nothing is mapped, registered or kept open then.
    pub fn map(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        memory: Option<(OwnedFd, u64)>,
    ) -> Result<(), MapMemoryError> {
        if !self.link.is_connected() {
            return Err(MapMemoryError::Disconnected);
        }
        let mapped = match memory {
            None => self.link.map.map(iova, bytes, Backing::Remote, access).map_err(MapMemoryError::from),
            Some((fd, offset)) => self.map_descriptor(iova, bytes, access, fd, offset),
        };
        mapped.inspect_err(|error| self.client.map_refused(iova, bytes, error))?;
        // Relaxed: reports only.
        self.maps.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn map_descriptor(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        fd: OwnedFd,
        offset: u64,
    ) -> Result<(), MapMemoryError> {
        let named = match self.client.name(fd, access)? {
            DescriptorMemory::File(named) => named,
            DescriptorMemory::Unpinnable(stat) => {
                self.end_of(offset, bytes, &stat)?;
                return Ok(self.link.map.map(iova, bytes, Backing::Remote, access)?);
            }
        };
        let mapped = self.map_file(iova, bytes, access, &named, offset);
        if mapped.is_err() && named.is_new {
            self.client.remove_file(&named.file);
        }
        mapped
    }

    /// The end of a range of a file, after checking its alignment and the file's length.
    fn end_of(&self, offset: u64, bytes: u64, stat: &FileStat) -> Result<u64, MapMemoryError> {
        let page = self.link.map.limits().page.mask() | (self.client.store().space().granule().bytes() - 1);
        if offset & page != 0 {
            return Err(MapMemoryError::Offset { offset });
        }
        let end = offset.checked_add(bytes).filter(|end| *end <= stat.bytes);
        Ok(end.ok_or(SharedError::Short { offset, bytes, length: stat.bytes })?)
    }

    fn map_file(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        named: &ClientFile,
        offset: u64,
    ) -> Result<(), MapMemoryError> {
        let ClientFile { file, stat, .. } = named;
        let store = self.client.store();
        let context = store.context();
        let end = self.end_of(offset, bytes, stat)?;
        let mut extents = file.lock().ok_or(MapMemoryError::Disconnected)?;
        let stale = extents.revalidate(offset, end, stat, context)?;
        drop(extents);
        release(stale);
        store.admit_shared(|| self.client.charged_files(), file)?;
        let when = store.policy().when;
        let extents = file.lock().ok_or(MapMemoryError::Disconnected)?;
        if when != RegisterWhen::FirstUse && extents.covers(offset, end) {
            context.counts.shared.add();
            return Ok(self.map_pieces(iova, bytes, access, &extents, (offset, end))?);
        }
        drop(extents);
        // A range that cannot be mapped costs no pin and no charge.
        self.link.map.admits(iova, bytes)?;
        match when {
            RegisterWhen::Background => self.map_promised(iova, bytes, access, named, offset),
            RegisterWhen::FirstUse => {
                let provider = self.provider(named, offset, None);
                Ok(self.link.map.map(iova, bytes, Backing::PerAccess(provider), access)?)
            }
            RegisterWhen::Eager => self.map_registered(iova, bytes, access, named, (offset, end)),
        }
    }

    fn provider(&self, named: &ClientFile, offset: u64, promise: Option<Promise>) -> Arc<FileProvider> {
        let (client, file) = (Arc::clone(&self.client), Arc::clone(&named.file));
        Arc::new(FileProvider { client, file, stat: named.stat, offset, promise })
    }

    /// Maps memory that is charged now and registered later.
    fn map_promised(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        named: &ClientFile,
        offset: u64,
    ) -> Result<(), MapMemoryError> {
        let store = self.client.store();
        let length = named.stat.bytes;
        let end = offset + bytes;
        let promise = store.promise(|| self.client.charged_files(), &named.file, length, (offset, end))?;
        let piece = store.policy().piece(length).unwrap_or(length).max(store.space().granule().bytes());
        let piece = PageShift::new(piece.trailing_zeros()).ok_or(MapMemoryError::Offset { offset })?;
        let provider = self.provider(named, offset, Some(promise));
        let job = Box::new(PinJob::new(&provider, offset - (offset & piece.mask()), end));
        let backing = Backing::OnDemand { provider, block: piece, skip: offset };
        self.link.map.map(iova, bytes, backing, access)?;
        store.pin_in_background(job);
        Ok(())
    }

    /// Registers memory, then maps it.
    fn map_registered(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        named: &ClientFile,
        (offset, end): (u64, u64),
    ) -> Result<(), MapMemoryError> {
        loop {
            let promise = self.client.register(&named.file, named.stat.bytes, (offset, end), false)?;
            let extents = named.file.lock().ok_or(MapMemoryError::Disconnected)?;
            // Another client of the file may have found a part of it stale meanwhile.
            if extents.covers(offset, end) {
                let mapped = self.map_pieces(iova, bytes, access, &extents, (offset, end));
                drop(extents);
                drop(promise);
                return Ok(mapped?);
            }
        }
    }

    /// Maps registered memory. The lock of the file prevents its release in between.
    fn map_pieces(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        extents: &Extents,
        (first, end): (u64, u64),
    ) -> Result<(), IovaMapError> {
        let to = match extents.piece(first, end) {
            Some(piece) => Backing::Segment(piece),
            None => Backing::Segments(extents.pieces(first, end)),
        };
        self.link.map.map(iova, bytes, to, access)
    }

    /// DMA_UNMAP of every mapping in the range, or of none. No new access can begin when this returns; the [`Unmapping`]
    /// reports the end of the last one.
    ///
    /// # Errors
    /// [`IovaMapError`]; nothing is unmapped then.
    pub fn unmap(&self, iova: Iova, bytes: u64) -> Result<Unmapping, IovaMapError> {
        let refused = |error: &IovaMapError| self.client.unmap_refused(iova, bytes, *error);
        let unmapping = self.link.map.unmap(iova, bytes).inspect_err(refused)?;
        // Relaxed: reports only.
        self.unmaps.fetch_add(1, Ordering::Relaxed);
        self.client.store().release_stale();
        Ok(unmapping)
    }

    /// DMA_UNMAP of everything.
    pub fn unmap_all(&self) -> Unmapping {
        let unmapping = self.link.map.unmap_all();
        // Relaxed: reports only.
        self.unmaps.fetch_add(1, Ordering::Relaxed);
        self.client.store().release_stale();
        unmapping
    }

    /// Releases files that are unmapped at this call and the one before, while another file is mapped: memory unplugged from
    /// the guest. Call it every second or so; a file that is mapped again is registered again.
    pub fn release_idle(&self) {
        self.client.release_idle();
    }

    /// Makes the device's copies and numbers fail, also in memory that it holds: the client sees nothing more of what its
    /// device does. I/O with fixed buffers that has begun goes on.
    pub fn cut_off(&self) {
        self.link.disconnect();
        self.link.map.revoke();
    }

    /// Handles the client's disconnect: accesses fail, mappings are unmapped as their accesses end, and registrations that no
    /// other client shares are released.
    pub fn disconnect(&self) {
        self.link.disconnect();
        // No reply is waited for.
        let _ = self.link.map.unmap_all();
        self.client.disconnect();
        self.client.store().release_stale();
    }

    /// The device's access to the memory.
    #[must_use]
    pub fn dma(&self) -> Dma {
        Dma::new(Arc::clone(&self.link))
    }

    /// A snapshot as plain data.
    #[must_use]
    pub fn snapshot(&self) -> DmaState {
        DmaState {
            iova: self.link.map.snapshot(),
            // Relaxed, both: reports only.
            maps: self.maps.load(Ordering::Relaxed),
            unmaps: self.unmaps.load(Ordering::Relaxed),
            files: self.client.files(),
        }
    }
}

impl Drop for DmaSpace {
    fn drop(&mut self) {
        self.disconnect();
    }
}

impl fmt::Debug for DmaSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaSpace").field("map", &self.link.map).finish_non_exhaustive()
    }
}
