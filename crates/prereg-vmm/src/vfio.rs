//! `VfioOps` of the `vfio-ioctls` crate, with pins and mappings that outlast devices.
//!
//! A VMM that hands `Arc<dyn VfioOps>` around makes its `VfioContainer` as before, puts a [`PinnedVfio`] around it and hands
//! that around. `VfioDevice::new` finds the container inside. What it has to do itself is to open devices with
//! [`PinnedVfio::attach`], which counts them: the kernel does not say when a container lost its mappings.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;

use prereg::{Access, AddressSpace, Errno, Holder, HolderKind, Iova, OutOfMemory, UserAddr};
use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno::Error as SysError;

use crate::attached::Attached;
use crate::container::DmaContainer;
use crate::error::KeptError;
use crate::kept::{Gaps, KeptMappings, What};

/// A `VfioOps` whose mappings hold their memory pinned, and come back when the container lost them.
pub struct PinnedVfio {
    kept: Arc<KeptMappings>,
    inner: Arc<dyn VfioOps>,
}

/// The `VfioOps` that really maps.
struct Inner(Arc<dyn VfioOps>);

impl PinnedVfio {
    /// Puts pins around `inner`. `container` is who its mappings are reported as held by; 0 for nobody.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: Arc<AddressSpace>,
        inner: Arc<dyn VfioOps>,
        container: u64,
    ) -> Result<Arc<Self>, OutOfMemory> {
        let holder = Holder { container, kind: HolderKind::TableEntry };
        let kept = KeptMappings::new(space, Arc::new(Inner(Arc::clone(&inner))), holder)?;
        Ok(Arc::new(Self { kept: Arc::new(kept), inner }))
    }

    /// Opens a device, counts it, and puts the mappings into the container if it has lost them. `open` is handed what
    /// `VfioDevice::new` takes.
    ///
    /// # Errors
    /// What `open` says; [`VfioError::IommuDmaMap`] when the mappings could not be put back: the device is closed then.
    pub fn attach<D>(
        self: &Arc<Self>,
        open: impl FnOnce(Arc<dyn VfioOps>) -> Result<D, VfioError>,
    ) -> Result<Attached<D>, VfioError> {
        self.kept.attach(|| open(Arc::clone(self) as Arc<dyn VfioOps>), |error| map_error(&error))
    }

    /// The mappings, and who holds what.
    #[must_use]
    pub fn kept(&self) -> &Arc<KeptMappings> {
        &self.kept
    }
}

impl VfioOps for PinnedVfio {
    #[expect(unsafe_code, reason = "the trait's; its promise covers what the memory is used for here")]
    unsafe fn vfio_dma_map(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<(), VfioError> {
        let ua = UserAddr::new(user_addr.expose_provenance() as u64);
        // SAFETY: the caller has promised the same of the memory.
        unsafe { self.kept.map(Iova::new(iova), ua, size as u64, Access::ReadWrite, What::Ram) }
            .map_err(|error| map_error(&error))
    }

    fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
        match self.kept.unmap(Iova::new(iova), size as u64, Gaps::Refused) {
            Ok(_) => Ok(()),
            Err(KeptError::Gap { .. }) => Err(VfioError::InvalidDmaUnmapSize),
            Err(error) => Err(VfioError::IommuDmaUnmap(SysError::new(error.errno().raw()))),
        }
    }

    /// The container inside, as `VfioDevice` looks for it.
    fn as_any(&self) -> &dyn Any {
        self.inner.as_any()
    }
}

fn map_error(error: &KeptError) -> VfioError {
    VfioError::IommuDmaMap(SysError::new(error.errno().raw()))
}

impl DmaContainer for Inner {
    #[expect(unsafe_code, reason = "the trait's promise is the one of `vfio_dma_map`")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, _access: Access) -> Result<(), Errno> {
        let size = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        let address = usize::try_from(ua.raw()).map_err(|_| Errno::EINVAL)?;
        let start = std::ptr::with_exposed_provenance_mut(address);
        // SAFETY: the caller has promised the same of the memory.
        unsafe { self.0.vfio_dma_map(iova.raw(), size, start) }.map_err(|error| errno_of(&error))
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno> {
        let size = usize::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        match self.0.vfio_dma_unmap(iova.raw(), size) {
            // The container had less there, and has nothing now.
            Ok(()) | Err(VfioError::InvalidDmaUnmapSize) => Ok(()),
            Err(error) => Err(errno_of(&error)),
        }
    }
}

/// The number that the system gave, from wherever in the error it is; EIO when there is none.
fn errno_of(error: &VfioError) -> Errno {
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

impl fmt::Debug for PinnedVfio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedVfio").field("kept", &self.kept).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_number_is_found_wherever_it_is() {
        assert_eq!(errno_of(&VfioError::IommuDmaMap(SysError::new(12))), Errno::ENOMEM);
        assert_eq!(errno_of(&VfioError::OpenContainer(io::Error::from_raw_os_error(13))), Errno::EACCES);
        assert_eq!(errno_of(&VfioError::VfioInvalidType), Errno::EIO);
    }
}
