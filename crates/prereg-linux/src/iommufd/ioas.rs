//! The staging IOAS, the device IOAS and the attached devices. Numbers here are the kernel's object IDs.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prereg::{Errno, Iova};

use crate::vfio::device::VfioDevice;
use crate::vfio::error::VfioError;
use crate::vfio::host::VfioHost;
use crate::vfio::iova::IovaRange;
use crate::vfio::kernel::{
    Argument, DEVICE_ATTACH_IOMMUFD_PT, DEVICE_BIND_IOMMUFD, DEVICE_DETACH_IOMMUFD_PT, Descriptor,
    HWPT_ALLOC, IOAS_ALLOC, IOAS_COPY, IOAS_IOVA_RANGES, IOAS_MAP, IOAS_UNMAP, ioctl_struct, ioctl_zero,
};
use crate::vfio::uapi::{
    AttachPt, BindIommufd, DetachPt, HwptAlloc, IOAS_FIXED, IOAS_READABLE, IOAS_WRITEABLE, IoasAlloc,
    IoasCopy, IoasIovaRanges, IoasMap, IoasUnmap, UapiStruct,
};

const NODE: &str = "/dev/iommu";
/// Access of devices to memory that is mapped for them.
const BOTH: u32 = IOAS_READABLE | IOAS_WRITEABLE;

/// Limits on mappings for the devices attached now.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct IommufdLimits {
    /// Allowed I/O addresses, first and last byte of each range.
    pub ranges: Vec<(Iova, Iova)>,
    /// Required alignment of I/O addresses and lengths, in bytes.
    pub alignment: u64,
}

impl IommufdLimits {
    pub(super) fn raw_ranges(&self) -> Vec<(u64, u64)> {
        self.ranges.iter().map(|(first, last)| (first.raw(), last.raw())).collect()
    }
}

/// An open iommufd with its two I/O address spaces.
pub(super) struct IoasPair {
    host: VfioHost,
    descriptor: Arc<dyn Descriptor>,
    staging: u32,
    device: u32,
    staging_hwpt: AtomicBool,
}

/// A device attached to the device IOAS.
pub(super) struct Attached {
    pub(super) device: Arc<VfioDevice>,
    /// The kernel's device ID.
    pub(super) id: u32,
}

/// Attached devices.
#[derive(Default)]
pub(super) struct Devices {
    list: Mutex<Vec<Attached>>,
    /// Detached devices and their IDs, while they stay open.
    detached: Mutex<Vec<(Weak<VfioDevice>, u32)>>,
}

fn os(during: &'static str, on: &str) -> impl FnOnce(Errno) -> VfioError {
    let on = on.to_owned();
    move |errno| VfioError::Os { during, on, errno }
}

impl IoasPair {
    pub(super) fn open(host: &VfioHost) -> Result<Self, VfioError> {
        let descriptor = host.open(NODE)?;
        let make = || {
            let mut alloc = IoasAlloc { size: IoasAlloc::BYTES as u32, ..IoasAlloc::default() };
            ioctl_struct(&*descriptor, IOAS_ALLOC, &mut alloc).map_err(os(IOAS_ALLOC.name, NODE))?;
            Ok(alloc.out_ioas_id)
        };
        let (staging, device) = (make()?, make()?);
        Ok(Self { host: host.clone(), descriptor, staging, device, staging_hwpt: AtomicBool::new(false) })
    }

    pub(super) const fn host(&self) -> &VfioHost {
        &self.host
    }

    /// Whether the staging IOAS has a page table, without which it does not pin.
    pub(super) fn has_staging_hwpt(&self) -> bool {
        // Relaxed: set once, before anything is mapped.
        self.staging_hwpt.load(Ordering::Relaxed)
    }

    /// Opens a device by its own node, binds it and attaches it to the device IOAS.
    pub(super) fn open_device(&self, host: &VfioHost, device: &str) -> Result<Attached, VfioError> {
        host.sysfs.group_of(device)?;
        let node = host.sysfs.node_of(device).ok_or_else(|| VfioError::Missing {
            path: format!("/sys/bus/pci/devices/{device}/vfio-dev"),
            errno: Errno::ENOENT,
            remedy: "use a kernel with CONFIG_VFIO_DEVICE_CDEV (6.6 or newer)",
        })?;
        let descriptor = host.open(&format!("/dev/vfio/devices/{node}"))?;
        let mut bind = BindIommufd {
            argsz: BindIommufd::BYTES as u32,
            iommufd: self.descriptor.number(),
            ..BindIommufd::default()
        };
        ioctl_struct(&*descriptor, DEVICE_BIND_IOMMUFD, &mut bind).map_err(|errno| match errno {
            Errno::EBUSY | Errno::EINVAL => VfioError::DeviceBusy { device: device.to_owned(), errno },
            errno => os(DEVICE_BIND_IOMMUFD.name, device)(errno),
        })?;
        self.attach(&*descriptor, device)?;
        let device = VfioDevice::new(device, descriptor)?;
        Ok(Attached { device: Arc::new(device), id: bind.out_devid })
    }

    /// Attaches a bound device to the device IOAS.
    fn attach(&self, descriptor: &dyn Descriptor, device: &str) -> Result<(), VfioError> {
        let mut attach =
            AttachPt { argsz: AttachPt::BYTES as u32, pt_id: self.device, ..AttachPt::default() };
        ioctl_struct(descriptor, DEVICE_ATTACH_IOMMUFD_PT, &mut attach)
            .map(drop)
            .map_err(os(DEVICE_ATTACH_IOMMUFD_PT.name, device))
    }

    /// Attaches a detached device that is still open.
    pub(super) fn reattach(&self, detached: Attached) -> Result<Attached, VfioError> {
        self.attach(&**detached.device.descriptor(), detached.device.name())?;
        Ok(detached)
    }

    /// Allocates a page table for the staging IOAS, of the kind that device `id` uses. It is not an error if the kernel
    /// cannot.
    pub(super) fn alloc_staging_hwpt(&self, id: u32) -> Result<(), VfioError> {
        let mut alloc = HwptAlloc {
            size: HwptAlloc::BYTES as u32,
            dev_id: id,
            pt_id: self.staging,
            ..HwptAlloc::default()
        };
        match ioctl_struct(&*self.descriptor, HWPT_ALLOC, &mut alloc) {
            Ok(_) => {
                // Relaxed: see `has_staging_hwpt`.
                self.staging_hwpt.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(Errno::ENOTTY | Errno::EOPNOTSUPP) => Ok(()),
            Err(errno) => Err(os(HWPT_ALLOC.name, NODE)(errno)),
        }
    }

    /// Limits of the device IOAS.
    pub(super) fn limits(&self) -> Result<IommufdLimits, VfioError> {
        const MOST: u32 = 4096;
        let mut room = 32u32;
        loop {
            let mut list = vec![0; room as usize * 2];
            let ask = IoasIovaRanges {
                size: IoasIovaRanges::BYTES as u32,
                ioas_id: self.device,
                num_iovas: room,
                ..IoasIovaRanges::default()
            };
            let mut bytes = [0; IoasIovaRanges::BYTES];
            ask.write(&mut bytes);
            let result = self.descriptor.ioctl(
                IOAS_IOVA_RANGES,
                Argument::StructWithList { bytes: &mut bytes, at: 16, list: &mut list },
            );
            let reply = IoasIovaRanges::read(&bytes);
            match result {
                Ok(_) if reply.num_iovas <= room => {
                    list.truncate(reply.num_iovas as usize * 2);
                    let ranges = list.chunks_exact(2).filter(|pair| pair[0] <= pair[1]);
                    let ranges = ranges.map(|pair| (Iova::new(pair[0]), Iova::new(pair[1]))).collect();
                    let alignment = reply.out_iova_alignment.max(1);
                    if !alignment.is_power_of_two() {
                        return Err(VfioError::BadReply { during: IOAS_IOVA_RANGES.name });
                    }
                    return Ok(IommufdLimits { ranges, alignment });
                }
                // EMSGSIZE: `num_iovas` is the required room.
                Ok(_) | Err(_) if reply.num_iovas > room && reply.num_iovas <= MOST => {
                    room = reply.num_iovas;
                }
                Ok(_) => return Err(VfioError::BadReply { during: IOAS_IOVA_RANGES.name }),
                Err(errno) => return Err(os(IOAS_IOVA_RANGES.name, NODE)(errno)),
            }
        }
    }

    /// Maps memory into the staging IOAS.
    pub(super) fn map_staging(&self, ua: u64, piece: IovaRange) -> Result<(), Errno> {
        let mut map = IoasMap {
            size: IoasMap::BYTES as u32,
            flags: IOAS_FIXED | BOTH,
            ioas_id: self.staging,
            user_va: ua,
            length: piece.bytes,
            iova: piece.iova,
            ..IoasMap::default()
        };
        ioctl_zero(&*self.descriptor, IOAS_MAP, &mut map)
    }

    /// Copies the mapping at `from` in the staging IOAS to the device IOAS.
    pub(super) fn copy_to_device(&self, from: u64, to: IovaRange) -> Result<(), Errno> {
        self.copy_with_access(from, to, BOTH)
    }

    /// [`copy_to_device`](Self::copy_to_device) with the access of devices: `IOAS_READABLE`, `IOAS_WRITEABLE`.
    pub(super) fn copy_with_access(&self, from: u64, to: IovaRange, may: u32) -> Result<(), Errno> {
        let mut copy = IoasCopy {
            size: IoasCopy::BYTES as u32,
            flags: IOAS_FIXED | may,
            dst_ioas_id: self.device,
            src_ioas_id: self.staging,
            length: to.bytes,
            dst_iova: to.iova,
            src_iova: from,
        };
        ioctl_zero(&*self.descriptor, IOAS_COPY, &mut copy)
    }

    /// Unmaps from the device IOAS; `false` unless the kernel confirms the whole length.
    pub(super) fn unmap_device(&self, piece: IovaRange) -> bool {
        self.unmap(self.device, piece)
    }

    /// Unmaps from the staging IOAS; `false` unless the kernel confirms the whole length.
    pub(super) fn unmap_staging(&self, piece: IovaRange) -> bool {
        self.unmap(self.staging, piece)
    }

    fn unmap(&self, ioas_id: u32, piece: IovaRange) -> bool {
        let mut unmap =
            IoasUnmap { size: IoasUnmap::BYTES as u32, ioas_id, iova: piece.iova, length: piece.bytes };
        let result = ioctl_struct(&*self.descriptor, IOAS_UNMAP, &mut unmap);
        result == Ok(0) && unmap.length == piece.bytes
    }
}

impl Attached {
    fn detach(&self) -> Result<(), VfioError> {
        let mut detach = DetachPt { argsz: DetachPt::BYTES as u32, flags: 0 };
        ioctl_struct(&**self.device.descriptor(), DEVICE_DETACH_IOMMUFD_PT, &mut detach)
            .map(drop)
            .map_err(os(DEVICE_DETACH_IOMMUFD_PT.name, self.device.name()))
    }
}

impl Devices {
    fn list(&self) -> MutexGuard<'_, Vec<Attached>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, attached: Attached) {
        self.list().push(attached);
    }

    pub(super) fn find(&self, device: &str) -> Option<Arc<VfioDevice>> {
        self.list().iter().find(|one| one.device.name() == device).map(|one| Arc::clone(&one.device))
    }

    /// Detaches a device from the device IOAS. The caller's handles keep it open, without access to memory.
    pub(super) fn detach(&self, device: &str) -> Result<(), VfioError> {
        let mut list = self.list();
        let Some(index) = list.iter().position(|one| one.device.name() == device) else {
            return Err(VfioError::NoDevice { device: device.to_owned() });
        };
        list[index].detach()?;
        let detached = list.swap_remove(index);
        let mut kept = self.detached.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(device, _)| device.strong_count() > 0);
        kept.push((Arc::downgrade(&detached.device), detached.id));
        Ok(())
    }

    /// Removes and returns a detached device that is still open.
    pub(super) fn take_detached(&self, device: &str) -> Option<Attached> {
        let mut kept = self.detached.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, device) = kept.iter().enumerate().find_map(|(index, (detached, _))| {
            detached.upgrade().filter(|detached| detached.name() == device).map(|detached| (index, detached))
        })?;
        let (_, id) = kept.swap_remove(index);
        Some(Attached { device, id })
    }

    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.list().len()).unwrap_or(u32::MAX)
    }
}

impl fmt::Debug for IoasPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoasPair")
            .field("staging", &self.staging)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
