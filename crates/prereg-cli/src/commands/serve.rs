//! `prereg serve`: serves devices to guests until a signal.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tracing::Dispatch;

use super::Outcome;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::serve::check;
use crate::serve::config::Config;
use crate::serve::config::memory::MemoryConfig;
use crate::serve::config::nvme::{NamespaceConfig, NvmeConfig};
use crate::serve::log::output::{self, Reader};
use crate::serve::run::{Control, RunningServer};
use crate::units::{Bytes, parse_bytes};

const MORE: &str = "\
The guest's memory must be shared: QEMU 10.1 or newer with memory-backend-memfd (share=on). The arguments for QEMU are printed. \
SIGTERM or Ctrl-C ends the sessions, releases every pin and removes the sockets; SIGHUP is ignored, and the configuration is read only at the \
start.

Examples:
  prereg serve nvme --socket /run/user/1000/disk.sock --disk disk.img
  prereg serve --config serve.toml --metrics 127.0.0.1:9469";

/// Serve devices to guests over vfio-user
#[derive(Debug, Args)]
#[command(after_help = MORE, arg_required_else_help = true)]
pub(crate) struct ServeArgs {
    #[command(subcommand)]
    device: Option<Device>,

    /// Configuration file (TOML): several devices, each with its disks
    #[arg(long = "config", value_name = "FILE")]
    file: Option<PathBuf>,

    /// Replaces keys of the file
    #[command(flatten)]
    config: Config,

    /// Only tell what would be served and what would fail, and leave nothing behind; status 1 if something would
    #[arg(long, global = true)]
    check: bool,

    /// Print no usage; the log has its own options
    #[arg(long, global = true)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Device {
    Nvme(Box<NvmeArgs>),
}

/// Serve one NVMe controller
#[derive(Debug, Args)]
#[command(about = "Serve one NVMe controller", long_about = None)]
#[command(after_help = "Example: prereg serve nvme --socket disk.sock --disk disk.img")]
struct NvmeArgs {
    /// A file or block device; several make several namespaces
    #[arg(long, value_name = "FILE", required = true)]
    disk: Vec<PathBuf>,

    /// Create each disk that does not exist, sparse, of this size (suffixes K, M, G, T); one that exists must have it
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    create: Option<u64>,

    #[command(flatten)]
    device: NvmeConfig,

    #[command(flatten)]
    namespace: NamespaceConfig,

    #[command(flatten)]
    memory: MemoryConfig,
}

/// Serves until a signal.
///
/// # Errors
/// [`CommandError::Host`] if the configuration is invalid or something it names cannot be opened; nothing is served then.
pub(crate) fn run(
    args: &ServeArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
) -> Result<Outcome, CommandError> {
    let (config, create) = match (&args.device, &args.file) {
        (Some(Device::Nvme(nvme)), None) => (nvme.config(&args.config), nvme.create),
        (None, Some(file)) => {
            let read =
                Config::read(file).map_err(|error| CommandError::host("reading the configuration", error))?;
            (args.config.clone().over(read), None)
        }
        (Some(_), Some(_)) => {
            let reason = "name either a device (prereg serve nvme) or a file (--config), not both";
            return Err(CommandError::host("serving", reason));
        }
        (None, None) => {
            let reason = "name a device (prereg serve nvme) or a file (--config)";
            return Err(CommandError::host("serving", reason));
        }
    };
    let control = match &config.control {
        Some(path) if path.as_os_str() == "none" => Control::None,
        Some(path) => Control::At(path.clone()),
        None => Control::Default,
    };
    config.check().map_err(|error| CommandError::host("serving", error))?;
    let created = match create {
        Some(bytes) => CreatedDisks::make(&config, bytes)?,
        None => CreatedDisks::default(),
    };
    if args.check {
        let is_fine = check::print(&config, &control, log(&config), out)?;
        return Ok(if is_fine { Outcome::Ok } else { Outcome::Mismatch });
    }
    let server = RunningServer::start(&config, control, log(&config))?;
    created.keep();
    if !args.quiet {
        server.print_banner(out)?;
        out.flush()?;
    }
    server.run_until(interrupt);
    server.stop();
    if !args.quiet {
        writeln!(out, "stopped; every pin is released and the sockets are removed")?;
    }
    Ok(Outcome::Ok)
}

/// The log of this configuration, on standard error.
fn log(config: &Config) -> Dispatch {
    let format = config.log_format.unwrap_or_default();
    let level = config.log_level.clone().unwrap_or_default();
    output::dispatch(format, &level, Reader::of_standard_error(), io::stderr)
}

impl NvmeArgs {
    fn config(&self, config: &Config) -> Config {
        let mut device = self.device.clone();
        let namespace = |file: &PathBuf| NamespaceConfig { file: file.clone(), ..self.namespace.clone() };
        device.namespace = self.disk.iter().map(namespace).collect();
        Config { memory: self.memory, nvme: vec![device], ..config.clone() }
    }
}

/// Disks created by this start; dropping it removes them, unless they are kept.
#[derive(Debug, Default)]
struct CreatedDisks(Vec<PathBuf>);

impl CreatedDisks {
    /// Creates the disks of `config` that do not exist, sparse, of `bytes` bytes.
    ///
    /// # Errors
    /// [`CommandError::Host`] for a disk that exists with another size or cannot be created.
    fn make(config: &Config, bytes: u64) -> Result<Self, CommandError> {
        let mut created = Self::default();
        for namespace in config.nvme.iter().flat_map(|device| &device.namespace) {
            let disk = &namespace.file;
            let cannot = |error| CommandError::host(format!("creating {}", disk.display()), error);
            match std::fs::metadata(disk) {
                Ok(found) if found.is_file() && found.len() != bytes => {
                    return Err(CommandError::host(
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

    /// Keeps the disks, because they are served.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for CreatedDisks {
    fn drop(&mut self) {
        for disk in &self.0 {
            // The error of the start is reported, and the disk is empty.
            let _ = std::fs::remove_file(disk);
        }
    }
}
