//! Why VFIO cannot be had, and what to do about it.

use prereg::Errno;

/// Another device of a group, and the driver that holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BoundDriver {
    /// Its place on the bus.
    pub device: String,
    /// Its driver.
    pub driver: String,
}

/// Why a VFIO or iommufd back end, or one of its parts, could not be had. Nothing is left open, attached or mapped.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// The node is not there.
    #[error("{path} is not there ({errno}): {remedy}")]
    Missing {
        /// The node.
        path: String,
        /// The system's number.
        errno: Errno,
        /// What would bring it.
        remedy: &'static str,
    },
    /// The node is not for this user.
    #[error(
        "{path} may not be opened by this user ({errno}): run as root, or give the node to the user (chown, or a udev rule) \
         and raise his locked-memory limit"
    )]
    Denied {
        /// The node.
        path: String,
        /// The system's number.
        errno: Errno,
    },
    /// No such device.
    #[error(
        "there is no PCI device {device}: write it as /sys/bus/pci/devices names it, for example 0000:00:04.0"
    )]
    NoDevice {
        /// The name asked for.
        device: String,
    },
    /// The device is behind no IOMMU.
    #[error(
        "{device} is in no IOMMU group: the machine has no IOMMU before it, or it is switched off (firmware setup, and \
         intel_iommu=on or amd_iommu=on on the kernel's command line)"
    )]
    NoGroup {
        /// The device.
        device: String,
    },
    /// The device belongs to another driver.
    #[error(
        "{device} is bound to {}, not to a VFIO driver: echo vfio-pci > /sys/bus/pci/devices/{device}/driver_override; {}echo \
         {device} > /sys/bus/pci/drivers_probe", driver_text(.driver.as_deref()), unbind_text(device, .driver.as_deref())
    )]
    NotBound {
        /// The device.
        device: String,
        /// Its driver, if it has one.
        driver: Option<String>,
    },
    /// Another opener has the group.
    #[error(
        "IOMMU group {group} is open already, in another process or in this one (EBUSY): a group has one opener; stop the \
         other one, or share its back end"
    )]
    GroupBusy {
        /// The group.
        group: u32,
    },
    /// The group belongs to another container.
    #[error("IOMMU group {group} is in another container already ({errno}); close that one first")]
    InContainer {
        /// The group.
        group: u32,
        /// The system's number.
        errno: Errno,
    },
    /// Other drivers hold devices of the group.
    #[error(
        "IOMMU group {group} is not viable: {}; all devices of a group go to a user together: bind them to vfio-pci or to no \
         driver", drivers_text(.others)
    )]
    NotViable {
        /// The group.
        group: u32,
        /// Its devices that other drivers hold.
        others: Vec<BoundDriver>,
    },
    /// The kernel speaks another version.
    #[error("this kernel's VFIO has version {found}, and only 0 is known here")]
    Version {
        /// What it says.
        found: i32,
    },
    /// The container cannot be of this kind.
    #[error("the container cannot be a {kind} ({errno}): {remedy}")]
    NoIommuType {
        /// The kind asked for.
        kind: &'static str,
        /// The system's number.
        errno: Errno,
        /// What would change it.
        remedy: &'static str,
    },
    /// Interrupts are not isolated.
    #[error(
        "the kernel refuses group {group} (EPERM): its interrupts are not isolated by the IOMMU; switch interrupt remapping \
         on in the firmware, or accept the danger: echo 1 > \
         /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    )]
    UnsafeInterrupts {
        /// The group.
        group: u32,
    },
    /// Somebody else has the device.
    #[error("{device} is in use already ({errno}): stop the process that has it open")]
    DeviceBusy {
        /// The device.
        device: String,
        /// The system's number.
        errno: Errno,
    },
    /// What is to go still holds registered memory.
    #[error(
        "{what} holds {bytes} bytes of registered memory (EBUSY), which the kernel would drop with it; unregister them, or \
         add another device first"
    )]
    MemoryRegistered {
        /// What was to be taken away.
        what: String,
        /// The bytes registered.
        bytes: u64,
    },
    /// A window that cannot be.
    #[error("a window of {bytes} bytes of 2^{shift} byte pages cannot be made: {why}")]
    Window {
        /// Its size.
        bytes: u64,
        /// Its page.
        shift: u32,
        /// Why not.
        why: &'static str,
    },
    /// The kernel's answer makes no sense.
    #[error(
        "{during} answered something else than its documentation says; is this kernel newer than this program?"
    )]
    BadReply {
        /// The call.
        during: &'static str,
    },
    /// Something else failed.
    #[error("{during} on {on} failed with {errno}")]
    Os {
        /// The call.
        during: &'static str,
        /// What it was asked of.
        on: String,
        /// The system's number.
        errno: Errno,
    },
}

fn driver_text(driver: Option<&str>) -> String {
    driver.map_or_else(|| "no driver".to_owned(), ToOwned::to_owned)
}

fn unbind_text(device: &str, driver: Option<&str>) -> String {
    driver
        .map_or_else(String::new, |driver| format!("echo {device} > /sys/bus/pci/drivers/{driver}/unbind; "))
}

fn drivers_text(others: &[BoundDriver]) -> String {
    let held: Vec<_> =
        others.iter().map(|other| format!("{} is held by {}", other.device, other.driver)).collect();
    if held.is_empty() { "some device of it is held by another driver".to_owned() } else { held.join(", ") }
}

const VFIO: &str = "load it (modprobe vfio-pci), or use a kernel that has VFIO";
const IOMMUFD: &str =
    "load it (modprobe iommufd), or use a kernel with CONFIG_IOMMUFD (most distributions' have none)";

impl VfioError {
    /// What the system said, or what it would have said.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Missing { errno, .. }
            | Self::Denied { errno, .. }
            | Self::InContainer { errno, .. }
            | Self::NoIommuType { errno, .. }
            | Self::DeviceBusy { errno, .. }
            | Self::Os { errno, .. } => *errno,
            Self::NoDevice { .. } | Self::NoGroup { .. } | Self::NotBound { .. } => Errno::ENODEV,
            Self::GroupBusy { .. } | Self::MemoryRegistered { .. } => Errno::EBUSY,
            Self::NotViable { .. } | Self::UnsafeInterrupts { .. } => Errno::EPERM,
            Self::Version { .. } | Self::Window { .. } => Errno::EINVAL,
            Self::BadReply { .. } => Errno::EIO,
        }
    }

    /// What a node's refusal to be opened means.
    pub(crate) fn of_open(path: &str, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::EACCES | Errno::EPERM => Self::Denied { path, errno },
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => {
                let remedy = if path == "/dev/iommu" { IOMMUFD } else { VFIO };
                Self::Missing { path, errno, remedy }
            }
            errno => Self::Os { during: "open", on: path, errno },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let device = || "0000:00:04.0".to_owned();
        let cases = [
            (VfioError::of_open("/dev/vfio/vfio", Errno::ENOENT), Errno::ENOENT, "modprobe vfio-pci"),
            (VfioError::of_open("/dev/iommu", Errno::ENOENT), Errno::ENOENT, "CONFIG_IOMMUFD"),
            (VfioError::of_open("/dev/vfio/7", Errno::EACCES), Errno::EACCES, "udev rule"),
            (VfioError::of_open("/dev/vfio/7", Errno::ENFILE), Errno::ENFILE, "open on /dev/vfio/7"),
            (VfioError::NoDevice { device: "4".into() }, Errno::ENODEV, "0000:00:04.0"),
            (VfioError::NoGroup { device: device() }, Errno::ENODEV, "intel_iommu=on"),
            (
                VfioError::NotBound { device: device(), driver: Some("e1000e".into()) },
                Errno::ENODEV,
                "drivers/e1000e/unbind",
            ),
            (VfioError::NotBound { device: device(), driver: None }, Errno::ENODEV, "drivers_probe"),
            (VfioError::GroupBusy { group: 7 }, Errno::EBUSY, "stop the other one"),
            (VfioError::UnsafeInterrupts { group: 7 }, Errno::EPERM, "allow_unsafe_interrupts"),
            (
                VfioError::DeviceBusy { device: device(), errno: Errno::EBUSY },
                Errno::EBUSY,
                "stop the process",
            ),
        ];
        for (error, errno, says) in cases {
            assert_eq!(error.errno(), errno, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_group_that_is_not_viable_names_who_holds_it() {
        let other = |device: &str| BoundDriver { device: device.to_owned(), driver: "e1000e".to_owned() };
        let error =
            VfioError::NotViable { group: 3, others: vec![other("0000:00:05.0"), other("0000:00:05.1")] };
        let text = error.to_string();
        assert!(text.contains("0000:00:05.0 is held by e1000e, 0000:00:05.1 is held by e1000e"), "{text}");
        let text = VfioError::NotViable { group: 3, others: vec![] }.to_string();
        assert!(text.contains("some device"), "{text}");
    }
}
