//! The VFIO and iommufd back ends on this machine: every refusal names its reason and remedy.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;

use prereg::Errno;
use prereg_linux::{HostReport, IoctlTrace, Iommufd, Placement, VfioError, VfioHost, VfioSpaprV2, VfioType1};

/// Every way of opening a device.
fn refusals(device: &str) -> Vec<VfioError> {
    let host = VfioHost::system();
    vec![
        VfioType1::open_on(&host, device).map(drop).unwrap_err(),
        VfioSpaprV2::open_on(&host, device).map(drop).unwrap_err(),
        Iommufd::open_on(&host, device, Placement::DeviceIoas).map(drop).unwrap_err(),
    ]
}

#[test]
fn a_device_that_is_not_there_is_refused_by_name() {
    for name in ["ffff:ff:1f.7", "", "..", "/etc", "0000:00:00.0/driver"] {
        for error in refusals(name) {
            let no_iommufd = matches!(&error, VfioError::Missing { path, .. } if path == "/dev/iommu")
                || matches!(&error, VfioError::Denied { path, .. } if path == "/dev/iommu");
            assert!(no_iommufd || error == VfioError::NoDevice { device: name.to_owned() }, "{error}");
        }
    }
}

#[test]
fn a_device_that_is_not_given_to_vfio_is_refused_with_a_remedy() {
    let devices = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    let other = devices
        .filter_map(|entry| entry.file_name().into_string().ok())
        .find(|name| !fs::exists(format!("/sys/bus/pci/devices/{name}/vfio-dev")).unwrap_or(true));
    let Some(device) = other else {
        eprintln!("skipped: this machine has no PCI device that is not VFIO's");
        return;
    };
    for error in refusals(&device) {
        let text = error.to_string();
        let remedy = ["intel_iommu=on", "driver_override", "modprobe", "run as root"];
        assert!(remedy.iter().any(|word| text.contains(word)), "{text}");
    }
}

#[test]
fn a_container_is_no_container_when_it_is_another_file() {
    let null = fs::File::options().read(true).write(true).open("/dev/null").unwrap();
    let error = VfioType1::on_container(null.into()).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOTTY);
    assert!(error.to_string().contains("VFIO_IOMMU_GET_INFO"), "{error}");
}

#[test]
fn the_report_says_of_every_group_what_it_is_good_for() {
    let log = IoctlTrace::new();
    let groups = VfioHost::system().traced(&log).groups();
    let report = HostReport::probe();
    assert_eq!(report.iommu_groups, groups.iter().map(|group| group.number).collect::<Vec<_>>());
    for group in groups {
        if let Err(error) = &group.limits {
            assert!(!error.to_string().is_empty());
        }
    }
    let opened = log.lines().iter().filter(|line| line.ends_with("=> ok")).count();
    let closed = log.lines().iter().filter(|line| line.ends_with(" closed")).count();
    assert!(closed >= opened, "what was opened for a look is closed again");
    for name in ["vfio-type1", "vfio-spapr-v2", "iommufd"] {
        let verdict = report.backend(name).unwrap();
        assert!(verdict.pins && !verdict.why.is_empty());
        assert!(verdict.usable || verdict.addresses.is_none());
    }
}
