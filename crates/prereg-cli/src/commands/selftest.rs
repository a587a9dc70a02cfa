//! `prereg selftest`: keeps every promise once, on a back end and a device of one's choice, and says how it went.

use std::io::Write;

use clap::Args;

use super::Outcome;
use crate::failure::Failure;
use crate::quantity::parse_bytes;
use crate::selftest::{self, BackendChoice, Options};

const MORE: &str = "\
Registers memory, maps it, makes the device do DMA to the address of a counted mapping and compares the data; shows that \
unregistering mapped memory is refused, that maps make no system call, and that the device reaches nothing afterwards; offers \
what cannot be pinned; and lives an ordinary user's limits. DMA is done with QEMU's edu device (1234:11e8); with another one \
everything else is shown. The device must be bound to vfio-pci, and nobody else may have its group open.

Examples:
  prereg selftest --backend io-uring
  prereg selftest --backend vfio-type1 --device 0000:00:04.0
  prereg selftest --backend vfio-spapr-v2 --device 0001:00:00.0 --ask-kernel --json";

/// Keep every promise once on this host, with a real device
#[derive(Debug, Args)]
#[command(after_long_help = MORE)]
pub struct SelftestArgs {
    /// How memory is pinned
    #[arg(long, value_enum)]
    backend: BackendChoice,

    /// The device, as /sys/bus/pci/devices names it
    #[arg(long, value_name = "BDF", required_if_eq_any([
        ("backend", "vfio-type1"), ("backend", "vfio-spapr-v2"), ("backend", "iommufd"),
    ]))]
    device: Option<String>,

    /// The large region; less is taken where memory or the limit on locked memory have no room
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_bytes)]
    bytes: u64,

    /// How many maps and unmaps are watched for system calls
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    maps: u64,

    /// With vfio-spapr-v2: also ask the kernel without our care, and print its answers beside ours
    ///
    /// Kernels of today forget a region that is unregistered while mapped: one page stays pinned for good.
    #[arg(long)]
    ask_kernel: bool,

    /// Also print every exchange with the kernel
    #[arg(long)]
    exchanges: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tries, and prints.
///
/// # Errors
/// [`Failure`] when the back end cannot be opened.
pub fn run(args: &SelftestArgs, out: &mut impl Write) -> Result<Outcome, Failure> {
    if let (BackendChoice::IoUring, Some(device)) = (args.backend, &args.device) {
        return Err(Failure::host(
            "selftest",
            format!(
                "the back end io-uring drives no device, so --device {device} would not be used; leave it out, or name \
                 --backend vfio-type1, vfio-spapr-v2 or iommufd"
            ),
        ));
    }
    let options = Options {
        backend: args.backend,
        device: args.device.clone(),
        bytes: args.bytes,
        maps: args.maps,
        ask_kernel: args.ask_kernel,
        exchanges: args.exchanges,
    };
    let report = selftest::run(&options)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.print(out)?;
    }
    Ok(if report.passed { Outcome::Clean } else { Outcome::Wrong })
}
