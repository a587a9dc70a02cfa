//! Prepares the kernel: file systems, modules, huge pages, devices bound to vfio-pci.

use std::fs;
use std::path::Path;

use crate::sys;

/// Modules in load order; those that are built in are not in the image and are skipped.
const MODULES: [&str; 8] = [
    "irqbypass",
    "vfio_virqfd",
    "vfio",
    "vfio_spapr_eeh",
    "vfio_iommu_spapr_tce",
    "vfio-pci-core",
    "vfio-pci",
    "mm_iommu_test",
];

/// Huge pages to reserve in every pool of up to 64 MiB pages.
const HUGE_PAGES: &str = "16";

/// A device bound to vfio-pci, and its group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Device {
    /// Bus address, as in the device's ioctl.
    pub(crate) name: String,
    /// The group's file below `/dev/vfio`.
    pub(crate) group: String,
}

/// Properties of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Host {
    /// Bytes in a page.
    pub(crate) page: u64,
    /// Devices by bus address; scenario group N is the group of device N.
    pub(crate) devices: Vec<Device>,
}

/// Prepares the machine.
pub(crate) fn boot() -> Host {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")] {
        // Without /proc there is no `lck` and without /dev no container, so a failure shows.
        let _ = fs::create_dir_all(place);
        sys::mount(kind, place);
    }
    sys::take_console();
    sys::quieten_console();
    let page = sys::page_size();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("\n# kernel {} page {page}", release.trim());
    for module in MODULES {
        insert(module);
    }
    reserve_huge_pages();
    Host { page, devices: give_devices() }
}

fn insert(name: &str) {
    for (packed, file) in [(false, format!("/modules/{name}.ko")), (true, format!("/modules/{name}.ko.xz"))] {
        if Path::new(&file).exists() {
            match sys::insert_module(&file, packed) {
                Ok(_) => println!("# module {name}"),
                Err(errno) => println!("# trouble: module {name}: {errno}"),
            }
        }
    }
}

fn reserve_huge_pages() {
    let Ok(pools) = fs::read_dir("/sys/kernel/mm/hugepages") else { return };
    for pool in pools.flatten() {
        let name = pool.file_name().to_string_lossy().into_owned();
        let kib =
            name.strip_prefix("hugepages-").and_then(|size| size.strip_suffix("kB")?.parse::<u64>().ok());
        if kib.is_some_and(|kib| kib <= 64 << 10) {
            let _ = fs::write(pool.path().join("nr_hugepages"), HUGE_PAGES);
            let got = fs::read_to_string(pool.path().join("nr_hugepages")).unwrap_or_default();
            println!("# huge pages of {name}: {}", got.trim());
        }
    }
}

/// Binds every PCI device that is no bridge to vfio-pci; returns them by bus address.
fn give_devices() -> Vec<Device> {
    let mut names: Vec<String> = fs::read_dir("/sys/bus/pci/devices")
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    names.sort();
    let mut devices = Vec::new();
    for name in names {
        let folder = Path::new("/sys/bus/pci/devices").join(&name);
        let class = fs::read_to_string(folder.join("class")).unwrap_or_default();
        if class.starts_with("0x06") {
            continue;
        }
        let _ = fs::write(folder.join("driver_override"), "vfio-pci");
        // There may be no driver to unbind from; whether the device was bound shows below.
        let _ = fs::write(folder.join("driver/unbind"), &name);
        let bound = fs::write("/sys/bus/pci/drivers_probe", &name);
        let Ok(link) = fs::read_link(folder.join("iommu_group")) else {
            println!("# device {name}: in no group");
            continue;
        };
        let group = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("# device {name}: class {} group {group} given {}", class.trim(), bound.is_ok());
        devices.push(Device { name, group: format!("/dev/vfio/{group}") });
    }
    devices
}
