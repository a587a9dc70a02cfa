//! `prereg doctor`: the limits and back ends of this host and user, and what would allow more.
//!
//! Facts and verdicts come from the back ends ([`HostReport`]); this file prints them as text or JSON.

use std::io::{self, Write};

use clap::Args;
use prereg_linux::{
    BackendReport, GroupDevice, GroupLimits, GroupReport, HostReport, HugePool, PagemapAccess,
};
use serde::Serialize;

use super::Outcome;
use crate::backend::address_kind_name;
use crate::error::CommandError;
use crate::serve::fit::{self, Guest};
use crate::units::{Bytes, Count, parse_bytes};

/// Report which pin back ends and limits this host and user have
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  prereg doctor --guest 16G --devices 2
  prereg doctor --json | jq '.backends[] | select(.usable) | .name'")]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Only tell whether a guest with this much memory (suffixes K, M, G, T) can be served, and what to set; status 1 if not
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    guest: Option<u64>,

    /// Devices of that guest, all served by one server
    #[arg(long, value_name = "N", default_value_t = 1, requires = "guest")]
    devices: u64,

    /// That guest has an IOMMU of its own
    #[arg(long, requires = "guest")]
    viommu: bool,
}

/// Probes the host and prints the report.
///
/// # Errors
/// If `out` cannot be written, or the limits of the host are unknown. Other faults of the host are part of the report.
pub(crate) fn run(args: &DoctorArgs, out: &mut impl Write) -> Result<Outcome, CommandError> {
    if let Some(memory) = args.guest {
        return guest(Guest { memory, devices: args.devices, viommu: args.viommu }, args.json, out);
    }
    let report = HostReport::probe();
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &Json::from(&report))?;
        writeln!(out)?;
    } else {
        print(&report, out)?;
    }
    Ok(Outcome::Ok)
}

/// Reports whether a guest can be served.
fn guest(guest: Guest, json: bool, out: &mut impl Write) -> Result<Outcome, CommandError> {
    let checks = fit::checks(guest)?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &checks)?;
        writeln!(out)?;
    } else {
        fit::print(guest, &checks, out)?;
    }
    Ok(if checks.iter().all(|check| check.fits) { Outcome::Ok } else { Outcome::Mismatch })
}

fn print(report: &HostReport, out: &mut impl Write) -> io::Result<()> {
    let HostReport { memlock, capabilities, io_uring, .. } = report;
    let kernel = report.kernel.as_deref().unwrap_or("unknown");
    writeln!(out, "Host")?;
    let mut fact = |name: &str, text: String| writeln!(out, "  {name:<20}{text}");
    fact("kernel", format!("Linux {kernel}, pages of {}", Bytes(report.page_bytes)))?;
    fact("user", user(report))?;
    let held = [
        ("CAP_IPC_LOCK", capabilities.ipc_lock, "exempt from the locked-memory limit"),
        ("CAP_SYS_ADMIN", capabilities.sys_admin, "may read physical addresses"),
        ("CAP_SYS_RESOURCE", capabilities.sys_resource, "may raise hard limits"),
    ];
    let held: Vec<_> = held
        .iter()
        .map(|(name, held, what)| format!("{name} {} ({what})", if *held { "yes" } else { "no" }))
        .collect();
    fact("capabilities", held.join(", "))?;
    fact(
        "memory",
        format!(
            "{} available of {}",
            bytes_or_unknown(report.memory_available),
            bytes_or_unknown(report.memory_total)
        ),
    )?;
    fact(
        "locked memory",
        format!(
            "limit {} (hard {}){}; in use: {}",
            bytes_or_unlimited(memlock.soft),
            bytes_or_unlimited(memlock.hard),
            if memlock.privileged { ", from which this user is exempt" } else { "" },
            memlock.counted.map_or("unknown".to_owned(), |counted| {
                format!("{} locked, {} pinned by this process", Bytes(counted.locked), Bytes(counted.pinned))
            }),
        ),
    )?;
    fact("pagemap", pagemap(report.pagemap).1.to_owned())?;
    fact("compaction", compaction(report.compact_unevictable_allowed).to_owned())?;
    fact(
        "transparent huge",
        report.transparent_huge_pages.clone().unwrap_or_else(|| "not in this kernel".to_owned()),
    )?;
    if report.huge_pools.is_empty() {
        fact("huge-page pools", "none in this kernel".to_owned())?;
    }
    for HugePool { page_bytes, total, free } in &report.huge_pools {
        let empty = if *total == 0 {
            format!(" (echo N > {} to fill it)", pool_file(*page_bytes))
        } else {
            String::new()
        };
        fact(
            &format!("{} pages", Bytes(*page_bytes)),
            format!("{} in the pool, {} free{empty}", Count(*total), Count(*free)),
        )?;
    }
    fact(
        "io_uring",
        match (&io_uring.probe, io_uring.disabled) {
            (Ok(slot), _) => format!("works, {} a slot", Bytes(*slot)),
            (Err(error), Some(disabled)) => format!("{error} (io_uring_disabled = {disabled})"),
            (Err(error), None) => error.to_string(),
        },
    )?;
    fact("IOMMU groups", groups(report))?;
    if let Some(mappings) = report.type1_mappings {
        fact("type1 containers", format!("{} mappings each", Count(mappings)))?;
    }
    // Only groups with a VFIO driver: those of a whole machine would hide the rest.
    for group in report.groups.iter().filter(|group| uses_vfio(group)) {
        fact(&format!("group {}", group.number), group_text(group))?;
    }

    writeln!(out, "\nBack ends")?;
    for BackendReport { name, usable, pins, addresses, why, remedy, .. } in &report.backends {
        let usable = if *usable { "usable" } else { "not usable" };
        let pins = if *pins { "real pins" } else { "no pins" };
        let addresses =
            addresses.map_or(String::new(), |kind| format!(", {} addresses", address_kind_name(kind)));
        writeln!(out, "  {name:<14}{usable}: {pins}{addresses}")?;
        writeln!(out, "                {why}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "                remedy: {remedy}")?;
        }
    }
    writeln!(
        out,
        "  sim           usable: simulated, invented addresses; for tests and hosts that cannot pin"
    )
}

fn user(report: &HostReport) -> String {
    let uid = if report.uid == report.euid {
        format!("uid {}", report.uid)
    } else {
        format!("uid {}, effective {}", report.uid, report.euid)
    };
    if report.initial_user_namespace {
        uid
    } else {
        format!("{uid}, in a user namespace (its root is not the host's)")
    }
}

fn pool_file(page_bytes: u64) -> String {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", page_bytes / 1024)
}

fn pagemap(access: PagemapAccess) -> (&'static str, &'static str) {
    match access {
        PagemapAccess::Frames => ("frames", "shows physical addresses"),
        PagemapAccess::Hidden => {
            ("hidden", "hides physical addresses from this user (CAP_SYS_ADMIN may read them)")
        }
        _ => (
            "denied",
            "cannot be read (is /proc mounted? a process that changed its user may not read its own)",
        ),
    }
}

fn compaction(allowed: Option<u64>) -> &'static str {
    match allowed {
        Some(0) => "does not move locked pages (vm.compact_unevictable_allowed = 0)",
        Some(_) => "may move locked pages, never pinned ones (vm.compact_unevictable_allowed = 1)",
        None => "unknown (no vm.compact_unevictable_allowed)",
    }
}

fn groups(report: &HostReport) -> String {
    if report.iommu_groups.is_empty() {
        return "none: no IOMMU, or it is switched off (intel_iommu=on, or in the firmware)".to_owned();
    }
    let vfio = match (report.vfio, report.vfio_groups.len()) {
        (false, _) => "/dev/vfio/vfio is missing (modprobe vfio-pci)".to_owned(),
        (true, 0) => "none bound to VFIO".to_owned(),
        (true, bound) => format!("{bound} bound to VFIO"),
    };
    let iommufd = if report.iommufd { "/dev/iommu exists" } else { "no /dev/iommu" };
    format!("{}; {vfio}; {iommufd}", report.iommu_groups.len())
}

fn uses_vfio(group: &GroupReport) -> bool {
    group.devices.iter().any(GroupDevice::is_bound_to_vfio)
}

fn group_text(group: &GroupReport) -> String {
    let devices: Vec<_> = group
        .devices
        .iter()
        .map(|device| format!("{} ({})", device.device, device.driver.as_deref().unwrap_or("no driver")))
        .collect();
    let verdict = match &group.limits {
        Ok(_) => "viable".to_owned(),
        Err(error) => error.to_string(),
    };
    format!("{}: {verdict}", devices.join(", "))
}

fn bytes_or_unlimited(bytes: Option<u64>) -> String {
    bytes.map_or("unlimited".to_owned(), |bytes| Bytes(bytes).to_string())
}

fn bytes_or_unknown(bytes: Option<u64>) -> String {
    bytes.map_or("unknown".to_owned(), |bytes| Bytes(bytes).to_string())
}

/// The report as JSON; null for unlimited limits and unknown facts.
#[derive(Debug, Serialize)]
struct Json<'a> {
    kernel: Option<&'a str>,
    uid: u32,
    euid: u32,
    initial_user_namespace: bool,
    capabilities: JsonCapabilities,
    memory_total_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    page_bytes: u64,
    memlock: JsonMemlock,
    huge_pages: Vec<JsonPool>,
    transparent_huge_pages: Option<&'a str>,
    compact_unevictable_allowed: Option<u64>,
    pagemap: &'static str,
    io_uring: JsonUring,
    iommu_groups: &'a [u32],
    vfio: bool,
    vfio_groups: &'a [u32],
    iommufd: bool,
    type1_mappings: Option<u64>,
    groups: Vec<JsonGroup<'a>>,
    backends: Vec<JsonBackend<'a>>,
}

#[derive(Debug, Serialize)]
struct JsonCapabilities {
    ipc_lock: bool,
    sys_admin: bool,
    sys_resource: bool,
}

#[derive(Debug, Serialize)]
struct JsonMemlock {
    soft_bytes: Option<u64>,
    hard_bytes: Option<u64>,
    privileged: bool,
    locked_bytes: Option<u64>,
    pinned_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct JsonPool {
    page_bytes: u64,
    total: u64,
    free: u64,
}

#[derive(Debug, Serialize)]
struct JsonGroup<'a> {
    number: u32,
    kind: Option<&'a str>,
    devices: Vec<JsonDevice<'a>>,
    viable: bool,
    why_not: Option<String>,
    iova_ranges: Vec<(u64, u64)>,
    reserved: Vec<(u64, u64, &'a str)>,
    page_sizes: Option<u64>,
    mappings_left: Option<u32>,
    windows: Option<u32>,
}

#[derive(Debug, Serialize)]
struct JsonDevice<'a> {
    device: &'a str,
    driver: Option<&'a str>,
    node: Option<&'a str>,
}

impl<'a> From<&'a GroupReport> for JsonGroup<'a> {
    fn from(group: &'a GroupReport) -> Self {
        let (mut iova_ranges, mut page_sizes, mut mappings_left, mut windows) =
            (Vec::new(), None, None, None);
        match &group.limits {
            Ok(GroupLimits::Type1(limits)) => {
                iova_ranges = limits.ranges.iter().map(|(first, last)| (first.raw(), last.raw())).collect();
                page_sizes = Some(limits.page_sizes);
                mappings_left = limits.mappings_left;
            }
            Ok(GroupLimits::Spapr(limits)) => {
                page_sizes = Some(limits.page_sizes);
                windows = Some(limits.windows);
            }
            _ => {}
        }
        let devices = group.devices.iter().map(|device| JsonDevice {
            device: &device.device,
            driver: device.driver.as_deref(),
            node: device.node.as_deref(),
        });
        let reserved = group.reserved.iter();
        Self {
            number: group.number,
            kind: group.kind.as_deref(),
            devices: devices.collect(),
            viable: group.limits.is_ok(),
            why_not: group.limits.as_ref().err().map(ToString::to_string),
            iova_ranges,
            reserved: reserved.map(|(first, last, why)| (first.raw(), last.raw(), why.as_str())).collect(),
            page_sizes,
            mappings_left,
            windows,
        }
    }
}

#[derive(Debug, Serialize)]
struct JsonUring {
    usable: bool,
    disabled: Option<u64>,
    slot_bytes: Option<u64>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct JsonBackend<'a> {
    name: &'a str,
    usable: bool,
    pins: bool,
    addresses: Option<&'static str>,
    allowance_bytes: Option<u64>,
    why: &'a str,
    remedy: Option<&'a str>,
}

impl<'a> From<&'a HostReport> for Json<'a> {
    fn from(report: &'a HostReport) -> Self {
        let HostReport { memlock, capabilities, io_uring, .. } = report;
        let mut backends: Vec<_> = report
            .backends
            .iter()
            .map(|backend| JsonBackend {
                name: backend.name,
                usable: backend.usable,
                pins: backend.pins,
                addresses: backend.addresses.map(address_kind_name),
                allowance_bytes: backend.allowance,
                why: &backend.why,
                remedy: backend.remedy.as_deref(),
            })
            .collect();
        backends.push(JsonBackend {
            name: "sim",
            usable: true,
            pins: false,
            addresses: Some("invented"),
            allowance_bytes: None,
            why: "simulated; for tests and hosts that cannot pin",
            remedy: None,
        });
        Self {
            kernel: report.kernel.as_deref(),
            uid: report.uid,
            euid: report.euid,
            initial_user_namespace: report.initial_user_namespace,
            capabilities: JsonCapabilities {
                ipc_lock: capabilities.ipc_lock,
                sys_admin: capabilities.sys_admin,
                sys_resource: capabilities.sys_resource,
            },
            memory_total_bytes: report.memory_total,
            memory_available_bytes: report.memory_available,
            page_bytes: report.page_bytes,
            memlock: JsonMemlock {
                soft_bytes: memlock.soft,
                hard_bytes: memlock.hard,
                privileged: memlock.privileged,
                locked_bytes: memlock.counted.map(|counted| counted.locked),
                pinned_bytes: memlock.counted.map(|counted| counted.pinned),
            },
            huge_pages: report
                .huge_pools
                .iter()
                .map(|&HugePool { page_bytes, total, free }| JsonPool { page_bytes, total, free })
                .collect(),
            transparent_huge_pages: report.transparent_huge_pages.as_deref(),
            compact_unevictable_allowed: report.compact_unevictable_allowed,
            pagemap: pagemap(report.pagemap).0,
            io_uring: JsonUring {
                usable: io_uring.probe.is_ok(),
                disabled: io_uring.disabled,
                slot_bytes: io_uring.probe.as_ref().ok().copied(),
                error: io_uring.probe.as_ref().err().map(ToString::to_string),
            },
            iommu_groups: &report.iommu_groups,
            vfio: report.vfio,
            vfio_groups: &report.vfio_groups,
            iommufd: report.iommufd,
            type1_mappings: report.type1_mappings,
            groups: report.groups.iter().map(JsonGroup::from).collect(),
            backends,
        }
    }
}
