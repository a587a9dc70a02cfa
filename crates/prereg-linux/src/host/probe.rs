//! Queries the system for the facts of the report.

use std::fs;
use std::path::Path;

use rustix::thread::CapabilitySet;

use super::report::{Capabilities, HostReport, HugePool, Memlock, PagemapAccess, UringAccess};
use super::{backends, parse};
use crate::account;
use crate::pagemap::Pagemap;
use crate::proc_status::{KernelCount, kib_of};
use crate::sys;
use crate::uring::IoUring;
use crate::vfio::host::VfioHost;
use crate::vfio::sysfs::names_in;

impl HostReport {
    /// Examines the host as it is for this process. Creates and drops a ring, and briefly opens each IOMMU group that
    /// is bound to VFIO and not in use.
    #[must_use]
    pub fn probe() -> Self {
        let (uid, euid) = sys::uids();
        let capabilities = sys::effective_capabilities().unwrap_or(CapabilitySet::empty());
        let (soft, hard) = sys::memlock_limit();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let vfio = VfioHost::system();
        let mut report = Self {
            kernel: word("/proc/sys/kernel/osrelease"),
            uid,
            euid,
            initial_user_namespace: account::in_initial_user_namespace(),
            capabilities: Capabilities {
                ipc_lock: capabilities.contains(CapabilitySet::IPC_LOCK),
                sys_admin: capabilities.contains(CapabilitySet::SYS_ADMIN),
                sys_resource: capabilities.contains(CapabilitySet::SYS_RESOURCE),
            },
            memlock: Memlock {
                soft,
                hard,
                privileged: account::bypasses_memlock(),
                counted: KernelCount::now(),
            },
            page_bytes: sys::page_size(),
            memory_total: kib_of(&meminfo, "MemTotal"),
            memory_available: kib_of(&meminfo, "MemAvailable"),
            huge_pools: huge_pools(Path::new("/sys/kernel/mm/hugepages")),
            transparent_huge_pages: fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled")
                .ok()
                .and_then(|text| parse::selected(&text)),
            compact_unevictable_allowed: number("/proc/sys/vm/compact_unevictable_allowed"),
            pagemap: pagemap_access(),
            io_uring: uring_access(),
            iommu_groups: numbers_in(Path::new("/sys/kernel/iommu_groups")),
            vfio: Path::new("/dev/vfio/vfio").exists(),
            vfio_groups: numbers_in(Path::new("/dev/vfio")),
            iommufd: Path::new("/dev/iommu").exists(),
            groups: vfio.groups(),
            type1_mappings: vfio.type1_mappings(),
            backends: Vec::new(),
        };
        report.backends = backends::backend_reports(&report);
        report
    }
}

fn word(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(path: &str) -> Option<u64> {
    word(path)?.parse().ok()
}

fn numbers_in(path: &Path) -> Vec<u32> {
    let mut numbers: Vec<u32> = names_in(path).iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

fn huge_pools(path: &Path) -> Vec<HugePool> {
    let mut pools: Vec<HugePool> = names_in(path)
        .iter()
        .filter_map(|name| {
            let count = |file: &str| fs::read_to_string(path.join(name).join(file)).ok()?.trim().parse().ok();
            Some(HugePool {
                page_bytes: parse::huge_page(name)?,
                total: count("nr_hugepages")?,
                free: count("free_hugepages")?,
            })
        })
        .collect();
    pools.sort_unstable_by_key(|pool| pool.page_bytes);
    pools
}

fn pagemap_access() -> PagemapAccess {
    match Pagemap::open().and_then(|map| map.shows_frames()) {
        Ok(true) => PagemapAccess::Frames,
        Ok(false) => PagemapAccess::Hidden,
        Err(error) => PagemapAccess::Denied(error.errno()),
    }
}

fn uring_access() -> UringAccess {
    let made = IoUring::new();
    UringAccess {
        disabled: number("/proc/sys/kernel/io_uring_disabled"),
        addresses: made.as_ref().ok().map(prereg::Pin::address_kind),
        probe: made.map(|uring| uring.slot_limit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prereg::AddressKind;

    #[test]
    fn a_report_of_this_host_is_consistent_with_itself() {
        let report = HostReport::probe();
        assert!(report.kernel.is_some());
        assert!(report.page_bytes.is_power_of_two());
        assert_eq!(
            report.backends.iter().map(|b| b.name).collect::<Vec<_>>(),
            ["io-uring", "mlock", "fixed", "vfio-type1", "vfio-spapr-v2", "iommufd"]
        );
        let uring = report.backend("io-uring").unwrap();
        assert_eq!(uring.usable, report.io_uring.probe.is_ok());
        assert_eq!(report.memlock.privileged, report.capabilities.ipc_lock && report.initial_user_namespace);
        assert!(report.backends.iter().all(|backend| !backend.why.is_empty()));
        if report.pagemap == PagemapAccess::Frames && uring.usable {
            assert_eq!(report.io_uring.addresses, Some(AddressKind::Physical));
        }
    }

    #[test]
    fn folders_that_are_not_there_are_empty() {
        let nowhere = Path::new("/proc/self/no-such-folder");
        assert_eq!(huge_pools(nowhere), []);
        assert!(numbers_in(nowhere).is_empty());
    }

    #[test]
    fn pools_are_read_from_their_folders_and_broken_ones_left_out() {
        let root = tempfile::tempdir().unwrap();
        let pool = |name: &str, total: &str, free: &str| {
            let path = root.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("nr_hugepages"), total).unwrap();
            fs::write(path.join("free_hugepages"), free).unwrap();
        };
        pool("hugepages-1048576kB", "2\n", "1\n");
        pool("hugepages-2048kB", "512\n", "0\n");
        pool("hugepages-64kB", "many\n", "0\n");
        pool("hugepages-xkB", "1\n", "0\n");
        fs::create_dir(root.path().join("hugepages-32768kB")).unwrap();
        let expected = [
            HugePool { page_bytes: 2 << 20, total: 512, free: 0 },
            HugePool { page_bytes: 1 << 30, total: 2, free: 1 },
        ];
        assert_eq!(huge_pools(root.path()), expected);
    }
}
