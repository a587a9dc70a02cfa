//! `VfioOps` of the `vfio-ioctls` crate, with pins and mappings that outlast devices.
//!
//! A VMM that hands `Arc<dyn VfioOps>` around makes its `VfioContainer` or `VfioIommufd` as before, puts a [`PinnedVfio`]
//! around it and hands that around. `VfioDevice::new` finds the container inside. What changes is that devices are opened
//! with [`PinnedVfio::attach`], which counts them: the kernel does not report when a container lost its mappings.
//!
//! `VfioError` has room for an error number only. [`PinnedVfio::mappings`] has the same calls with the reason.

mod kernel;

use std::any::Any;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use prereg::{Access, AddressSpace, Errno, Holder, HolderKind, Iova, OutOfMemory, UserAddr};
use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno::Error as SysError;

use crate::attached::Attached;
use crate::container::DmaContainer;
use crate::dma_mapping::MemoryKind;
use crate::error::DmaMapError;
use crate::persistent_mappings::PersistentMappings;
use kernel::errno_of;

/// A `VfioOps` whose mappings hold their memory pinned, and are made again when the container lost them.
pub struct PinnedVfio {
    mappings: Arc<PersistentMappings>,
    inner: Arc<dyn VfioOps>,
}

impl PinnedVfio {
    /// Puts pins around `inner`, which may be over any kind of container. Its mappings are reported as held by `container`;
    /// 0 for none.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: Arc<AddressSpace>,
        inner: Arc<dyn VfioOps>,
        container: u64,
    ) -> Result<Arc<Self>, OutOfMemory> {
        let holder = Holder { container, kind: HolderKind::TableEntry };
        let mappings = PersistentMappings::new(space, Arc::new(InnerOps(Arc::clone(&inner))), holder)?;
        Ok(Arc::new(Self { mappings: Arc::new(mappings), inner }))
    }

    /// Opens a device, counts it, and makes the mappings again if the container may have lost them. `open` is given what
    /// `VfioDevice::new` takes; it may map, unmap, attach and drop devices.
    ///
    /// # Errors
    /// The error of `open`; [`VfioError::IommuDmaMap`] when the container refused the mappings: the device is closed then.
    pub fn attach<D>(
        self: &Arc<Self>,
        open: impl FnOnce(Arc<dyn VfioOps>) -> Result<D, VfioError>,
    ) -> Result<Attached<D>, VfioError> {
        self.mappings.attach(|| open(Arc::clone(self) as Arc<dyn VfioOps>), |error| map_error(&error))
    }

    /// Maps a device's own memory, a BAR that is mapped in this process, without pinning it.
    /// [`vfio_dma_map`](VfioOps::vfio_dma_map) finds out by itself that it cannot be pinned; this saves the attempt.
    ///
    /// # Errors
    /// [`VfioError::IommuDmaMap`].
    ///
    /// # Safety
    /// As [`vfio_dma_map`](VfioOps::vfio_dma_map).
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    pub unsafe fn map_device(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<(), VfioError> {
        // SAFETY: the caller has promised the same of the memory.
        unsafe { self.map(iova, size, user_addr, MemoryKind::Device) }
    }

    /// The mappings: to map for reading, or by descriptor and offset, and to see why something was refused.
    #[must_use]
    pub fn mappings(&self) -> &Arc<PersistentMappings> {
        &self.mappings
    }

    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    unsafe fn map(
        &self,
        iova: u64,
        size: usize,
        user_addr: *mut u8,
        kind: MemoryKind,
    ) -> Result<(), VfioError> {
        let ua = UserAddr::new(user_addr.expose_provenance() as u64);
        // SAFETY: the caller has promised the same of the memory.
        unsafe { self.mappings.map(Iova::new(iova), ua, size as u64, Access::ReadWrite, kind) }
            .map_err(|error| map_error(&error))
    }
}

impl VfioOps for PinnedVfio {
    /// Maps memory of any kind: what can be pinned is; a BAR, which cannot, is passed to the container as it is; memory that
    /// is read-only in this process is mapped for reading.
    #[expect(unsafe_code, reason = "the trait's; its promise covers what the memory is used for here")]
    unsafe fn vfio_dma_map(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<(), VfioError> {
        // SAFETY: the caller has promised the same of the memory.
        unsafe { self.map(iova, size, user_addr, MemoryKind::Unknown) }
    }

    /// Unmaps what is mapped in the range. As with the kernel's containers, less than `size` is
    /// [`VfioError::InvalidDmaUnmapSize`] and unmapped all the same, and a mapping is never cut.
    fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
        match self.mappings.unmap(Iova::new(iova), size as u64) {
            Ok(unmapped) if unmapped == size as u64 => Ok(()),
            Ok(_) => Err(VfioError::InvalidDmaUnmapSize),
            Err(error) => Err(VfioError::IommuDmaUnmap(SysError::new(error.errno().raw()))),
        }
    }

    /// The container inside, as `VfioDevice` looks for it.
    fn as_any(&self) -> &dyn Any {
        self.inner.as_any()
    }
}

fn map_error(error: &DmaMapError) -> VfioError {
    VfioError::IommuDmaMap(SysError::new(error.errno().raw()))
}

/// The `VfioOps` inside. Its trait has one way to map, for reading and writing by address; the kernel's containers are
/// asked directly for the others.
struct InnerOps(Arc<dyn VfioOps>);

impl DmaContainer for InnerOps {
    #[expect(unsafe_code, reason = "the trait's promise is the one of `vfio_dma_map`")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno> {
        if access != Access::ReadWrite {
            // SAFETY: the caller has promised the same of the memory.
            return unsafe { kernel::map(self.0.as_any(), iova, ua, bytes, access) };
        }
        let size = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        let address = usize::try_from(ua.raw()).map_err(|_| Errno::EINVAL)?;
        let start = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the caller has promised the same of the memory.
        unsafe { self.0.vfio_dma_map(iova.raw(), size, start) }.map_err(|error| errno_of(&error))
    }

    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn map_file(
        &self,
        iova: Iova,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<(), Errno> {
        kernel::map_file(self.0.as_any(), iova, file, offset, bytes, access)
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno> {
        let size = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        match self.0.vfio_dma_unmap(iova.raw(), size) {
            // The container had less there, and has nothing now.
            Ok(()) | Err(VfioError::InvalidDmaUnmapSize) => Ok(()),
            Err(error) => Err(errno_of(&error)),
        }
    }

    fn forgets(&self) -> bool {
        !kernel::keeps_mappings(self.0.as_any())
    }
}

impl fmt::Debug for PinnedVfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedVfio").field("mappings", &self.mappings).finish_non_exhaustive()
    }
}
