//! A store that really pins if this host allows it, clients, and their memory.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use prereg::{Access, AddressKind, AddressSpace, Holder, HolderKind, Iova};
use prereg_linux::{GuestMemory, IoUring};
use prereg_vfio_user::server::{
    Dma, DmaGuard, DmaSpace, IovaLimits, MapMemoryError, MemoryEvent, MemoryPolicy, MemoryStore, Observer,
    OnDrained, Remote, RemoteError, Reporter,
};

use crate::observed::Recorder;

pub(crate) const PAGE: u64 = 0x1000;

/// Remote memory of a hundred pages, and a count of drain notifications.
pub(crate) struct Far {
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) answer: Mutex<Result<(), RemoteError>>,
    pub(crate) rung: AtomicU64,
}

impl Remote for Far {
    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), RemoteError> {
        (*self.answer.lock().unwrap())?;
        let at = (iova.raw() % (100 * PAGE)) as usize;
        into.copy_from_slice(&self.bytes.lock().unwrap()[at..at + into.len()]);
        Ok(())
    }
    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), RemoteError> {
        (*self.answer.lock().unwrap())?;
        let at = (iova.raw() % (100 * PAGE)) as usize;
        self.bytes.lock().unwrap()[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

impl OnDrained for Far {
    fn on_drained(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
    }
}

/// One client.
pub(crate) struct Client {
    pub(crate) space: DmaSpace,
    pub(crate) dma: Dma,
    pub(crate) far: Arc<Far>,
    pub(crate) observer: Arc<Recorder<MemoryEvent>>,
}

impl Client {
    pub(crate) fn new(store: &Arc<MemoryStore>, number: u64) -> Self {
        let far = Arc::new(Far {
            bytes: Mutex::new(vec![0; 100 * PAGE as usize]),
            answer: Mutex::new(Ok(())),
            rung: AtomicU64::new(0),
        });
        let holder = Holder { container: number, kind: HolderKind::InFlight };
        let observer = Arc::<Recorder<_>>::default();
        let events =
            Reporter::new(Arc::default(), Some(Arc::clone(&observer) as Arc<dyn Observer<MemoryEvent>>));
        let space = DmaSpace::with_reporter(
            store,
            Arc::clone(&far) as Arc<dyn Remote>,
            Arc::clone(&far) as Arc<dyn OnDrained>,
            IovaLimits::default(),
            holder,
            events,
        )
        .unwrap();
        Self { dma: space.dma(), space, far, observer }
    }

    /// Maps `pages` pages of `file` from page `from` on at I/O page `at`, with a new descriptor, like QEMU.
    pub(crate) fn map(&self, at: u64, pages: u64, file: &impl AsFd, from: u64) -> Result<(), MapMemoryError> {
        self.map_for(at, pages, file, from, Access::ReadWrite)
    }

    pub(crate) fn map_for(
        &self,
        at: u64,
        pages: u64,
        file: &impl AsFd,
        from: u64,
        access: Access,
    ) -> Result<(), MapMemoryError> {
        self.space.map(iova(at), pages * PAGE, access, Some((another(file), from * PAGE)))
    }

    /// Unmaps, which must complete at once.
    pub(crate) fn unmap(&self, at: u64, pages: u64) {
        assert!(self.space.unmap(iova(at), pages * PAGE).unwrap().is_done());
    }

    pub(crate) fn hold(&self, at: u64, pages: u64) -> DmaGuard {
        self.dma.hold(iova(at), pages * PAGE, Access::ReadWrite).unwrap()
    }

    pub(crate) fn byte(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.dma.read(iova(at), &mut byte).unwrap();
        byte[0]
    }
}

pub(crate) fn iova(page: u64) -> Iova {
    Iova::new(page * PAGE)
}

/// Another descriptor of the same file.
pub(crate) fn another(file: &impl AsFd) -> OwnedFd {
    file.as_fd().try_clone_to_owned().unwrap()
}

/// A back end that pins, with addresses that any user gets; `None`, with a printed reason, if there is none.
pub(crate) fn pins() -> Option<IoUring> {
    match IoUring::builder().addresses(AddressKind::SlotOffset).build() {
        Ok(pins) => Some(pins),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A store that pins; `None` as in [`pins`].
pub(crate) fn store(policy: MemoryPolicy) -> Option<Arc<MemoryStore>> {
    Some(Arc::new(MemoryStore::new(AddressSpace::builder(pins()?).build().unwrap(), policy)))
}

/// The client's memfd, sealed against shrinking like QEMU's.
pub(crate) fn sealed(pages: u64) -> (GuestMemory, OwnedFd) {
    let memory = GuestMemory::memfd("guest", pages * PAGE).unwrap();
    let fd = another(&memory.descriptor().unwrap());
    (memory, fd)
}

/// A file of tmpfs that can be truncated. `None`, with a printed reason, without tmpfs.
pub(crate) fn unsealed(pages: u64) -> Option<File> {
    match tempfile::tempfile_in("/dev/shm") {
        Ok(file) => {
            file.set_len(pages * PAGE).unwrap();
            Some(file)
        }
        Err(error) => {
            eprintln!("skipped: no file in /dev/shm: {error}");
            None
        }
    }
}

/// The client's view of its file.
pub(crate) fn byte_of(file: &File, offset: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

/// Pages pinned for all clients of a store.
pub(crate) fn pinned(store: &MemoryStore) -> u64 {
    store.space().snapshot().pinned_pages
}
