//! The server that a [`Config`] describes: it is started, runs until a signal, and is stopped.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prereg::{AddressKind, AddressSpace, Errno};
use prereg_linux::{IoUring, raise_descriptor_limit};
use prereg_nvme::controller::{NvmeDisk, NvmeModel};
use prereg_nvme::disk::{Disk, DiskError, FileDisk};
use prereg_vfio_user::server::{
    DeviceFactory, EventSource, MapMemoryError, MemoryStore, Server, ServerSettings,
};
use tracing::Dispatch;

use super::collect::Collector;
use super::config::Config;
use super::config::nvme::{Buffers, DirectIo, Doorbells, InterruptKind, NvmeConfig};
use super::control::{self, ControlListener};
use super::http::{Content, HttpListener};
use super::log::{DiskEvent, Log, Remedies};
use super::metrics;
use super::page::{self, Throughput};
use super::pin_limits::PinLimits;
use super::status::Status;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::units::{Bytes, Number};

/// The control socket.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// At the default path; a warning if that fails.
    Default,
    /// At this path; an error if that fails.
    At(PathBuf),
    /// None.
    None,
}

/// Devices being served.
///
/// Fields are dropped in order: status and metrics end before the server.
pub(crate) struct RunningServer {
    control: Option<ControlListener>,
    http: Option<HttpListener>,
    controllers: Vec<ServedController>,
    server: Arc<Server>,
    store: Arc<MemoryStore>,
    /// Set at the stop, so that a pin in progress ends early.
    stopping: Arc<AtomicBool>,
    log: Arc<Log>,
}

pub(super) struct ServedController {
    config: NvmeConfig,
    /// Of each disk, for people.
    descriptions: Vec<String>,
    model: Arc<NvmeModel>,
}

/// The period in which disk sizes are read again and idle memory is released.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

impl RunningServer {
    /// Opens every disk, then every socket. A failure leaves nothing open. Events are written to `output`.
    ///
    /// # Errors
    /// [`CommandError::Host`], naming what could not be opened.
    pub(crate) fn start(config: &Config, control: Control, output: Dispatch) -> Result<Self, CommandError> {
        let limits = PinLimits::of(&config.memory)?;
        let log = Arc::new(Log::new(output, Arc::new(ServedConfig::new(limits.clone(), config))));
        if let Some(warning) = limits.warning() {
            log.warn(&warning);
        }
        if let Err(errno) = raise_descriptor_limit() {
            log.warn(&format!(
                "the limit on open descriptors could not be raised ({errno}): fewer clients fit"
            ));
        }
        let stopping = Arc::new(AtomicBool::new(false));
        let pins = pins(&stopping)?;
        let controllers = config
            .nvme
            .iter()
            .map(|device| ServedController::open(device, &pins, &log))
            .collect::<Result<Vec<_>, _>>()?;

        let space = AddressSpace::builder(Arc::clone(&pins)).build()?;
        let (granule, backend) = (space.granule(), space.backend());
        let store = Arc::new(MemoryStore::new(space, limits.policy));
        let mut settings = ServerSettings::default();
        settings.max_clients = config.max_clients.unwrap_or(settings.max_clients.max(config.nvme.len()));
        settings.observer = Some(log.clone());
        let clients_limit = settings.max_clients;
        let server = Arc::new(Server::new(Arc::clone(&store), settings));
        for controller in &controllers {
            let (path, model): (_, Arc<dyn DeviceFactory>) =
                (&controller.config.socket, Arc::<NvmeModel>::clone(&controller.model));
            server.listen(path, model).map_err(|error| CommandError::host("serving a device", error))?;
            fs::set_permissions(path, fs::Permissions::from_mode(controller.config.mode.0)).map_err(
                |error| CommandError::host(format!("setting the mode of {}", path.display()), error),
            )?;
        }

        let collector = Arc::new(Collector { started: Instant::now(), backend, granule, clients_limit });
        let status = move |server: &Server| collector.status(server.snapshot());
        let for_control = {
            let (status, server) = (status.clone(), Arc::clone(&server));
            move || status(&server)
        };
        let http = match config.metrics {
            None => None,
            Some(address) => {
                let server = Arc::clone(&server);
                let status = move || status(&server);
                let listener =
                    HttpListener::start(address, Pages { status, throughput: Throughput::default() });
                let what = || format!("listening for metrics at {address}");
                Some(listener.map_err(|error| CommandError::host(what(), error))?)
            }
        };
        let control = start_control(control, for_control, &log)?;
        log.info(&format!("ready; serving {}", Number(controllers.len() as u64, "NVMe controller")));
        Ok(Self { control, http, controllers, server, store, stopping, log })
    }

    /// Prints the devices and how to use them.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub(crate) fn print_banner(&self, out: &mut impl Write) -> io::Result<()> {
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
        if let Some(http) = &self.http {
            writeln!(out, "metrics: http://{}/metrics", http.address())?;
            writeln!(out, "page: http://{}/", http.address())?;
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
    pub(crate) fn run_until(&self, interrupt: &Interrupt) {
        let mut refreshed = Instant::now();
        while interrupt.check().is_ok() {
            std::thread::sleep(Duration::from_millis(50));
            if refreshed.elapsed() >= REFRESH_INTERVAL {
                refreshed = Instant::now();
                self.server.release_idle();
                self.controllers.iter().for_each(|controller| controller.refresh(&self.log));
                self.log.write_counts(refreshed);
            }
        }
    }

    /// Ends sessions, releases everything and removes the sockets.
    pub(crate) fn stop(self) {
        let Self { control, http, controllers, server, store, stopping, log } = self;
        // First: cancelled pins fail their accesses, which guests must not see as I/O errors.
        server.cut_off();
        // Relaxed: the threads that pin poll it.
        stopping.store(true, Ordering::Relaxed);
        store.stop_background();
        // Their threads hold the other references to the server.
        drop((control, http));
        if let Some(server) = Arc::into_inner(server) {
            server.stop();
        }
        drop(controllers);
        log.info("stopped; every pin is released");
    }
}

/// The pages of the HTTP server.
struct Pages<S> {
    status: S,
    throughput: Throughput,
}

impl<S: Fn() -> Status + Send + Sync + 'static> Content for Pages<S> {
    fn page(&self) -> String {
        let status = (self.status)();
        page::html(&status, &self.throughput.measure(&status, Instant::now()))
    }

    fn metrics(&self) -> String {
        metrics::text((self.status)())
    }

    fn health(&self) -> Result<String, String> {
        let status = (self.status)();
        // A guest that starts cannot connect then, and nothing else would tell.
        match status.sockets.iter().find(|socket| !Path::new(&socket.path).exists()) {
            Some(gone) => Err(format!("the socket {} was removed; restart the server", gone.path)),
            None => Ok(format!("ok, {}", Number(status.clients.len() as u64, "client"))),
        }
    }
}

/// The remedies that depend on the configuration.
pub(super) struct ServedConfig {
    limits: PinLimits,
    /// Sockets of devices whose doorbells are messages.
    trapped: Vec<PathBuf>,
}

impl ServedConfig {
    pub(super) fn new(limits: PinLimits, config: &Config) -> Self {
        let trapped = config.nvme.iter().filter(|device| device.doorbells == Doorbells::Socket);
        Self { limits, trapped: trapped.map(|device| device.socket.clone()).collect() }
    }
}

impl Remedies for ServedConfig {
    fn memory(&self, error: &MapMemoryError) -> (String, Option<String>) {
        self.limits.reason(error)
    }

    fn doorbells(&self, source: &EventSource) -> Option<String> {
        let socket = source.socket.as_ref()?;
        let remedy = "--doorbells auto or mmap (`doorbells` of [[nvme]]) offers mappable doorbells, --doorbells socket does not";
        self.trapped.contains(socket).then(|| remedy.to_owned())
    }
}

impl std::fmt::Debug for RunningServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningServer").field("control", &self.control).finish_non_exhaustive()
    }
}

/// The pin back end of a server; its pins end early when `stopping` is set.
pub(super) fn pins(stopping: &Arc<AtomicBool>) -> Result<Arc<IoUring>, CommandError> {
    let pins = IoUring::builder().addresses(AddressKind::SlotOffset).cancel(Arc::clone(stopping)).build();
    pins.map(Arc::new).map_err(|error| CommandError::host("making the pin back end", error))
}

/// Starts the control socket. At the default path a failure is only logged.
fn start_control(
    control: Control,
    status: impl Fn() -> Status + Send + Sync + 'static,
    log: &Log,
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
        log.warn("this user has no runtime folder: there is no control socket; name one with --control");
        return Ok(None);
    };
    let listener = ControlListener::start(&path, status);
    Ok(listener.map_err(|error| log.warn(&format!("no control socket: {error}"))).ok())
}

impl ServedController {
    pub(super) fn open(
        config: &NvmeConfig,
        pins: &Arc<IoUring>,
        log: &Arc<Log>,
    ) -> Result<Self, CommandError> {
        let (mut disks, mut descriptions) = (Vec::new(), Vec::new());
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
                log.warn(&format!(
                    "{} has {bytes} bytes, which are not a multiple of the block size: the last {left} bytes are not served",
                    file.display()
                ));
            }
            if let (DirectIo::Auto, Err(why)) = (namespace.o_direct, disk.direct()) {
                log.info(&format!("{} is accessed through the host's page cache: {why}", file.display()));
            }
            if let (Buffers::Fixed, Err(why)) = (namespace.buffers, disk.fixed()) {
                log.warn(&format!("{} is read and written without fixed buffers: {why}", file.display()));
            }
            let disk: Arc<dyn Disk> = Arc::new(disk);
            descriptions.push(describe(file, &*disk));
            disks.push(NvmeDisk::new(disk));
        }
        let model = NvmeModel::new("nvme", disks, config.settings())
            .map_err(|error| CommandError::host(format!("serving {}", config.socket.display()), error))?;
        let model = model.with_observer(log.clone());
        Ok(Self { config: config.clone(), descriptions, model: Arc::new(model) })
    }

    /// Notifies the guest of disks that have a new size.
    fn refresh(&self, log: &Log) {
        match self.model.refresh() {
            Ok(changed) => changed
                .into_iter()
                .for_each(|(nsid, bytes)| log.disk(&self.config.socket, DiskEvent::Resized { nsid, bytes })),
            Err(error) => log.disk(&self.config.socket, DiskEvent::SizeUnknown { error }),
        }
    }

    pub(super) fn print_banner(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "serving NVMe at {}", self.config.socket.display())?;
        for (nsid, description) in (1..).zip(&self.descriptions) {
            writeln!(out, "  namespace {nsid}: {description}")?;
        }
        Ok(())
    }
}

/// The file of a namespace, its size, and of a block device what a discard does.
fn describe(file: &Path, disk: &dyn Disk) -> String {
    let mut facts = vec![Bytes(disk.bytes()).to_string()];
    if fs::metadata(file).is_ok_and(|found| found.file_type().is_block_device()) {
        facts.push("block device".to_owned());
        facts.push(format!("blocks of {} bytes", 1u64 << disk.block_shift()));
        let after = if disk.discard_zeroes() { "read as zeros" } else { "may keep their data" };
        facts.push(format!("discarded blocks {after}"));
    }
    if disk.read_only() {
        facts.push("read-only".to_owned());
    }
    format!("{} ({})", file.display(), facts.join(", "))
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
