//! VFIO containers and their groups.
//!
//! The kernel drops all mappings of a container when its last group leaves. So the container owns its groups here, and
//! devices do not: a device may be opened and closed while the group and the mappings stay.

use std::ffi::CString;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::Errno;

use super::device::VfioDevice;
use super::error::VfioError;
use super::host::VfioHost;
use super::kernel::{
    Argument, CHECK_EXTENSION, Descriptor, GET_API_VERSION, GROUP_GET_DEVICE_FD, GROUP_GET_STATUS,
    GROUP_SET_CONTAINER, GROUP_UNSET_CONTAINER, SET_IOMMU, ioctl_struct,
};
use super::uapi::{GROUP_HAS_CONTAINER, GROUP_VIABLE, GroupStatus, UapiStruct};

/// An IOMMU type of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct IommuType {
    pub(crate) name: &'static str,
    /// The constant of `linux/vfio.h`.
    pub(crate) number: u64,
    remedy: &'static str,
}

pub(crate) const TYPE1_V2: IommuType = IommuType {
    name: "type1 IOMMU, version 2",
    number: 3,
    remedy: "load its driver (modprobe vfio_iommu_type1); POWER machines have vfio-spapr-v2 instead",
};

pub(crate) const SPAPR_TCE_V2: IommuType = IommuType {
    name: "SPAPR TCE IOMMU, version 2",
    number: 7,
    remedy: "load its driver (modprobe vfio_iommu_spapr_tce); it is for POWER machines that can make windows, others have \
             vfio-type1",
};

#[derive(Debug)]
struct Group {
    number: u32,
    descriptor: Arc<dyn Descriptor>,
}

/// An open container.
pub(crate) struct Container {
    host: VfioHost,
    descriptor: Arc<dyn Descriptor>,
    groups: Mutex<Vec<Group>>,
}

const NODE: &str = "/dev/vfio/vfio";

impl Container {
    /// A container of the given type with the group of `device` in it.
    pub(crate) fn open(host: &VfioHost, device: &str, iommu_type: IommuType) -> Result<Self, VfioError> {
        let group = host.sysfs.group_of(device)?;
        let descriptor = host.open(NODE)?;
        let os = |during| move |errno| VfioError::Os { during, on: NODE.to_owned(), errno };
        let version = descriptor.ioctl(GET_API_VERSION, Argument::None).map_err(os(GET_API_VERSION.name))?;
        if version != 0 {
            return Err(VfioError::Version { found: version });
        }
        let offered = descriptor
            .ioctl(CHECK_EXTENSION, Argument::Value(iommu_type.number))
            .map_err(os(CHECK_EXTENSION.name))?;
        let no_type =
            |errno| VfioError::NoIommuType { kind: iommu_type.name, errno, remedy: iommu_type.remedy };
        if offered == 0 {
            return Err(no_type(Errno::ENODEV));
        }
        let container = Self { host: host.clone(), descriptor, groups: Mutex::new(Vec::new()) };
        container.join(group)?;
        container.descriptor.ioctl(SET_IOMMU, Argument::Value(iommu_type.number)).map_err(
            |errno| match errno {
                Errno::EPERM => VfioError::UnsafeInterrupts { group },
                errno => no_type(errno),
            },
        )?;
        Ok(container)
    }

    pub(crate) fn descriptor(&self) -> &dyn Descriptor {
        &*self.descriptor
    }

    fn groups(&self) -> MutexGuard<'_, Vec<Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the group of `device`, if it is not a member.
    pub(crate) fn join_group_of(&self, device: &str) -> Result<(), VfioError> {
        let group = self.host.sysfs.group_of(device)?;
        if self.groups().iter().any(|known| known.number == group) {
            return Ok(());
        }
        self.join(group)
    }

    fn join(&self, number: u32) -> Result<(), VfioError> {
        let path = format!("/dev/vfio/{number}");
        let descriptor = self.host.open(&path).map_err(|error| match error.errno() {
            Errno::EBUSY => VfioError::GroupBusy { group: number },
            _ => error,
        })?;
        let os = |during| {
            let on = path.clone();
            move |errno| VfioError::Os { during, on, errno }
        };
        let mut status = GroupStatus { argsz: GroupStatus::BYTES as u32, flags: 0 };
        ioctl_struct(&*descriptor, GROUP_GET_STATUS, &mut status).map_err(os(GROUP_GET_STATUS.name))?;
        if status.flags & GROUP_VIABLE == 0 {
            return Err(VfioError::NotViable {
                group: number,
                others: self.host.sysfs.foreign_drivers_of(number),
            });
        }
        if status.flags & GROUP_HAS_CONTAINER != 0 {
            return Err(VfioError::InContainer { group: number, errno: Errno::EBUSY });
        }
        let container = Argument::Descriptor(self.descriptor.number());
        descriptor.ioctl(GROUP_SET_CONTAINER, container).map_err(|errno| match errno {
            Errno::EINVAL | Errno::EBUSY => VfioError::InContainer { group: number, errno },
            // Once the container has an IOMMU driver, that driver can refuse too.
            Errno::EPERM => VfioError::UnsafeInterrupts { group: number },
            errno => os(GROUP_SET_CONTAINER.name)(errno),
        })?;
        self.groups().push(Group { number, descriptor });
        Ok(())
    }

    /// Removes the group of `device`. The last group stays while bytes are `registered`.
    pub(crate) fn leave_group_of(&self, device: &str, registered: u64) -> Result<(), VfioError> {
        let number = self.host.sysfs.group_of(device)?;
        let mut groups = self.groups();
        let Some(index) = groups.iter().position(|group| group.number == number) else { return Ok(()) };
        if groups.len() == 1 && registered > 0 {
            let what = format!("IOMMU group {number}, the last one of its container,");
            return Err(VfioError::MemoryRegistered { what, bytes: registered });
        }
        groups[index].descriptor.ioctl(GROUP_UNSET_CONTAINER, Argument::None).map_err(
            |errno| match errno {
                Errno::EBUSY => VfioError::DeviceBusy { device: device.to_owned(), errno },
                errno => VfioError::Os {
                    during: GROUP_UNSET_CONTAINER.name,
                    on: format!("/dev/vfio/{number}"),
                    errno,
                },
            },
        )?;
        groups.swap_remove(index);
        Ok(())
    }

    /// Opens a device of a member group.
    pub(crate) fn device(&self, device: &str) -> Result<VfioDevice, VfioError> {
        let number = self.host.sysfs.group_of(device)?;
        let groups = self.groups();
        let Some(group) = groups.iter().find(|group| group.number == number) else {
            return Err(VfioError::NoDevice { device: device.to_owned() });
        };
        let name = CString::new(device).map_err(|_| VfioError::NoDevice { device: device.to_owned() })?;
        let descriptor = group.descriptor.ioctl_fd(GROUP_GET_DEVICE_FD, Argument::Text(&name)).map_err(
            |errno| match errno {
                Errno::EBUSY => VfioError::DeviceBusy { device: device.to_owned(), errno },
                errno => VfioError::Os { during: GROUP_GET_DEVICE_FD.name, on: device.to_owned(), errno },
            },
        )?;
        VfioDevice::new(device, descriptor)
    }

    /// The numbers of the member groups.
    pub(crate) fn group_numbers(&self) -> Vec<u32> {
        self.groups().iter().map(|group| group.number).collect()
    }
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("groups", &self.group_numbers()).finish_non_exhaustive()
    }
}
