//! A server with one NVMe model on a socket.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prereg::{AddressKind, AddressSpace};
use prereg_linux::IoUring;
use prereg_nvme::controller::{NvmeDisk, NvmeEvent, NvmeModel, NvmeSettings};
use prereg_nvme::disk::{Disk, MemoryDisk};
use prereg_vfio_user::client::Client;
use prereg_vfio_user::server::{EventSource, MemoryPolicy, MemoryStore, Observer, Server, ServerSettings};

/// A server, its model and its socket.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) model: Arc<NvmeModel>,
    pub(crate) path: PathBuf,
    _folder: tempfile::TempDir,
    pub(crate) events: Arc<Events>,
    _turn: MutexGuard<'static, ()>,
}

/// An observer that keeps all events of controllers.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<NvmeEvent>>);

impl Observer<NvmeEvent> for Events {
    fn observe(&self, source: &EventSource, event: &NvmeEvent) {
        assert!(source.client.is_some() && source.device == "disk", "{source:?}");
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Events {
    /// The events so far.
    pub(crate) fn all(&self) -> Vec<NvmeEvent> {
        self.0.lock().unwrap().clone()
    }
}

/// One test at a time: the limit of locked memory is for all programs of a user together.
static TURN: Mutex<()> = Mutex::new(());

/// The size of disks in memory.
pub(crate) const DISK: u64 = 32 << 20;

/// The settings of tests: few I/O threads, so that several queues share one.
pub(crate) fn settings() -> NvmeSettings {
    let mut settings = NvmeSettings::new("TEST1");
    settings.io_queues = 4;
    settings.entries = 64;
    settings
}

/// A backend that pins memory as an ordinary user may; `None`, with the reason printed, where there is none.
pub(crate) fn pins() -> Option<Arc<IoUring>> {
    match IoUring::builder().addresses(AddressKind::SlotOffset).build() {
        Ok(pins) => Some(Arc::new(pins)),
        Err(error) => {
            eprintln!("skipped: {error}");
            None
        }
    }
}

impl Fixture {
    /// With one disk in memory.
    pub(crate) fn new(settings: NvmeSettings) -> Option<Self> {
        let disk = Arc::new(MemoryDisk::new(DISK, 9).unwrap());
        Self::with(settings, pins()?, vec![disk])
    }

    pub(crate) fn with(
        settings: NvmeSettings,
        pins: Arc<IoUring>,
        disks: Vec<Arc<dyn Disk>>,
    ) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let disks = disks.into_iter().map(NvmeDisk::new).collect();
        let events = Arc::<Events>::default();
        let model = NvmeModel::new("disk", disks, settings).unwrap();
        let model = Arc::new(model.with_observer(Arc::clone(&events) as Arc<dyn Observer<NvmeEvent>>));
        let store =
            Arc::new(MemoryStore::new(AddressSpace::builder(pins).build().unwrap(), MemoryPolicy::EAGER));
        let server = Server::new(Arc::clone(&store), ServerSettings::default());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nvme.sock");
        server.listen(&path, Arc::<NvmeModel>::clone(&model)).unwrap();
        Some(Self { server, store, model, path, _folder: folder, events, _turn: turn })
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    /// Waits until every client is gone, and checks that nothing of theirs is left.
    pub(crate) fn settle(&self) {
        until("the clients leave", || self.server.snapshot().clients.is_empty());
        until("the memory is released", || {
            let state = self.store.snapshot();
            state.files.is_empty() && state.space.regions.is_empty()
        });
        assert!(self.model.snapshot().is_empty(), "a controller is left");
    }
}

/// Waits for something that must happen.
pub(crate) fn until(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !come() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
