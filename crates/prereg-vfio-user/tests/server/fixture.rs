//! A server with devices that the test can inspect.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prereg::{AddressSpace, Errno, Iova};
use prereg_linux::{GuestMemory, IoUring, Mlock};
use prereg_vfio_user::client::Client;
use prereg_vfio_user::server::{
    Device, DeviceContext, DeviceFactory, DmaGuard, Ioeventfd, IrqKind, Layout, LayoutRegion, MemoryPolicy,
    MemoryStore, Server, ServerSettings, ServerState, Sparse,
};
use prereg_vfio_user::wire::SparseArea;

/// Called when a region other than BAR 0 is written.
pub(crate) type Hook = Box<dyn Fn(&Probe, u64, &[u8]) -> Result<(), Errno> + Send + Sync>;

/// A device that records the calls to it.
pub(crate) struct Probe {
    pub(crate) bus: DeviceContext,
    pub(crate) bar: Mutex<Vec<u8>>,
    pub(crate) holds: Mutex<Vec<DmaGuard>>,
    pub(crate) calls: Mutex<Vec<String>>,
    doorbells: Option<Arc<OwnedFd>>,
    model: Arc<Shared>,
}

#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) devices: Mutex<Vec<Arc<Probe>>>,
    hook: Mutex<Option<Arc<Hook>>>,
    /// Serves one client at a time.
    exclusive: bool,
    /// The next device whose client disconnects waits for this before it ends.
    pub(crate) parting: Mutex<Option<Receiver<()>>>,
    ioeventfds: Vec<Ioeventfd>,
}

pub(crate) const BAR_BYTES: u64 = 0x4000;
pub(crate) const CONFIG: u32 = 7;
/// A read-only region, a write-only one, and one that calls the hook.
pub(crate) const ROM: u32 = 6;
pub(crate) const WRITE_ONLY: u32 = 2;
pub(crate) const HOOK: u32 = 4;

impl Probe {
    pub(crate) fn say(&self, what: impl Into<String>) {
        self.calls.lock().unwrap().push(what.into());
    }

    pub(crate) fn said(&self, what: &str) -> bool {
        self.calls.lock().unwrap().iter().any(|call| call == what)
    }
}

impl Device for Probe {
    fn layout(&self) -> Layout {
        let areas = vec![SparseArea { offset: 0x1000, bytes: 0x1000 }];
        let mut bar = LayoutRegion::read_write(BAR_BYTES);
        if let Some(fd) = &self.doorbells {
            bar = bar.with_mmap(Sparse { fd: fd.clone(), offset: 0, areas });
        }
        for ioeventfd in &self.model.ioeventfds {
            bar = bar.with_ioeventfd(ioeventfd.clone());
        }
        Layout::pci()
            .with_region(0, bar)
            .with_region(WRITE_ONLY, LayoutRegion { bytes: 16, writable: true, ..LayoutRegion::default() })
            .with_region(HOOK, LayoutRegion::read_write(0x100))
            .with_region(ROM, LayoutRegion::read_only(0x800))
            .with_region(CONFIG, LayoutRegion::read_write(0x1000))
            .with_irqs(IrqKind::Intx, 1)
            .with_irqs(IrqKind::Msi, 4)
            .with_irqs(IrqKind::Msix, 64)
            .with_irqs(IrqKind::Err, 1)
            .with_irqs(IrqKind::Req, 1)
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        match region {
            0 => into.copy_from_slice(&self.bar.lock().unwrap()[offset as usize..][..into.len()]),
            HOOK => return Err(Errno::EIO),
            _ => into.fill(region as u8),
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        match region {
            0 => self.bar.lock().unwrap()[offset as usize..][..from.len()].copy_from_slice(from),
            HOOK => {
                let hook = self.model.hook.lock().unwrap().clone();
                return hook.map_or(Err(Errno::ENOSYS), |hook| hook(self, offset, from));
            }
            _ => self.say(format!("write {region} {offset} {from:?}")),
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Errno> {
        self.say("reset");
        Ok(())
    }

    fn dma_unmapping(&self, iova: Iova, bytes: u64) {
        self.say(format!("unmapping {:#x} {bytes:#x}", iova.raw()));
    }

    fn client_gone(&self) {
        if let Some(parting) = self.model.parting.lock().unwrap().take() {
            // An error means that the test is over.
            let _ = parting.recv();
        }
        self.say("gone");
        self.holds.lock().unwrap().clear();
    }

    fn metrics(&self) -> Vec<(String, u64)> {
        vec![("calls".to_owned(), self.calls.lock().unwrap().len() as u64)]
    }
}

/// Makes probes.
#[derive(Clone)]
pub(crate) struct Probes {
    pub(crate) shared: Arc<Shared>,
    doorbells: Option<Arc<OwnedFd>>,
}

impl Probes {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::default(), doorbells: None }
    }

    pub(crate) fn exclusive() -> Self {
        Self { shared: Arc::new(Shared { exclusive: true, ..Shared::default() }), doorbells: None }
    }

    pub(crate) fn with_doorbells(ioeventfds: Vec<Ioeventfd>) -> Self {
        let memory = GuestMemory::memfd("doorbells", BAR_BYTES).unwrap();
        let doorbells = memory.descriptor().unwrap().try_clone_to_owned().unwrap();
        Self::with_doorbells_in(doorbells, ioeventfds)
    }

    pub(crate) fn with_doorbells_in(file: OwnedFd, ioeventfds: Vec<Ioeventfd>) -> Self {
        let shared = Arc::new(Shared { ioeventfds, ..Shared::default() });
        Self { shared, doorbells: Some(Arc::new(file)) }
    }

    /// The device number `index`, counted from the first.
    pub(crate) fn device(&self, index: usize) -> Arc<Probe> {
        self.shared.devices.lock().unwrap()[index].clone()
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.devices.lock().unwrap().len()
    }

    pub(crate) fn hook(
        &self,
        hook: impl Fn(&Probe, u64, &[u8]) -> Result<(), Errno> + Send + Sync + 'static,
    ) {
        *self.shared.hook.lock().unwrap() = Some(Arc::new(Box::new(hook)));
    }
}

impl DeviceFactory for Probes {
    fn name(&self) -> &str {
        "probe"
    }

    fn attach(&self, bus: DeviceContext) -> Result<Arc<dyn Device>, Errno> {
        let mut devices = self.shared.devices.lock().unwrap();
        if self.shared.exclusive && devices.iter().any(|device| !device.said("gone")) {
            return Err(Errno::EBUSY);
        }
        let probe = Arc::new(Probe {
            bus,
            bar: Mutex::new(vec![0; BAR_BYTES as usize]),
            holds: Mutex::default(),
            calls: Mutex::default(),
            doorbells: self.doorbells.clone(),
            model: self.shared.clone(),
        });
        devices.push(probe.clone());
        Ok(probe)
    }
}

/// A store that really pins.
pub(crate) fn store(policy: MemoryPolicy) -> Arc<MemoryStore> {
    let space = match IoUring::new() {
        Ok(ring) => AddressSpace::builder(ring).build().unwrap(),
        Err(_) => AddressSpace::builder(Mlock::new().unwrap()).build().unwrap(),
    };
    Arc::new(MemoryStore::new(space, policy))
}

/// A server that listens on one socket.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) probes: Probes,
    pub(crate) path: PathBuf,
    pub(crate) folder: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Probes::new(), ServerSettings::default())
    }

    pub(crate) fn with(probes: Probes, settings: ServerSettings) -> Self {
        Self::over(store(MemoryPolicy::EAGER), probes, settings)
    }

    pub(crate) fn over(store: Arc<MemoryStore>, probes: Probes, settings: ServerSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("probe.sock");
        let server = Server::new(store.clone(), settings);
        server.listen(&path, Arc::new(probes.clone())).unwrap();
        Self { server, store, probes, path, folder }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.path).unwrap()
    }

    pub(crate) fn snapshot(&self) -> ServerState {
        self.server.snapshot()
    }

    /// Waits until every client has disconnected, and asserts that nothing of them is left.
    pub(crate) fn settle(&self) {
        until("the clients leave", || self.snapshot().clients.is_empty());
        let left = |probe: &Probe| !probe.said("gone");
        assert!(!self.probes.shared.devices.lock().unwrap().iter().any(|probe| left(probe)));
        until("the memory is given back", || {
            let state = self.store.snapshot();
            state.files.is_empty() && state.space.regions.is_empty()
        });
    }
}

/// Waits for a condition that must become true.
pub(crate) fn until(what: &str, mut come: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !come() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Memory of a guest.
pub(crate) fn memory(bytes: u64) -> GuestMemory {
    GuestMemory::memfd("guest", bytes).unwrap()
}

/// Descriptors of each kind that are not eventfds or memory.
pub(crate) fn wrong_descriptors(folder: &Path) -> Vec<(&'static str, OwnedFd)> {
    let (socket, other) = std::os::unix::net::UnixStream::pair().unwrap();
    vec![
        ("socket", socket.into()),
        ("socket", other.into()),
        ("folder", fs::File::open(folder).unwrap().into()),
        ("device", fs::File::open("/dev/null").unwrap().into()),
        ("eventfd", prereg_vfio_user::client::Eventfd::new().unwrap().as_fd().try_clone_to_owned().unwrap()),
    ]
}
