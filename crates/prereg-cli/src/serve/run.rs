//! The server that a [`Config`] describes: it is started, runs until a signal, and is stopped.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prereg::{AddressKind, AddressSpace, Errno};
use prereg_linux::{IoUring, raise_descriptor_limit};
use prereg_nvme::controller::{NvmeDisk, NvmeModel};
use prereg_nvme::disk::{Disk, DiskError, FileDisk};
use prereg_vfio_user::server::{DeviceFactory, MemoryStore, Notice, Server, ServerSettings};

use super::collect::Collector;
use super::config::Config;
use super::config::nvme::{Buffers, DirectIo, Doorbells, InterruptKind, NvmeConfig};
use super::control::{self, ControlListener};
use super::http::MetricsListener;
use super::metrics;
use super::pin_limits::PinLimits;
use super::status::Status;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::units::Bytes;

/// The control socket.
#[derive(Clone, Debug)]
pub enum Control {
    /// At the default path; a note if that fails.
    Default,
    /// At this path; an error if that fails.
    At(PathBuf),
    /// None.
    None,
}

/// Devices being served.
///
/// Fields are dropped in order: status and metrics end before the server.
pub struct RunningServer {
    control: Option<ControlListener>,
    metrics: Option<MetricsListener>,
    controllers: Vec<ServedController>,
    server: Arc<Server>,
    store: Arc<MemoryStore>,
    limits: PinLimits,
    /// Set at the stop, so that a pin in progress ends early.
    stopping: Arc<AtomicBool>,
    /// Notes for the banner.
    notes: Vec<String>,
}

struct ServedController {
    config: NvmeConfig,
    model: Arc<NvmeModel>,
}

/// The period in which disk sizes are read again and idle memory is released.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

impl RunningServer {
    /// Opens every disk, then every socket. A failure leaves nothing open.
    ///
    /// # Errors
    /// [`CommandError::Host`], naming what could not be opened.
    pub fn start(config: &Config, control: Control) -> Result<Self, CommandError> {
        let limits = PinLimits::of(&config.memory)?;
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
            .map_err(|error| CommandError::host("making the pin back end", error))?;
        let pins = Arc::new(pins);
        let controllers = config
            .nvme
            .iter()
            .map(|device| ServedController::open(device, &pins, &mut notes))
            .collect::<Result<Vec<_>, _>>()?;

        let space = AddressSpace::builder(Arc::clone(&pins)).build()?;
        let (granule, backend) = (space.granule(), space.backend());
        let store = Arc::new(MemoryStore::new(space, limits.policy));
        let mut settings = ServerSettings::default();
        settings.max_clients = config.max_clients.unwrap_or(settings.max_clients.max(config.nvme.len()));
        let server = Arc::new(Server::new(Arc::clone(&store), settings));
        for controller in &controllers {
            let (path, model): (_, Arc<dyn DeviceFactory>) =
                (&controller.config.socket, Arc::<NvmeModel>::clone(&controller.model));
            server.listen(path, model).map_err(|error| CommandError::host("serving a device", error))?;
            fs::set_permissions(path, fs::Permissions::from_mode(controller.config.mode.0)).map_err(
                |error| CommandError::host(format!("setting the mode of {}", path.display()), error),
            )?;
        }

        let collector = Arc::new(Collector { started: Instant::now(), backend, granule });
        let status = move |server: &Server| collector.status(server.snapshot());
        let for_control = {
            let (status, server) = (status.clone(), Arc::clone(&server));
            move || status(&server)
        };
        let metrics = match config.metrics {
            None => None,
            Some(address) => {
                let server = Arc::clone(&server);
                let listener = MetricsListener::start(address, move || metrics::text(status(&server)));
                let what = || format!("listening for metrics at {address}");
                Some(listener.map_err(|error| CommandError::host(what(), error))?)
            }
        };
        let control = start_control(control, for_control, &mut notes)?;
        Ok(Self { control, metrics, controllers, server, store, limits, stopping, notes })
    }

    /// Prints the devices and how to use them.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub fn print_banner(&self, out: &mut impl Write) -> io::Result<()> {
        for note in &self.notes {
            writeln!(out, "note: {note}")?;
        }
        for controller in &self.controllers {
            controller.print_banner(out)?;
        }
        writeln!(out, "Give QEMU (10.1 or newer) shared memory and the device:")?;
        writeln!(out, "  -machine q35,memory-backend=ram -m 2G \\")?;
        writeln!(out, "  -object memory-backend-memfd,id=ram,size=2G,share=on \\")?;
        let last = self.controllers.len().saturating_sub(1);
        for (index, controller) in self.controllers.iter().enumerate() {
            let end = if index == last { "" } else { " \\" };
            writeln!(out, "  -device '{}'{end}", device_argument(&controller.config.socket))?;
        }
        let has_msix = self
            .controllers
            .iter()
            .any(|controller| controller.config.interrupts.contains(&InterruptKind::Msix));
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

    /// Serves until a signal.
    pub fn run_until(&self, interrupt: &Interrupt) {
        let mut refreshed = Instant::now();
        while interrupt.check().is_ok() {
            std::thread::sleep(Duration::from_millis(50));
            self.report();
            if refreshed.elapsed() >= REFRESH_INTERVAL {
                refreshed = Instant::now();
                self.server.release_idle();
                for controller in &self.controllers {
                    // A disk whose size cannot be read keeps its size; the guest sees errors of its I/O.
                    let _ = controller.model.refresh();
                }
            }
        }
        self.report();
    }

    /// Writes notes and notices about clients to standard error.
    fn report(&self) {
        // There is no other place for them if standard error is closed.
        for note in self.store.take_notes() {
            let _ = writeln!(
                io::stderr(),
                "prereg: {}{}",
                self.limits.explain(&note),
                self.process_of(note.client)
            );
        }
        for notice in self.server.take_notices() {
            let _ = writeln!(io::stderr(), "prereg: {notice}{}", self.doorbell_hint(&notice));
        }
    }

    /// The process and the socket of a client, if it is still connected.
    fn process_of(&self, client: u64) -> String {
        let clients = self.server.snapshot().clients;
        let Some(client) = clients.into_iter().find(|known| known.client == client) else {
            return String::new();
        };
        let socket = client.socket.map(|socket| format!(" at {}", socket.display())).unwrap_or_default();
        format!(" Client {} is process {}{socket}.", client.client, client.pid)
    }

    /// The remedy for a client that could not attach to a device whose doorbells are messages.
    fn doorbell_hint(&self, notice: &Notice) -> &'static str {
        let by_messages = |controller: &ServedController| {
            controller.config.doorbells == Doorbells::Socket
                && notice.socket.as_ref() == Some(&controller.config.socket)
        };
        if notice.is_unmappable && self.controllers.iter().any(by_messages) {
            "; --doorbells auto or mmap (`doorbells` of [[nvme]]) offers mappable doorbells, --doorbells socket does not"
        } else {
            ""
        }
    }

    /// Ends sessions, releases everything and removes the sockets.
    pub fn stop(self) {
        let Self { control, metrics, controllers, server, store, stopping, .. } = self;
        // First: cancelled pins fail their accesses, which guests must not see as I/O errors.
        server.cut_off();
        // Relaxed: the threads that pin poll it.
        stopping.store(true, Ordering::Relaxed);
        store.stop_background();
        // Their threads hold the other references to the server.
        drop((control, metrics));
        if let Some(server) = Arc::into_inner(server) {
            server.stop();
        }
        drop(controllers);
    }
}

impl std::fmt::Debug for RunningServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningServer").field("control", &self.control).finish_non_exhaustive()
    }
}

/// Starts the control socket. At the default path a failure is only noted.
fn start_control(
    control: Control,
    status: impl Fn() -> Status + Send + Sync + 'static,
    notes: &mut Vec<String>,
) -> Result<Option<ControlListener>, CommandError> {
    let path = match control {
        Control::None => return Ok(None),
        Control::At(path) => {
            let listener = ControlListener::start(&path, status);
            return listener
                .map(Some)
                .map_err(|error| CommandError::host("making the control socket", error));
        }
        Control::Default => control::default_path(),
    };
    let Some(path) = path else {
        let note = "this user has no runtime folder: there is no control socket; name one with --control";
        notes.push(note.to_owned());
        return Ok(None);
    };
    let listener = ControlListener::start(&path, status);
    Ok(listener.map_err(|error| notes.push(format!("no control socket: {error}"))).ok())
}

impl ServedController {
    fn open(config: &NvmeConfig, pins: &Arc<IoUring>, notes: &mut Vec<String>) -> Result<Self, CommandError> {
        let mut disks = Vec::new();
        for namespace in &config.namespace {
            let file = &namespace.file;
            let disk = FileDisk::open(file, namespace.options(pins)).map_err(|error| match error {
                DiskError::File { errno: Errno::ENOENT, .. } => CommandError::host(
                    "opening a disk",
                    format!(
                        "{} does not exist; make it with `truncate --size SIZE FILE`, or with --create of `prereg serve nvme`",
                        file.display()
                    ),
                ),
                error => CommandError::host("opening a disk", error),
            })?;
            let bytes = fs::metadata(file).map_or(0, |found| found.len());
            let left = bytes % u64::from(namespace.block_size);
            if left > 0 {
                notes.push(format!(
                    "{} has {bytes} bytes, which are not a multiple of the block size: the last {left} bytes are not served",
                    file.display()
                ));
            }
            if let (DirectIo::Auto, Err(why)) = (namespace.o_direct, disk.direct()) {
                notes.push(format!("{} is accessed through the host's page cache: {why}", file.display()));
            }
            if let (Buffers::Fixed, Err(why)) = (namespace.buffers, disk.fixed()) {
                notes.push(format!("{} is read and written without fixed buffers: {why}", file.display()));
            }
            let disk: Arc<dyn Disk> = Arc::new(disk);
            disks.push(NvmeDisk::new(disk));
        }
        let model = NvmeModel::new("nvme", disks, config.settings())
            .map_err(|error| CommandError::host(format!("serving {}", config.socket.display()), error))?;
        Ok(Self { config: config.clone(), model: Arc::new(model) })
    }

    fn print_banner(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "serving NVMe at {}", self.config.socket.display())?;
        for (nsid, namespace) in (1..).zip(&self.config.namespace) {
            let bytes = fs::metadata(&namespace.file).map_or(0, |file| file.len());
            let bytes = bytes - bytes % u64::from(namespace.block_size);
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

/// QEMU's `-device` argument: it takes the socket as JSON only.
fn device_argument(socket: &Path) -> String {
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    serde_json::json!({"driver": "vfio-user-pci", "socket": {"path": path, "type": "unix"}}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_argument_is_json_with_an_absolute_path() {
        let argument: serde_json::Value =
            serde_json::from_str(&device_argument(Path::new("x.sock"))).unwrap();
        assert_eq!(argument["driver"], "vfio-user-pci");
        assert!(argument["socket"]["path"].as_str().is_some_and(|path| path.starts_with('/')));
    }
}
