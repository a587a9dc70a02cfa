//! The port to the IOMMU container that maps memory for a device.

use std::os::fd::BorrowedFd;

use prereg::{Access, Errno, Iova, UserAddr};

/// An IOMMU container: a VFIO type1 or SPAPR container, an iommufd address space, a vfio-user client, a device model.
///
/// Called with the lock of the mappings held, one call at a time. An implementation must not call back into them.
pub trait DmaContainer: Send + Sync {
    /// Lets the device reach `bytes` bytes of memory at `ua` through the addresses from `iova` on.
    ///
    /// # Errors
    /// The system's error number; then nothing of it is mapped. EEXIST when something is mapped in the range already.
    ///
    /// # Safety
    /// Until [`unmap`](Self::unmap) of the same range has succeeded, the memory stays mapped and the same memory, and no Rust
    /// reference into it exists.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno>;

    /// Lets the device reach `bytes` bytes of `file` from `offset` on, as IOMMU_IOAS_MAP_FILE does. The container keeps its
    /// own reference to the file.
    ///
    /// # Errors
    /// As [`map`](Self::map). Unless implemented, EOPNOTSUPP: VFIO containers map user addresses only.
    ///
    /// # Safety
    /// No Rust reference into that memory exists, through whatever mapping of the file, until [`unmap`](Self::unmap) of the
    /// same range has succeeded.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    unsafe fn map_file(
        &self,
        _iova: Iova,
        _file: BorrowedFd<'_>,
        _offset: u64,
        _bytes: u64,
        _access: Access,
    ) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Removes one mapping, exactly as it was made. When this succeeds the device cannot reach the memory any more.
    ///
    /// # Errors
    /// ENOENT when nothing was mapped there, which counts as removed. Any other number says that the device may still reach
    /// the memory; but EINVAL from a container without devices that [`forgets`](Self::forgets) says that it has no IOMMU and
    /// so no mappings, as in the kernel.
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno>;

    /// Whether the container may lose its mappings when its last device leaves, as VFIO type1 and SPAPR containers do. An
    /// iommufd address space keeps them.
    ///
    /// `true` is safe for every container: mappings are then made again for the next device, where EEXIST says that one was
    /// kept, and an unmap without devices still asks the container. `false` lets maps reach the container without devices.
    fn forgets(&self) -> bool {
        true
    }
}
