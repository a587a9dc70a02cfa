//! One client's mappings.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{Access, Holder, Iova, OutOfMemory, PageShift};
use prereg_iommu::iova::{Backing, IovaLimits, IovaMap, IovaMapError, OnDrained, Unmapping};
use prereg_linux::{FileStat, SharedError};

use super::client::{Client, Named, NamedFile};
use super::error::MapMemoryError;
use super::file::{Extending, Promise, release};
use super::hold::{Dma, DmaBus};
use super::policy::RegisterWhen;
use super::remote::Remote;
use super::state::DmaState;
use super::store::MemoryStore;
use super::supply::{FileSupply, PinJob};

/// One client's mappings, and the files it named. Dropping it is [`disconnect`](Self::disconnect).
pub struct DmaSpace {
    bus: Arc<DmaBus>,
    client: Arc<Client>,
    maps: AtomicU64,
    unmaps: AtomicU64,
}

/// Tells whoever waits for an unmap, when what became free by it is released.
struct Wake {
    store: Arc<MemoryStore>,
    drained: Arc<dyn OnDrained>,
}

impl OnDrained for Wake {
    fn on_drained(&self) {
        self.store.sweep();
        self.drained.on_drained();
    }
}

impl DmaSpace {
    /// A client without mappings, which are counted as `holder`'s. `drained` is called when the last access of an unmapped
    /// mapping has left, on whatever thread that was.
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
        let wake = Arc::new(Wake { store: Arc::clone(store), drained });
        let map = Arc::new(IovaMap::new(store.space(), limits, holder, wake)?);
        store.add_map(&map);
        Ok(Self {
            bus: Arc::new(DmaBus::new(map, remote)),
            client: Arc::new(Client::new(Arc::clone(store), holder)),
            maps: AtomicU64::new(0),
            unmaps: AtomicU64::new(0),
        })
    }

    /// DMA_MAP: lets the device reach `bytes` bytes of `memory`, a descriptor and an offset in it, at `iova`; without
    /// memory they are reached through the client, and so is memory that cannot be pinned: a file on a disk, or one that
    /// may only be read. The descriptor is closed, but for the first one of a file.
    ///
    /// # Errors
    /// [`MapMemoryError`]; nothing is mapped, registered or kept open for it then.
    pub fn map(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        memory: Option<(OwnedFd, u64)>,
    ) -> Result<(), MapMemoryError> {
        if !self.bus.is_connected() {
            return Err(MapMemoryError::Disconnected);
        }
        let mapped = match memory {
            None => self.bus.map.map(iova, bytes, Backing::Remote, access).map_err(MapMemoryError::from),
            Some((fd, offset)) => self.map_descriptor(iova, bytes, access, fd, offset),
        };
        mapped.inspect_err(|error| self.client.map_refused(error))?;
        // Relaxed: a number for reports.
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
            Named::File(named) => named,
            Named::Unpinnable(facts) => {
                self.end_of(offset, bytes, &facts)?;
                return Ok(self.bus.map.map(iova, bytes, Backing::Remote, access)?);
            }
        };
        let mapped = self.map_file(iova, bytes, access, &named, offset);
        if mapped.is_err() && named.is_new {
            self.client.unname(&named.file);
        }
        mapped
    }

    /// Where a range of a file ends, if it begins at a page and lies in the file.
    fn end_of(&self, offset: u64, bytes: u64, facts: &FileStat) -> Result<u64, MapMemoryError> {
        let page = self.bus.map.limits().page.mask() | (self.client.store().space().granule().bytes() - 1);
        if offset & page != 0 {
            return Err(MapMemoryError::Offset { offset });
        }
        let end = offset.checked_add(bytes).filter(|end| *end <= facts.bytes);
        Ok(end.ok_or(SharedError::Short { offset, bytes, length: facts.bytes })?)
    }

    fn map_file(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        named: &NamedFile,
        offset: u64,
    ) -> Result<(), MapMemoryError> {
        let NamedFile { file, facts, .. } = named;
        let store = self.client.store();
        let registrar = store.registrar();
        let end = self.end_of(offset, bytes, facts)?;
        let mut extending = file.lock().ok_or(MapMemoryError::Disconnected)?;
        let stale = extending.freshen(offset, end, facts, registrar)?;
        drop(extending);
        release(stale);
        store.admit_shared(|| self.client.charged_files(), file)?;
        let when = store.policy().when;
        let extending = file.lock().ok_or(MapMemoryError::Disconnected)?;
        if when != RegisterWhen::FirstUse && extending.covers(offset, end) {
            registrar.counts.shared.add();
            return Ok(self.map_pieces(iova, bytes, access, &extending, (offset, end))?);
        }
        drop(extending);
        // A range that is not to be had costs no pin and no charge.
        self.bus.map.admits(iova, bytes)?;
        match when {
            RegisterWhen::Background => self.map_promised(iova, bytes, access, named, offset),
            RegisterWhen::FirstUse => {
                let supply = self.supply(named, offset, None);
                Ok(self.bus.map.map(iova, bytes, Backing::PerAccess(supply), access)?)
            }
            RegisterWhen::Eager => self.map_registered(iova, bytes, access, named, (offset, end)),
        }
    }

    fn supply(&self, named: &NamedFile, offset: u64, promise: Option<Promise>) -> Arc<FileSupply> {
        let (client, file) = (Arc::clone(&self.client), Arc::clone(&named.file));
        Arc::new(FileSupply { client, file, facts: named.facts, offset, promise })
    }

    /// Maps memory that is charged now and registered later.
    fn map_promised(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        named: &NamedFile,
        offset: u64,
    ) -> Result<(), MapMemoryError> {
        let store = self.client.store();
        let length = named.facts.bytes;
        let end = offset + bytes;
        let promise = store.promise(|| self.client.charged_files(), &named.file, length, (offset, end))?;
        let piece = store.policy().piece(length).unwrap_or(length).max(store.space().granule().bytes());
        let piece = PageShift::new(piece.trailing_zeros()).ok_or(MapMemoryError::Offset { offset })?;
        let supply = self.supply(named, offset, Some(promise));
        let job = Box::new(PinJob::new(&supply, offset - (offset & piece.mask()), end));
        let backing = Backing::OnDemand { provider: supply, block: piece, skip: offset };
        self.bus.map.map(iova, bytes, backing, access)?;
        store.pin_in_background(job);
        Ok(())
    }

    /// Maps memory after it was registered.
    fn map_registered(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        named: &NamedFile,
        (offset, end): (u64, u64),
    ) -> Result<(), MapMemoryError> {
        loop {
            let promise = self.client.register(&named.file, named.facts.bytes, (offset, end), false)?;
            let extending = named.file.lock().ok_or(MapMemoryError::Disconnected)?;
            // Another client of the file may have found a part of it stale meanwhile.
            if extending.covers(offset, end) {
                let mapped = self.map_pieces(iova, bytes, access, &extending, (offset, end));
                drop(extending);
                drop(promise);
                return Ok(mapped?);
            }
        }
    }

    /// Maps registered memory. With the file's lock, so that nobody releases it in between.
    fn map_pieces(
        &self,
        iova: Iova,
        bytes: u64,
        access: Access,
        extending: &Extending<'_>,
        (first, end): (u64, u64),
    ) -> Result<(), IovaMapError> {
        let to = match extending.piece(first, end) {
            Some(piece) => Backing::Segment(piece),
            None => Backing::Segments(extending.pieces(first, end)),
        };
        self.bus.map.map(iova, bytes, to, access)
    }

    /// DMA_UNMAP of every mapping in the range, none included. Nobody gets in any more when this returns; the [`Unmapping`]
    /// says when the last access is out.
    ///
    /// # Errors
    /// [`IovaMapError`]; nothing is unmapped then.
    pub fn unmap(&self, iova: Iova, bytes: u64) -> Result<Unmapping, IovaMapError> {
        let unmapping = self.bus.map.unmap(iova, bytes)?;
        // Relaxed: a number for reports.
        self.unmaps.fetch_add(1, Ordering::Relaxed);
        self.client.store().sweep();
        Ok(unmapping)
    }

    /// DMA_UNMAP of everything.
    pub fn unmap_all(&self) -> Unmapping {
        let unmapping = self.bus.map.unmap_all();
        // Relaxed: a number for reports.
        self.unmaps.fetch_add(1, Ordering::Relaxed);
        self.client.store().sweep();
        unmapping
    }

    /// Gives up files that nothing maps and nothing mapped at the call before, while another file is mapped: memory that was
    /// unplugged from the guest. Meant to be called every second or so; a file that is wanted again is registered again.
    pub fn release_idle(&self) {
        self.client.release_idle();
    }

    /// Copies and numbers of the device fail from here on, also in memory that it holds: the client sees nothing any more of
    /// what its device does, whatever comes of it. I/O by fixed buffers that was begun goes on.
    pub fn cut_off(&self) {
        self.bus.disconnect();
        self.bus.map.revoke();
    }

    /// The client is gone: what the device asks for fails from here on, its mappings go as its accesses leave, and so do
    /// the registrations that no other client shares.
    pub fn disconnect(&self) {
        self.bus.disconnect();
        // Whoever waits for it is gone.
        let _ = self.bus.map.unmap_all();
        self.client.disconnect();
        self.client.store().sweep();
    }

    /// What the device sees.
    #[must_use]
    pub fn dma(&self) -> Dma {
        Dma::new(Arc::clone(&self.bus))
    }

    /// Everything there is to see.
    #[must_use]
    pub fn snapshot(&self) -> DmaState {
        DmaState {
            iova: self.bus.map.snapshot(),
            // Relaxed, both: numbers for reports.
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
        f.debug_struct("DmaSpace").field("map", &self.bus.map).finish_non_exhaustive()
    }
}
