//! `prereg serve`: devices for guests, until a signal.

use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Outcome;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::quantity::{Bytes, parse_bytes};
use crate::serve::config::{
    Buffers, Config, DirectIo, Doorbells, Extent, InterruptKind, MemoryConfig, MemoryLimit, MemoryPolicy,
    NamespaceConfig, NvmeConfig, parse_address, parse_mode,
};
use crate::serve::run::{Control, Serving};

const MORE: &str = "\
The guest's memory must be shared: QEMU 10.1 or newer with memory-backend-memfd (share=on). The arguments to use are printed. \
SIGTERM or Ctrl-C ends what is under way, releases every pin and removes the sockets.

Examples:
  prereg serve nvme --socket /run/user/1000/disk.sock --disk disk.img
  prereg serve --config serve.toml --metrics 127.0.0.1:9469";

/// Serve devices to guests over vfio-user
#[derive(Debug, Args)]
#[command(after_help = MORE, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct ServeArgs {
    #[command(subcommand)]
    device: Option<Device>,

    /// What to serve, as TOML: several devices, each with its disks
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    process: ProcessArgs,
}

#[derive(Debug, Subcommand)]
enum Device {
    Nvme(Box<NvmeArgs>),
}

/// What concerns the whole process.
#[derive(Clone, Debug, Default, Args)]
struct ProcessArgs {
    /// Where `prereg status` asks, or `none` [default: in the runtime folder]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Where Prometheus asks (GET /metrics): an address and a port, such as 127.0.0.1:9469
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    metrics: Option<SocketAddr>,

    /// Say nothing but errors
    #[arg(long)]
    quiet: bool,
}

/// Serve one NVMe controller
#[derive(Debug, Args)]
#[command(after_help = "Example: prereg serve nvme --socket disk.sock --disk disk.img")]
struct NvmeArgs {
    /// Where the guest's monitor connects
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,

    /// A file or block device; several make several namespaces
    #[arg(long, value_name = "FILE", required = true)]
    disk: Vec<PathBuf>,

    /// Refuse writes
    #[arg(long)]
    read_only: bool,

    /// Bytes of a logical block: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    block_size: u32,

    /// The controller's serial number [default: made from the socket's name]
    #[arg(long)]
    serial: Option<String>,

    /// Kinds of interrupt on offer
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [InterruptKind::Msix, InterruptKind::Msi, InterruptKind::Intx])]
    interrupts: Vec<InterruptKind>,

    /// How the guest's doorbells arrive
    #[arg(long, value_enum, default_value_t)]
    doorbells: Doorbells,

    /// Threads that serve I/O queues
    #[arg(long, default_value_t = 2)]
    threads: usize,

    /// Whether to pass the host's page cache by
    #[arg(long, value_enum, default_value_t)]
    direct: DirectIo,

    /// Which memory I/O uses
    #[arg(long, value_enum, default_value_t)]
    buffers: Buffers,

    /// When a guest's memory is registered
    #[arg(long, value_enum, default_value_t)]
    policy: MemoryPolicy,

    /// How much of a memory file is registered at a time: `auto`, `whole`, or a power of two of at least 2M
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = Extent::parse)]
    extent: Extent,

    /// Guest memory that may be pinned in all: `auto` (7/8 of the host's, less under a limit of the cgroup or on locked memory), `none`, or a size
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = MemoryLimit::parse)]
    memory_limit: MemoryLimit,

    /// Guest memory that may be pinned for one client: `none`, or a size
    #[arg(long, value_name = "SIZE", default_value = "none", value_parser = MemoryLimit::parse)]
    client_memory_limit: MemoryLimit,

    /// The socket's mode
    #[arg(long, default_value = "0600", value_parser = parse_mode)]
    mode: u32,

    /// Make each disk that does not exist, sparse, of this size (suffixes K, M, G); one that exists must have it
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    create: Option<u64>,

    #[command(flatten)]
    process: ProcessArgs,
}

/// Serves until a signal comes.
///
/// # Errors
/// [`Failure::Host`] when the configuration is wrong or something it names cannot be had; nothing is served then.
pub fn run(args: &ServeArgs, out: &mut impl Write, interrupt: &Interrupt) -> Result<Outcome, Failure> {
    let mut new_disks = None;
    let (mut config, process) = match (&args.device, &args.config) {
        (Some(Device::Nvme(nvme)), _) => {
            new_disks = nvme.create;
            (nvme.config(), &nvme.process)
        }
        (None, Some(file)) => {
            let config =
                Config::read(file).map_err(|error| Failure::host("reading the configuration", error))?;
            (config, &args.process)
        }
        (None, None) => {
            return Err(Failure::host("serving", "name a device (prereg serve nvme) or a file (--config)"));
        }
    };
    config.metrics = process.metrics.or(config.metrics);
    let control = match process.control.clone().or_else(|| config.control.clone()) {
        Some(path) if path.as_os_str() == "none" => Control::None,
        Some(path) => Control::At(path),
        None => Control::Default,
    };
    config.check().map_err(|error| Failure::host("serving", error))?;
    let created = match new_disks {
        Some(bytes) => CreatedDisks::make(&config, bytes)?,
        None => CreatedDisks::default(),
    };
    let serving = Serving::start(&config, control)?;
    created.keep();
    if !process.quiet {
        serving.introduce(out)?;
        out.flush()?;
    }
    serving.until(interrupt);
    serving.stop();
    if !process.quiet {
        writeln!(out, "stopped; every pin is released and the sockets are removed")?;
    }
    Ok(Outcome::Clean)
}

impl NvmeArgs {
    fn config(&self) -> Config {
        let namespaces = self.disk.iter().map(|disk| {
            let mut namespace = NamespaceConfig::new(disk.clone());
            namespace.read_only = self.read_only;
            namespace.block_size = self.block_size;
            namespace.direct = self.direct;
            namespace.buffers = self.buffers;
            namespace
        });
        let mut device = NvmeConfig::new(self.socket.clone(), namespaces.collect());
        device.mode = self.mode;
        device.serial.clone_from(&self.serial);
        device.interrupts.clone_from(&self.interrupts);
        device.doorbells = self.doorbells;
        device.threads = self.threads;
        let memory = MemoryConfig {
            policy: self.policy,
            extent: self.extent,
            limit: self.memory_limit,
            client_limit: self.client_memory_limit,
        };
        Config { memory, nvme: vec![device], ..Config::default() }
    }
}

/// Disks that this start created; they are removed with it unless it serves.
#[derive(Debug, Default)]
struct CreatedDisks(Vec<PathBuf>);

impl CreatedDisks {
    /// Makes the disks of `config` that do not exist, sparse, of `bytes`.
    ///
    /// # Errors
    /// [`Failure::Host`] for one that exists with another size, and for one that cannot be made.
    fn make(config: &Config, bytes: u64) -> Result<Self, Failure> {
        let mut created = Self::default();
        for namespace in config.nvme.iter().flat_map(|device| &device.namespace) {
            let disk = &namespace.file;
            let cannot = |error| Failure::host(format!("creating {}", disk.display()), error);
            match std::fs::metadata(disk) {
                Ok(found) if found.is_file() && found.len() != bytes => {
                    return Err(Failure::host(
                        format!("creating {}", disk.display()),
                        format!(
                            "it exists with {} ({} bytes) and --create asks for {} ({bytes} bytes); leave out --create to serve \
                             it as it is, or name another file",
                            Bytes(found.len()),
                            found.len(),
                            Bytes(bytes)
                        ),
                    ));
                }
                Ok(_) => {}
                Err(_) => {
                    let file = File::create_new(disk).map_err(cannot)?;
                    created.0.push(disk.clone());
                    file.set_len(bytes).map_err(cannot)?;
                }
            }
        }
        Ok(created)
    }

    /// The disks are served: they stay.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedDisks {
    fn drop(&mut self) {
        for disk in &self.0 {
            // Why the start failed is reported, and the disk is empty.
            let _ = std::fs::remove_file(disk);
        }
    }
}
