//! Devices, drivers and IOMMU groups in `/sys`. Read-only; missing facts are `None` or empty.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::{BoundDriver, VfioError};

/// A sysfs tree.
#[derive(Clone, Debug)]
pub(crate) struct Sysfs {
    root: PathBuf,
}

/// A device of an IOMMU group.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GroupDevice {
    /// Its PCI address: `0000:00:04.0`.
    pub device: String,
    /// Its driver, if any.
    pub driver: Option<String>,
    /// Its node below `/dev/vfio/devices`, if any; iommufd needs one.
    pub node: Option<String>,
}

impl GroupDevice {
    #[cfg(test)]
    pub(crate) fn new(device: &str, driver: Option<&str>, node: Option<&str>) -> Self {
        let own = |text: Option<&str>| text.map(ToOwned::to_owned);
        Self { device: device.to_owned(), driver: own(driver), node: own(node) }
    }

    /// Whether a VFIO driver is bound to it.
    #[must_use]
    pub fn is_bound_to_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio)
    }

    /// Whether the kernel considers the group viable with this driver.
    fn is_harmless(&self) -> bool {
        // VFIO drivers, stubs, and bridges whose driver does no DMA.
        self.driver
            .as_deref()
            .is_none_or(|driver| is_vfio(driver) || ["pci-stub", "pcieport", "shpchp"].contains(&driver))
    }
}

/// Whether it is a VFIO driver.
fn is_vfio(driver: &str) -> bool {
    driver == "vfio-pci" || driver.ends_with("-vfio-pci") || driver.ends_with("_vfio_pci")
}

impl Sysfs {
    /// The tree at `root`, usually `/sys`.
    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn device(&self, device: &str) -> PathBuf {
        self.root.join("bus/pci/devices").join(device)
    }

    /// The group of a PCI device that is bound to VFIO.
    pub(crate) fn group_of(&self, device: &str) -> Result<u32, VfioError> {
        let odd = device.is_empty() || device.contains('/') || device.starts_with('.');
        let place = self.device(device);
        if odd || !place.exists() {
            return Err(VfioError::NoDevice { device: device.to_owned() });
        }
        let group = link_name(&place.join("iommu_group")).and_then(|name| name.parse().ok());
        let group = group.ok_or_else(|| VfioError::NoGroup { device: device.to_owned() })?;
        match self.driver_of(device) {
            Some(driver) if is_vfio(&driver) => Ok(group),
            driver => Err(VfioError::NotBound { device: device.to_owned(), driver }),
        }
    }

    fn driver_of(&self, device: &str) -> Option<String> {
        link_name(&self.device(device).join("driver"))
    }

    /// The name of a device's node below `/dev/vfio/devices`.
    pub(crate) fn node_of(&self, device: &str) -> Option<String> {
        let mut names = names_in(&self.device(device).join("vfio-dev"));
        names.sort_unstable();
        names.into_iter().next()
    }

    /// Numbers of all groups, ascending.
    pub(crate) fn groups(&self) -> Vec<u32> {
        let mut groups: Vec<u32> = names_in(&self.root.join("kernel/iommu_groups"))
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        groups.sort_unstable();
        groups
    }

    fn group(&self, group: u32) -> PathBuf {
        self.root.join("kernel/iommu_groups").join(group.to_string())
    }

    /// The devices of a group, by name.
    pub(crate) fn devices_of(&self, group: u32) -> Vec<GroupDevice> {
        let mut devices = names_in(&self.group(group).join("devices"));
        devices.sort_unstable();
        devices
            .into_iter()
            .map(|device| GroupDevice {
                driver: self.driver_of(&device),
                node: self.node_of(&device),
                device,
            })
            .collect()
    }

    /// The type of the group's default domain (`DMA`, `DMA-FQ`, `identity`).
    pub(crate) fn kind_of(&self, group: u32) -> Option<String> {
        let text = fs::read_to_string(self.group(group).join("type")).ok()?;
        Some(text.trim().to_owned()).filter(|kind| !kind.is_empty())
    }

    /// Reserved I/O addresses of the group: first and last byte, and the kind.
    pub(crate) fn reserved_of(&self, group: u32) -> Vec<(u64, u64, String)> {
        let text = fs::read_to_string(self.group(group).join("reserved_regions")).unwrap_or_default();
        text.lines().filter_map(parse_reserved).collect()
    }

    /// Devices of the group that another driver is bound to.
    pub(crate) fn foreign_drivers_of(&self, group: u32) -> Vec<BoundDriver> {
        self.devices_of(group)
            .into_iter()
            .filter(|device| !device.is_harmless())
            .map(|device| BoundDriver { driver: device.driver.unwrap_or_default(), device: device.device })
            .collect()
    }

    /// The most mappings of one type1 container (`dma_entry_limit` of its module).
    pub(crate) fn type1_entry_limit(&self) -> Option<u64> {
        let path = self.root.join("module/vfio_iommu_type1/parameters/dma_entry_limit");
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }
}

/// `0x00000000fee00000 0x00000000feefffff msi`.
fn parse_reserved(line: &str) -> Option<(u64, u64, String)> {
    let mut words = line.split_ascii_whitespace();
    let mut number = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let (first, last) = (number()?, number()?);
    (first <= last).then(|| (first, last, words.next().unwrap_or_default().to_owned()))
}

fn link_name(path: &Path) -> Option<String> {
    fs::read_link(path).ok()?.file_name()?.to_str().map(ToOwned::to_owned)
}

/// Names of the entries of a folder; none when it cannot be read.
pub(crate) fn names_in(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use prereg::Errno;
    use std::os::unix::fs::symlink;

    /// A tree with two groups: 1 has a device on vfio-pci and a bridge, 2 also has a device on `e1000e`.
    pub(crate) fn tree() -> (tempfile::TempDir, Sysfs) {
        let root = tempfile::tempdir().unwrap();
        for driver in ["vfio-pci", "e1000e", "pcieport"] {
            fs::create_dir_all(root.path().join("bus/pci/drivers").join(driver)).unwrap();
        }
        let device = |name: &str, group: Option<u32>, driver: Option<&str>| {
            let place = root.path().join("bus/pci/devices").join(name);
            fs::create_dir_all(&place).unwrap();
            if let Some(driver) = driver {
                symlink(root.path().join("bus/pci/drivers").join(driver), place.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let folder = root.path().join("kernel/iommu_groups").join(group.to_string());
                fs::create_dir_all(folder.join("devices")).unwrap();
                symlink(&folder, place.join("iommu_group")).unwrap();
                symlink(&place, folder.join("devices").join(name)).unwrap();
            }
        };
        device("0000:00:01.0", Some(1), Some("vfio-pci"));
        device("0000:00:01.1", Some(1), Some("pcieport"));
        device("0000:00:02.0", Some(2), Some("vfio-pci"));
        device("0000:00:02.1", Some(2), Some("e1000e"));
        device("0000:00:03.0", None, Some("e1000e"));
        device("0000:00:04.0", Some(4), None);
        fs::create_dir_all(root.path().join("bus/pci/devices/0000:00:01.0/vfio-dev/vfio0")).unwrap();
        fs::write(root.path().join("kernel/iommu_groups/1/type"), "DMA-FQ\n").unwrap();
        let reserved = "0x00000000fee00000 0x00000000feefffff msi\nnonsense\n0x2 0x1 direct\n";
        fs::write(root.path().join("kernel/iommu_groups/1/reserved_regions"), reserved).unwrap();
        let sysfs = Sysfs::at(root.path());
        (root, sysfs)
    }

    #[test]
    fn only_a_device_that_is_bound_to_vfio_has_a_group_to_open() {
        let (_root, sysfs) = tree();
        assert_eq!(sysfs.group_of("0000:00:01.0"), Ok(1));
        for name in ["", "..", "../devices", "0000:00:09.0", "0000:00:01.0/driver"] {
            assert!(matches!(sysfs.group_of(name), Err(VfioError::NoDevice { .. })), "{name}");
        }
        assert!(matches!(sysfs.group_of("0000:00:03.0"), Err(VfioError::NoGroup { .. })));
        let error = sysfs.group_of("0000:00:02.1").unwrap_err();
        assert!(error.to_string().contains("e1000e"), "{error}");
        assert_eq!(error.errno(), Errno::ENODEV);
        let error = sysfs.group_of("0000:00:04.0").unwrap_err();
        assert!(error.to_string().contains("no driver"), "{error}");
    }

    #[test]
    fn groups_are_viable_when_no_foreign_driver_does_dma_in_them() {
        let (_root, sysfs) = tree();
        assert_eq!(sysfs.groups(), [1, 2, 4]);
        assert_eq!(sysfs.devices_of(1).len(), 2);
        assert_eq!(sysfs.foreign_drivers_of(1), []);
        assert_eq!(sysfs.foreign_drivers_of(4), []);
        let held = BoundDriver { device: "0000:00:02.1".into(), driver: "e1000e".into() };
        assert_eq!(sysfs.foreign_drivers_of(2), [held]);
        assert_eq!(sysfs.node_of("0000:00:01.0").as_deref(), Some("vfio0"));
        assert_eq!(sysfs.node_of("0000:00:02.0"), None);
    }

    #[test]
    fn facts_that_are_not_there_are_none_and_odd_lines_are_left_out() {
        let (_root, sysfs) = tree();
        assert_eq!(sysfs.kind_of(1).as_deref(), Some("DMA-FQ"));
        assert_eq!(sysfs.kind_of(2), None);
        assert_eq!(sysfs.reserved_of(1), [(0xfee0_0000, 0xfeef_ffff, "msi".to_owned())]);
        assert_eq!(sysfs.reserved_of(2), []);
        assert_eq!(sysfs.type1_entry_limit(), None);
        assert_eq!(Sysfs::at("/no/such/tree").groups(), [0; 0]);
    }
}
