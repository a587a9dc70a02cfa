//! Whether a guest fits a host: what a server needs for it, and which limits refuse it.
//!
//! The memory limit is the server's own (`PinLimits`). Descriptors and mappings are upper bounds for a device with its defaults;
//! tests of `prereg serve` count what one really uses.

use std::fs;
use std::io::{self, Write};

use serde::Serialize;

use super::config::memory::MemoryConfig;
use super::pin_limits::PinLimits;
use crate::backend::HostMemory;
use crate::error::CommandError;
use crate::units::{Bytes, Number};

/// Descriptors of a client with one device: its socket, an eventfd for each of 17 interrupt vectors and the other interrupts, rings
/// and eventfds of two I/O threads, and files of memory.
pub const CLIENT_DESCRIPTORS: u64 = 64;
/// Descriptors of a server without clients.
pub const SERVER_DESCRIPTORS: u64 = 64;
/// Mappings of the server's address space for a client: two for each part of a memory file, of which it may have 384, and the
/// stacks of its threads.
const CLIENT_MAPPINGS: u64 = 2 * 384 + 32;
/// Mappings of a server without clients.
const SERVER_MAPPINGS: u64 = 512;
/// Mappings that a guest with an IOMMU may have at a time for each device.
const DMA_MAPPINGS: u64 = 65_535;

/// A guest that may be started.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its memory in bytes.
    pub memory: u64,
    /// Its devices, all of one server.
    pub devices: u64,
    /// It has an IOMMU of its own.
    pub viommu: bool,
}

/// The facts about the host.
#[derive(Clone, Copy, Debug)]
struct Host {
    memory: Option<HostMemory>,
    /// The hard limit on descriptors, to which a server raises its own.
    descriptors: Option<u64>,
    /// `vm.max_map_count`.
    mappings: Option<u64>,
}

impl Host {
    fn now() -> Self {
        let read = |file: &str| fs::read_to_string(file).ok();
        let descriptors = descriptor_limits().map(|(_, hard)| hard);
        let mappings = read("/proc/sys/vm/max_map_count").and_then(|text| text.trim().parse().ok());
        Self { memory: HostMemory::now(), descriptors, mappings }
    }
}

/// The soft and the hard limit on open descriptors; `None` if unknown.
pub(super) fn descriptor_limits() -> Option<(u64, u64)> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let mut limits = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_whitespace();
    Some((limits.next()?.parse().ok()?, limits.next()?.parse().ok()?))
}

/// One requirement, and whether it is met.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Check {
    /// The subject.
    pub name: &'static str,
    /// Whether the guest fits.
    pub fits: bool,
    /// The need and the limit.
    pub found: String,
    /// The setting to change, if it does not fit.
    pub remedy: Option<String>,
}

impl Check {
    fn new(name: &'static str, found: String, refused: Option<String>) -> Self {
        Self { name, fits: refused.is_none(), found, remedy: refused }
    }
}

/// The checks for `guest` on this host, for a server of this user with the default configuration.
///
/// # Errors
/// [`CommandError::Host`] if no limit can be determined.
pub fn checks(guest: Guest) -> Result<Vec<Check>, CommandError> {
    Ok(checks_on(guest, &PinLimits::of(&MemoryConfig::default())?, Host::now()))
}

fn checks_on(guest: Guest, limits: &PinLimits, host: Host) -> Vec<Check> {
    let needs = Bytes(guest.memory);
    let mut checks = vec![{
        let found = match limits.lowest() {
            Some(lowest) => {
                format!("{needs} needed, {} may be pinned for all guests together", Bytes(lowest))
            }
            None => format!("{needs} needed, and no limit applies"),
        };
        Check::new("pinned memory", found, limits.refusal(guest.memory))
    }];
    if let Some(memory) = host.memory {
        let remedy = "stop other guests, or give this one less memory".to_owned();
        checks.push(Check::new(
            "free memory",
            format!("{needs} needed, {} available of {}", Bytes(memory.available), Bytes(memory.total)),
            (memory.available < guest.memory).then_some(remedy),
        ));
    }
    let descriptors = SERVER_DESCRIPTORS.saturating_add(guest.devices.saturating_mul(CLIENT_DESCRIPTORS));
    if let Some(limit) = host.descriptors {
        let remedy = format!("raise the hard limit: `ulimit -Hn {descriptors}`, or LimitNOFILE= of the unit");
        checks.push(Check::new(
            "descriptors",
            format!("at most {descriptors} needed, the hard limit is {limit}"),
            (limit < descriptors).then_some(remedy),
        ));
    }
    let mappings = SERVER_MAPPINGS.saturating_add(guest.devices.saturating_mul(CLIENT_MAPPINGS));
    if let Some(limit) = host.mappings {
        checks.push(Check::new(
            "mappings",
            format!("at most {mappings} needed, vm.max_map_count is {limit}"),
            (limit < mappings).then(|| format!("sysctl vm.max_map_count={mappings}")),
        ));
    }
    if guest.viommu {
        let found = format!(
            "{} at a time for each device; its memory is pinned once, however it is mapped",
            Number(DMA_MAPPINGS, "DMA mapping")
        );
        checks.push(Check::new("guest's IOMMU", found, None));
    }
    checks
}

/// Writes the checks as text.
///
/// # Errors
/// If `out` cannot be written.
pub fn print(guest: Guest, checks: &[Check], out: &mut impl Write) -> io::Result<()> {
    let verdict = if checks.iter().all(|check| check.fits) { "yes" } else { "no" };
    let devices = Number(guest.devices, "device");
    writeln!(out, "A guest with {} and {devices}, served by this user: {verdict}", Bytes(guest.memory))?;
    for Check { name, fits, found, remedy } in checks {
        let verdict = if *fits { "ok" } else { "no" };
        writeln!(out, "  {name:<15}{verdict}: {found}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "                 {remedy}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn failed(guest: Guest, lockable: Option<u64>, host: Host) -> Vec<(&'static str, String)> {
        let limits = PinLimits::on_host(24 * GIB, lockable);
        let failed = checks_on(guest, &limits, host).into_iter().filter(|check| !check.fits);
        failed.map(|check| (check.name, check.remedy.unwrap())).collect()
    }

    #[test]
    fn each_limit_below_the_need_is_named_with_its_remedy() {
        let guest = Guest { memory: 16 * GIB, devices: 2, viommu: true };
        let memory = Some(HostMemory { total: 24 * GIB, available: 20 * GIB });
        let ample = Host { memory, descriptors: Some(1 << 20), mappings: Some(65_530) };
        assert_eq!(failed(guest, None, ample), []);
        let [(name, remedy)] = &failed(guest, Some(8 << 20), ample)[..] else { panic!("one") };
        assert!(*name == "pinned memory" && remedy.contains("ulimit -l"), "{remedy}");
        let larger = Guest { memory: 22 * GIB, ..guest };
        let names: Vec<_> = failed(larger, None, ample).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["pinned memory", "free memory"], "7/8 of 24 GiB are 21");
        let many = Guest { devices: 100, ..guest };
        let [(name, remedy)] = &failed(many, None, ample)[..] else { panic!("one") };
        assert!(*name == "mappings" && remedy == "sysctl vm.max_map_count=80512", "{remedy}");
        let few = Host { descriptors: Some(100), ..ample };
        let [(name, remedy)] = &failed(guest, None, few)[..] else { panic!("one") };
        assert!(*name == "descriptors" && remedy.contains("ulimit -Hn 192"), "{remedy}");
        let absurd = Guest { memory: u64::MAX, devices: u64::MAX, viommu: false };
        assert_eq!(failed(absurd, None, ample).len(), 4);
    }
}
