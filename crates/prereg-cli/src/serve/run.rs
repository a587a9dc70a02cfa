//! The server: parts chosen by a [`Config`], joined, and kept until it is time to stop.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prereg::{AddressKind, AddressSpace, Errno};
use prereg_linux::{IoUring, raise_descriptor_limit};
use prereg_nvme::controller::{DoorbellMode, InterruptKinds, NvmeDisk, NvmeModel, NvmeSettings};
use prereg_nvme::disk::{Direct, Disk, DiskError, DiskOptions, FileDisk};
use prereg_vfio_user::server::{DeviceFactory, MemoryStore, Notice, Server, ServerSettings};

use super::config::{Buffers, Config, DirectIo, Doorbells, InterruptKind, NvmeConfig};
use super::control::{self, ControlListener};
use super::http::MetricsListener;
use super::memory::Limits;
use super::metrics;
use super::observe::Observer;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::quantity::Bytes;

/// Where `prereg status` asks.
#[derive(Clone, Debug)]
pub enum Control {
    /// At the default path, if that can be had.
    Default,
    /// Here, or not at all.
    At(PathBuf),
    /// Nowhere.
    None,
}

/// Devices being served.
///
/// The fields' order is the order of the end: first nobody is answered any more.
pub struct Serving {
    control: Option<ControlListener>,
    metrics: Option<MetricsListener>,
    models: Vec<Served>,
    server: Arc<Server>,
    store: Arc<MemoryStore>,
    /// What the clients' memory is limited by.
    limits: Limits,
    /// Set when it is time to stop: a pin that is under way ends early.
    stopping: Arc<AtomicBool>,
    /// What a user should know who did not ask.
    notes: Vec<String>,
}

/// One controller.
struct Served {
    config: NvmeConfig,
    model: Arc<NvmeModel>,
}

/// How often disks are looked at, whether they grew, and memory, whether it is still wanted.
const LOOK: Duration = Duration::from_secs(1);

impl Serving {
    /// Opens every disk, then every socket; on a failure nothing stays.
    ///
    /// # Errors
    /// [`Failure::Host`], naming what could not be had.
    pub fn start(config: &Config, control: Control) -> Result<Self, Failure> {
        let limits = Limits::of(&config.memory)?;
        let mut notes = Vec::from_iter(limits.warning());
        if let Err(errno) = raise_descriptor_limit() {
            notes.push(format!(
                "the limit on open descriptors could not be raised ({errno}): fewer clients fit"
            ));
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let pins = IoUring::builder()
            .addresses(AddressKind::SlotOffset)
            .cancel(Arc::clone(&stopping))
            .build()
            .map_err(|error| Failure::host("making the pin back end", error))?;
        let pins = Arc::new(pins);
        let models = config
            .nvme
            .iter()
            .map(|device| Served::open(device, &pins, &mut notes))
            .collect::<Result<Vec<_>, _>>()?;

        let space = AddressSpace::builder(Arc::clone(&pins)).build()?;
        let (granule, back_end) = (space.granule(), space.backend());
        let store = Arc::new(MemoryStore::new(space, limits.policy));
        let server = Arc::new(Server::new(Arc::clone(&store), ServerSettings::default()));
        for served in &models {
            let (path, model): (_, Arc<dyn DeviceFactory>) =
                (&served.config.socket, Arc::<NvmeModel>::clone(&served.model));
            server.listen(path, model).map_err(|error| Failure::host("serving a device", error))?;
            fs::set_permissions(path, fs::Permissions::from_mode(served.config.mode))
                .map_err(|error| Failure::host(format!("setting the mode of {}", path.display()), error))?;
        }

        let observer = Arc::new(Observer { started: Instant::now(), back_end, granule });
        let status = move |server: &Server| observer.status(server.snapshot());
        let asked = {
            let (status, server) = (status.clone(), Arc::clone(&server));
            move || status(&server)
        };
        let metrics = match config.metrics {
            None => None,
            Some(address) => {
                let server = Arc::clone(&server);
                let listener = MetricsListener::start(address, move || metrics::text(status(&server)));
                let what = || format!("listening for metrics at {address}");
                Some(listener.map_err(|error| Failure::host(what(), error))?)
            }
        };
        let control = match control {
            Control::None => None,
            Control::At(path) => Some(
                ControlListener::start(&path, asked)
                    .map_err(|error| Failure::host("making the control socket", error))?,
            ),
            Control::Default => match control::default_path() {
                None => {
                    notes.push(
                        "this user has no runtime folder: there is no control socket; name one with --control".to_owned(),
                    );
                    None
                }
                Some(path) => match ControlListener::start(&path, asked) {
                    Ok(listener) => Some(listener),
                    Err(error) => {
                        notes.push(format!("no control socket: {error}"));
                        None
                    }
                },
            },
        };
        Ok(Self { control, metrics, models, server, store, limits, stopping, notes })
    }

    /// Says what is served and how to use it.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn introduce(&self, out: &mut impl Write) -> io::Result<()> {
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        for served in &self.models {
            served.introduce(out)?;
        }
        writeln!(out, "Give QEMU (10.1 or newer) shared memory and the device:")?;
        writeln!(out, "  -machine q35,memory-backend=ram -m 2G \\")?;
        writeln!(out, "  -object memory-backend-memfd,id=ram,size=2G,share=on \\")?;
        let last = self.models.len().saturating_sub(1);
        for (index, served) in self.models.iter().enumerate() {
            let end = if index == last { "" } else { " \\" };
            writeln!(out, "  -device '{}'{end}", device_argument(&served.config.socket))?;
        }
        let has_msix =
            self.models.iter().any(|served| served.config.interrupts.contains(&InterruptKind::Msix));
        super::print::qemu_limits(has_msix, out)?;
        if let Some(metrics) = &self.metrics {
            writeln!(out, "metrics: http://{}/metrics", metrics.address())?;
        }
        if let Some(control) = &self.control {
            let is_default = control::default_path().is_some_and(|path| path == control.path());
            let path =
                if is_default { String::new() } else { format!(" --control {}", control.path().display()) };
            writeln!(out, "status: prereg status{path}")?;
        }
        writeln!(out, "ready")
    }

    /// Serves until a signal comes.
    pub fn until(&self, interrupt: &Interrupt) {
        let mut looked = Instant::now();
        while interrupt.check().is_ok() {
            std::thread::sleep(Duration::from_millis(50));
            self.report();
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                self.server.release_idle();
                for served in &self.models {
                    // A disk that cannot be asked now stays as it was; its I/O tells the guest what is wrong with it.
                    let _ = served.model.refresh();
                }
            }
        }
        self.report();
    }

    /// Writes what there is to say of clients to standard error.
    fn report(&self) {
        // With standard error closed there is no other place for them.
        for note in self.store.take_notes() {
            let _ = writeln!(io::stderr(), "prereg: {}{}", self.limits.explain(&note), self.who(note.client));
        }
        for notice in self.server.take_notices() {
            let _ = writeln!(io::stderr(), "prereg: {notice}{}", self.doorbell_hint(&notice));
        }
    }

    /// The process and the socket of a client, if it is still connected, for a line of the log that has its number.
    fn who(&self, client: u64) -> String {
        let clients = self.server.snapshot().clients;
        let Some(client) = clients.into_iter().find(|known| known.client == client) else {
            return String::new();
        };
        let socket = client.socket.map(|socket| format!(" at {}", socket.display())).unwrap_or_default();
        format!(" Client {} is process {}{socket}.", client.client, client.pid)
    }

    /// What to change for a client that could not attach to a device whose doorbells are messages.
    fn doorbell_hint(&self, notice: &Notice) -> &'static str {
        let by_messages = |served: &Served| {
            served.config.doorbells == Doorbells::Socket
                && notice.socket.as_ref() == Some(&served.config.socket)
        };
        if notice.is_unmappable && self.models.iter().any(by_messages) {
            "; --doorbells auto or mmap (`doorbells` of [[nvme]]) offers mappable doorbells, --doorbells socket does not"
        } else {
            ""
        }
    }

    /// Ends what is under way, gives everything back and removes the sockets.
    pub fn stop(self) {
        let Self { control, metrics, models, server, store, stopping, .. } = self;
        // First: pins that are cancelled fail their accesses, which no guest is to see as I/O errors.
        server.cut_off();
        // Relaxed: the threads that pin look at it again and again.
        stopping.store(true, Ordering::Relaxed);
        store.stop_background();
        // These threads have the other references to the server.
        drop((control, metrics));
        if let Some(server) = Arc::into_inner(server) {
            server.stop();
        }
        drop(models);
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("control", &self.control).finish_non_exhaustive()
    }
}

impl Served {
    fn open(config: &NvmeConfig, pins: &Arc<IoUring>, notes: &mut Vec<String>) -> Result<Self, Failure> {
        let mut disks = Vec::new();
        for namespace in &config.namespace {
            let file = &namespace.file;
            let options = DiskOptions {
                read_only: namespace.read_only,
                direct: match namespace.direct {
                    DirectIo::Auto => Direct::Auto,
                    DirectIo::On => Direct::On,
                    DirectIo::Off => Direct::Off,
                },
                block_shift: Some(if namespace.block_size == 4096 { 12 } else { 9 }),
                buffers: (namespace.buffers == Buffers::Fixed).then(|| Arc::clone(pins)),
            };
            let disk = FileDisk::open(file, options).map_err(|error| match error {
                DiskError::File { errno: Errno::ENOENT, .. } => Failure::host(
                    "opening a disk",
                    format!(
                        "{} does not exist; `prereg serve nvme --create SIZE` makes a new disk",
                        file.display()
                    ),
                ),
                error => Failure::host("opening a disk", error),
            })?;
            if let (DirectIo::Auto, Err(why)) = (namespace.direct, disk.direct()) {
                notes.push(format!("{} goes through the host's page cache: {why}", file.display()));
            }
            if let (Buffers::Fixed, Err(why)) = (namespace.buffers, disk.fixed()) {
                notes.push(format!("{} is read and written without fixed buffers: {why}", file.display()));
            }
            let disk: Arc<dyn Disk> = Arc::new(disk);
            disks.push(NvmeDisk::new(disk));
        }
        let serial = config.serial.clone().unwrap_or_else(|| serial_of(&config.socket));
        let mut settings = NvmeSettings::new(&serial);
        // Checked with the configuration: at most 64.
        settings.workers = u16::try_from(config.threads).unwrap_or(u16::MAX);
        let has = |kind| config.interrupts.contains(&kind);
        settings.interrupts = InterruptKinds {
            intx: has(InterruptKind::Intx),
            msi: has(InterruptKind::Msi),
            msix: has(InterruptKind::Msix),
        };
        settings.doorbells = match config.doorbells {
            Doorbells::Auto => DoorbellMode::Auto,
            Doorbells::Socket => DoorbellMode::Trapped,
            Doorbells::Mmap => DoorbellMode::Mapped,
        };
        let model = NvmeModel::new("nvme", disks, settings)
            .map_err(|error| Failure::host(format!("serving {}", config.socket.display()), error))?;
        Ok(Self { config: config.clone(), model: Arc::new(model) })
    }

    fn introduce(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "serving NVMe at {}", self.config.socket.display())?;
        for (nsid, namespace) in (1..).zip(&self.config.namespace) {
            let bytes = fs::metadata(&namespace.file).map_or(0, |file| file.len());
            let size = if bytes == 0 { "device".to_owned() } else { Bytes(bytes).to_string() };
            writeln!(
                out,
                "  namespace {nsid}: {} ({size}{})",
                namespace.file.display(),
                if namespace.read_only { ", read-only" } else { "" }
            )?;
        }
        Ok(())
    }
}

/// The device as QEMU wants it written, which is JSON only.
fn device_argument(socket: &Path) -> String {
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    serde_json::json!({"driver": "vfio-user-pci", "socket": {"path": path, "type": "unix"}}).to_string()
}

/// A serial number that stays the same for a socket, and differs between sockets: guests tell controllers apart by it.
fn serial_of(socket: &Path) -> String {
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    // FNV-1a: a name, not a secret.
    let bytes = path.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("PR{hash:016X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_fit_and_differ() {
        let [a, b] = ["a.sock", "b.sock"].map(|name| serial_of(Path::new(name)));
        assert!(a != b && a.len() <= 20, "{a} {b}");
    }

    #[test]
    fn the_device_argument_is_json_with_an_absolute_path() {
        let argument: serde_json::Value =
            serde_json::from_str(&device_argument(Path::new("x.sock"))).unwrap();
        assert_eq!(argument["driver"], "vfio-user-pci");
        assert!(argument["socket"]["path"].as_str().is_some_and(|path| path.starts_with('/')));
    }
}
