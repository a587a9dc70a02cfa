//! The kernel's containers, asked for what the `VfioOps` trait has no call for: mapping for reading only, and by descriptor;
//! and the error numbers they return.
//!
//! Found as `VfioDevice` finds them, by `VfioOps::as_any`. iommufd needs the feature `vfio-cdev`.

use std::any::Any;
use std::error::Error;
use std::io;
use std::mem::size_of;
use std::os::fd::BorrowedFd;

use prereg::{Access, Errno, Iova, UserAddr};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_TYPE, vfio_iommu_type1_dma_map,
};
use vfio_ioctls::{VfioContainer, VfioError};
use vmm_sys_util::errno::Error as SysError;
use vmm_sys_util::ioctl::{_IOC_NONE, ioctl_expr, ioctl_with_ref};

/// `_IO(VFIO_TYPE, VFIO_BASE + 13)`: VFIO encodes no direction and no size.
const VFIO_IOMMU_MAP_DMA: std::ffi::c_ulong = ioctl_expr(_IOC_NONE, VFIO_TYPE as u32, VFIO_BASE + 13, 0);

/// Whether mappings outlast the container's devices.
#[cfg(feature = "vfio-cdev")]
pub(super) fn keeps_mappings(container: &dyn Any) -> bool {
    container.is::<vfio_ioctls::VfioIommufd>()
}

/// Whether mappings outlast the container's devices: not known without iommufd support.
#[cfg(not(feature = "vfio-cdev"))]
pub(super) fn keeps_mappings(_container: &dyn Any) -> bool {
    false
}

/// Maps memory as `access` says.
///
/// # Safety
/// As `VfioOps::vfio_dma_map`.
#[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
pub(super) unsafe fn map(
    container: &dyn Any,
    iova: Iova,
    ua: UserAddr,
    bytes: u64,
    access: Access,
) -> Result<(), Errno> {
    #[cfg(feature = "vfio-cdev")]
    if let Some(container) = container.downcast_ref::<vfio_ioctls::VfioIommufd>() {
        return iommufd::map(container, iova, ua, bytes, access);
    }
    let Some(container) = container.downcast_ref::<VfioContainer>() else {
        // Another `VfioOps` can only map for reading and writing, which is more than was asked for.
        return Err(Errno::EOPNOTSUPP);
    };
    let reads = if access.reads() { VFIO_DMA_MAP_FLAG_READ } else { 0 };
    let writes = if access.writes() { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
    let request = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: reads | writes,
        vaddr: ua.raw(),
        iova: iova.raw(),
        size: bytes,
    };
    // SAFETY: the descriptor is a VFIO container's, the request is the one that the number names, and the caller has promised
    // what mapping asks for.
    match unsafe { ioctl_with_ref(container, VFIO_IOMMU_MAP_DMA, &request) } {
        0 => Ok(()),
        _ => Err(Errno::from_raw(SysError::last().errno())),
    }
}

/// Maps a part of a file.
pub(super) fn map_file(
    container: &dyn Any,
    iova: Iova,
    file: BorrowedFd<'_>,
    offset: u64,
    bytes: u64,
    access: Access,
) -> Result<(), Errno> {
    #[cfg(feature = "vfio-cdev")]
    if let Some(container) = container.downcast_ref::<vfio_ioctls::VfioIommufd>() {
        return iommufd::map_file(container, iova, file, offset, bytes, access);
    }
    // VFIO containers map user addresses only.
    let _ = (container, iova, file, offset, bytes, access);
    Err(Errno::EOPNOTSUPP)
}

/// The system's error number, from wherever in the error it is; EIO when there is none.
pub(super) fn errno_of(error: &VfioError) -> Errno {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<SysError>() {
            return Errno::from_raw(error.errno());
        }
        if let Some(number) = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Errno::from_raw(number);
        }
        source = error.source();
    }
    Errno::EIO
}

#[cfg(feature = "vfio-cdev")]
mod iommufd {
    use std::os::fd::{AsRawFd, BorrowedFd};

    use iommufd_bindings::{
        iommu_ioas_map, iommu_ioas_map_file, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
        iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
        iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
    };
    use prereg::{Access, Errno, Iova, UserAddr};
    use vfio_ioctls::{VfioError, VfioIommufd};

    use super::{errno_of, size_of};

    fn flags(access: Access) -> u32 {
        let reads = if access.reads() { READABLE } else { 0 };
        let writes = if access.writes() { WRITEABLE } else { 0 };
        FIXED_IOVA | reads | writes
    }

    pub(super) fn map(
        container: &VfioIommufd,
        iova: Iova,
        ua: UserAddr,
        bytes: u64,
        access: Access,
    ) -> Result<(), Errno> {
        let request = iommu_ioas_map {
            size: size_of::<iommu_ioas_map>() as u32,
            flags: flags(access),
            ioas_id: container.ioas().id(),
            __reserved: 0,
            user_va: ua.raw(),
            length: bytes,
            iova: iova.raw(),
        };
        let result = container.iommufd().map_iommu_ioas(&request);
        result.map_err(|error| errno_of(&VfioError::IommufdIoctlError(error)))
    }

    pub(super) fn map_file(
        container: &VfioIommufd,
        iova: Iova,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<(), Errno> {
        let request = iommu_ioas_map_file {
            size: size_of::<iommu_ioas_map_file>() as u32,
            flags: flags(access),
            ioas_id: container.ioas().id(),
            fd: file.as_raw_fd(),
            start: offset,
            length: bytes,
            iova: iova.raw(),
        };
        let result = container.iommufd().map_iommu_ioas_file(&request);
        result.map_err(|error| errno_of(&VfioError::IommufdIoctlError(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_number_is_found_at_any_depth() {
        assert_eq!(errno_of(&VfioError::IommuDmaMap(SysError::new(12))), Errno::ENOMEM);
        assert_eq!(errno_of(&VfioError::OpenContainer(io::Error::from_raw_os_error(13))), Errno::EACCES);
        assert_eq!(errno_of(&VfioError::VfioInvalidType), Errno::EIO);
    }
}
