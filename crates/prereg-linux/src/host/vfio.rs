//! Reports on the back ends that need a device behind an IOMMU.

use prereg::AddressKind;

use super::report::{BackendReport, HostReport};
use crate::vfio::groups::{GroupLimits, GroupReport};
use crate::vfio::type1_limits::Type1Limits;

/// The remedy when no device is bound to VFIO.
const NOTHING_BOUND: &str = "switch the IOMMU on, load vfio-pci and bind a device to it: echo vfio-pci > \
                             /sys/bus/pci/devices/DEVICE/driver_override; echo DEVICE > /sys/bus/pci/drivers_probe";

/// Type1 and SPAPR containers.
pub(super) fn containers(report: &HostReport) -> [BackendReport; 2] {
    let mut type1 = unusable(report, "vfio-type1", AddressKind::Iova);
    let mut spapr = unusable(report, "vfio-spapr-v2", AddressKind::User);
    for group in &report.groups {
        match &group.limits {
            Ok(GroupLimits::Type1(limits)) => {
                type1.usable = true;
                type1.why = type1_text(report, group, limits);
            }
            Ok(GroupLimits::Spapr(limits)) => {
                spapr.usable = true;
                spapr.why = format!(
                    "group {} ({}): default window of {} MiB, {} windows of pages {:#x}",
                    group.number,
                    names(group),
                    limits.default_bytes >> 20,
                    limits.windows,
                    limits.page_sizes
                );
            }
            Err(_) => {}
        }
    }
    let found = type1.usable || spapr.usable;
    for backend in [&mut type1, &mut spapr] {
        if backend.usable {
            continue;
        }
        backend.addresses = None;
        (backend.why, backend.remedy) = if found {
            ("this machine's IOMMU is of the other kind".to_owned(), None)
        } else {
            refused(report)
        };
    }
    [type1, spapr]
}

/// The iommufd back end.
pub(super) fn iommufd(report: &HostReport) -> BackendReport {
    let mut backend = unusable(report, "iommufd", AddressKind::Iova);
    let nodes: Vec<_> = report
        .groups
        .iter()
        .flat_map(|group| &group.devices)
        .filter(|device| device.is_bound_to_vfio() && device.node.is_some())
        .map(|device| device.device.as_str())
        .collect();
    backend.usable = report.iommufd && !nodes.is_empty();
    if backend.usable {
        backend.why = format!("/dev/iommu is there; devices with nodes of their own: {}", nodes.join(", "));
        return backend;
    }
    backend.addresses = None;
    if report.iommufd {
        (backend.why, backend.remedy) = refused(report);
        if report.groups.iter().any(|group| group.devices.iter().any(|device| device.is_bound_to_vfio())) {
            backend.why = "devices are bound to VFIO, but have no nodes of their own".to_owned();
            backend.remedy = Some("use a kernel with CONFIG_VFIO_DEVICE_CDEV (6.6 or newer)".to_owned());
        }
    } else {
        backend.why = "there is no /dev/iommu".to_owned();
        backend.remedy = Some("modprobe iommufd, or use a kernel with CONFIG_IOMMUFD".to_owned());
    }
    backend
}

fn unusable(report: &HostReport, name: &'static str, addresses: AddressKind) -> BackendReport {
    BackendReport {
        name,
        usable: false,
        pins: true,
        addresses: Some(addresses),
        allowance: report.memlock.allowance(),
        why: String::new(),
        remedy: None,
    }
}

fn names(group: &GroupReport) -> String {
    group.devices.iter().map(|device| device.device.as_str()).collect::<Vec<_>>().join(", ")
}

fn type1_text(report: &HostReport, group: &GroupReport, limits: &Type1Limits) -> String {
    let ranges: Vec<_> =
        limits.ranges.iter().map(|(first, last)| format!("{:#x}-{:#x}", first.raw(), last.raw())).collect();
    let left = limits.mappings_left.map(u64::from).or(report.type1_mappings);
    format!(
        "group {} ({}): {} mappings, I/O addresses {}, pages {:#x}",
        group.number,
        names(group),
        left.map_or("an unknown number of".to_owned(), |left| left.to_string()),
        ranges.join(" and "),
        limits.page_sizes
    )
}

/// The reason why no group can be used, and the remedy. A group that is bound to VFIO comes closest, so its error is
/// preferred.
fn refused(report: &HostReport) -> (String, Option<String>) {
    let bound = |group: &&GroupReport| group.devices.iter().any(|device| device.is_bound_to_vfio());
    match report.groups.iter().find(bound).map(|group| (group.number, &group.limits)) {
        Some((number, Err(error))) => (format!("group {number} cannot be used: {error}"), None),
        _ if report.groups.is_empty() => {
            ("there are no IOMMU groups".to_owned(), Some(NOTHING_BOUND.to_owned()))
        }
        _ => ("no device is bound to a VFIO driver".to_owned(), Some(NOTHING_BOUND.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfio::error::VfioError;
    use crate::vfio::sysfs::GroupDevice;
    use prereg::Iova;

    fn host(groups: Vec<GroupReport>, iommufd: bool) -> HostReport {
        HostReport { groups, iommufd, ..HostReport::probe() }
    }

    fn group(
        driver: Option<&str>,
        node: Option<&str>,
        limits: Result<GroupLimits, VfioError>,
    ) -> GroupReport {
        let device = GroupDevice::new("0000:00:04.0", driver, node);
        GroupReport { number: 7, kind: None, devices: vec![device], reserved: Vec::new(), limits }
    }

    fn type1() -> GroupLimits {
        GroupLimits::Type1(Type1Limits {
            ranges: vec![(Iova::new(0), Iova::new(0xfedf_ffff))],
            page_sizes: 0x1000,
            mappings_left: Some(65_535),
        })
    }

    #[test]
    fn a_group_that_answers_makes_its_back_end_usable_and_rules_the_other_out() {
        let [type1, spapr] = containers(&host(vec![group(Some("vfio-pci"), None, Ok(type1()))], false));
        assert!(type1.usable && type1.pins);
        assert!(type1.why.contains("65535 mappings") && type1.why.contains("0xfedfffff"), "{}", type1.why);
        assert!(!spapr.usable && spapr.why.contains("other kind"));
        assert_eq!((type1.addresses, spapr.addresses), (Some(AddressKind::Iova), None));
    }

    #[test]
    fn a_host_without_any_is_told_what_to_do() {
        let [type1, spapr] = containers(&host(Vec::new(), false));
        assert!(!type1.usable && !spapr.usable);
        assert!(type1.remedy.unwrap().contains("driver_override"));
        let idle = group(None, None, Err(VfioError::NoGroup { device: String::new() }));
        let [type1, _] = containers(&host(vec![idle], false));
        assert!(type1.why.contains("no device is bound"), "{}", type1.why);
        let busy = group(Some("vfio-pci"), None, Err(VfioError::GroupBusy { group: 7 }));
        let [type1, _] = containers(&host(vec![busy], false));
        assert!(type1.why.contains("open already"), "{}", type1.why);
    }

    #[test]
    fn iommufd_needs_its_node_and_a_node_of_a_device() {
        let bound = |node| group(Some("vfio-pci"), node, Ok(type1()));
        assert!(iommufd(&host(vec![bound(Some("vfio0"))], true)).usable);
        let backend = iommufd(&host(vec![bound(None)], true));
        assert!(!backend.usable && backend.remedy.unwrap().contains("CDEV"));
        let backend = iommufd(&host(vec![bound(Some("vfio0"))], false));
        assert!(!backend.usable && backend.remedy.unwrap().contains("IOMMUFD"));
        assert!(!iommufd(&host(Vec::new(), true)).usable);
    }
}
