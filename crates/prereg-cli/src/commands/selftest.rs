//! `prereg selftest`: tests each guarantee on a chosen back end and device.

use std::io::Write;

use clap::Args;

use super::Outcome;
use crate::error::CommandError;
use crate::selftest::{self, BackendChoice, Options};
use crate::units::parse_bytes;

const MORE: &str = "\
Registers memory, maps it, lets the device do DMA to it and compares the data. Tests that unregistering mapped memory is \
refused, that maps make no system call, that the device reaches nothing after the unregister, that memory which cannot be pinned \
is refused, and the limits of an ordinary user. DMA needs QEMU's edu device (1234:11e8); with another device the rest is \
tested. The device must be bound to vfio-pci, and no other process may have its group open.

Examples:
  prereg selftest --backend io-uring
  prereg selftest --backend vfio-type1 --device 0000:00:04.0
  prereg selftest --backend vfio-spapr-v2 --device 0001:00:00.0 --kernel-reference --json";

/// Test each guarantee on this host, with a real device
#[derive(Debug, Args)]
#[command(after_long_help = MORE)]
pub(crate) struct SelftestArgs {
    /// Pin back end
    #[arg(long, value_enum)]
    backend: BackendChoice,

    /// PCI address of the device, as in /sys/bus/pci/devices
    #[arg(long, value_name = "BDF", required_if_eq_any([
        ("backend", "vfio-type1"), ("backend", "vfio-spapr-v2"), ("backend", "iommufd"),
    ]))]
    device: Option<String>,

    /// Size of the large region; reduced to the available memory and the limit on locked memory
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_bytes)]
    size: u64,

    /// Maps and unmaps whose system calls are counted
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    maps: u64,

    /// With vfio-spapr-v2: also call the kernel without the back end's checks, and print both results
    ///
    /// Current kernels never release a region that is unregistered while mapped: one page stays pinned.
    #[arg(long)]
    kernel_reference: bool,

    /// Also print every ioctl
    #[arg(long)]
    trace_ioctls: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Tests, and prints the report.
///
/// # Errors
/// [`CommandError`] if the back end cannot be opened.
pub(crate) fn run(args: &SelftestArgs, out: &mut impl Write) -> Result<Outcome, CommandError> {
    if let (BackendChoice::IoUring, Some(device)) = (args.backend, &args.device) {
        return Err(CommandError::host(
            "selftest",
            format!(
                "the back end io-uring uses no device, so --device {device} has no effect; leave it out, or name \
                 --backend vfio-type1, vfio-spapr-v2 or iommufd"
            ),
        ));
    }
    let options = Options {
        backend: args.backend,
        device: args.device.clone(),
        bytes: args.size,
        maps: args.maps,
        kernel_reference: args.kernel_reference,
        trace_ioctls: args.trace_ioctls,
    };
    let report = selftest::run(&options)?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.print(out)?;
    }
    Ok(if report.passed { Outcome::Ok } else { Outcome::Mismatch })
}
