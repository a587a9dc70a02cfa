//! Errors of the VFIO and iommufd back ends, each with its remedy.

use prereg::Errno;

/// A device of a group, and the driver bound to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BoundDriver {
    /// Its PCI address.
    pub device: String,
    /// Its driver.
    pub driver: String,
}

/// A VFIO or iommufd back end, or a part of one, could not be used. Nothing is left open, attached or mapped.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// A device node is missing.
    #[error("{path} is not there ({errno}): {remedy}")]
    Missing {
        /// The node.
        path: String,
        /// The system's errno.
        errno: Errno,
        /// The remedy.
        remedy: &'static str,
    },
    /// The user may not open the node.
    #[error(
        "{path} may not be opened by this user ({errno}): run as root, or give the node to the user (chown, or a udev rule) \
         and raise the user's locked-memory limit"
    )]
    Denied {
        /// The node.
        path: String,
        /// The system's errno.
        errno: Errno,
    },
    /// There is no such device.
    #[error(
        "there is no PCI device {device}: write it as /sys/bus/pci/devices names it, for example 0000:00:04.0"
    )]
    NoDevice {
        /// The requested name.
        device: String,
    },
    /// The device is in no IOMMU group.
    #[error(
        "{device} is in no IOMMU group: the machine has no IOMMU before it, or it is switched off (firmware setup, and \
         intel_iommu=on or amd_iommu=on on the kernel's command line)"
    )]
    NoGroup {
        /// The device.
        device: String,
    },
    /// The device is bound to another driver.
    #[error(
        "{device} is bound to {}, not to a VFIO driver: echo vfio-pci > /sys/bus/pci/devices/{device}/driver_override; {}echo \
         {device} > /sys/bus/pci/drivers_probe", driver_text(.driver.as_deref()), unbind_text(device, .driver.as_deref())
    )]
    NotBound {
        /// The device.
        device: String,
        /// Its driver, if any.
        driver: Option<String>,
    },
    /// The group is open already.
    #[error(
        "IOMMU group {group} is open already, in another process or in this one (EBUSY): a group has one opener; stop the \
         other one, or share its back end"
    )]
    GroupBusy {
        /// The group.
        group: u32,
    },
    /// The group is in another container.
    #[error("IOMMU group {group} is in another container already ({errno}); close that one first")]
    InContainer {
        /// The group.
        group: u32,
        /// The system's errno.
        errno: Errno,
    },
    /// Other drivers are bound to devices of the group.
    #[error(
        "IOMMU group {group} is not viable: {}; the devices of a group can only be assigned together: bind them to vfio-pci or to no \
         driver", drivers_text(.others)
    )]
    NotViable {
        /// The group.
        group: u32,
        /// Devices of the group with other drivers.
        others: Vec<BoundDriver>,
    },
    /// The VFIO version is unknown.
    #[error("this kernel's VFIO has version {found}; only version 0 is supported")]
    Version {
        /// The kernel's version.
        found: i32,
    },
    /// The container does not support this IOMMU type.
    #[error("the container cannot be a {kind} ({errno}): {remedy}")]
    NoIommuType {
        /// The requested type.
        kind: &'static str,
        /// The system's errno.
        errno: Errno,
        /// The remedy.
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
    /// The device is in use.
    #[error("{device} is in use already ({errno}): stop the process that has it open")]
    DeviceBusy {
        /// The device.
        device: String,
        /// The system's errno.
        errno: Errno,
    },
    /// Registered memory would lose its mappings.
    #[error(
        "{what} holds {bytes} bytes of registered memory (EBUSY), which the kernel would drop with it; unregister them, or \
         add another device first"
    )]
    MemoryRegistered {
        /// The group or device to be removed.
        what: String,
        /// Registered bytes.
        bytes: u64,
    },
    /// The window cannot be created.
    #[error("a window of {bytes} bytes of 2^{shift} byte pages cannot be created: {why}")]
    Window {
        /// Its size.
        bytes: u64,
        /// Its page shift.
        shift: u32,
        /// The reason.
        why: &'static str,
    },
    /// A kernel reply is inconsistent.
    #[error("{during} returned an inconsistent reply; this kernel may be newer than this program")]
    BadReply {
        /// The call.
        during: &'static str,
    },
    /// Another system call failed.
    #[error("{during} on {on} failed with {errno}")]
    Os {
        /// The call.
        during: &'static str,
        /// The object of the call.
        on: String,
        /// The system's errno.
        errno: Errno,
    },
}

prereg::debug_as_display!(VfioError);

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
    /// The system's errno, or the one that the kernel would return.
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

    /// The error for a failed open of a node.
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
