//! Unchecked access to a SPAPR container, to compare the kernel's results with the back end's.

use std::fmt;

use prereg::{Access, BusAddr, Errno};

use super::window::WindowSet;
use crate::memory::GuestMemory;
use crate::vfio::container::{Container, SPAPR_TCE_V2};
use crate::vfio::error::VfioError;
use crate::vfio::host::VfioHost;
use crate::vfio::kernel::{
    IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, Request, SPAPR_REGISTER_MEMORY, SPAPR_UNREGISTER_MEMORY, ioctl_struct,
};
use crate::vfio::uapi::{MapDma, RegisterMemory, UapiStruct, UnmapDma};

/// A SPAPR TCE v2 container without the back end's checks: results are the kernel's.
///
/// When mapped memory is unregistered, current kernels forget the region: its pages stay pinned and charged until the
/// process ends, and some of them beyond that. Use small memory.
pub struct RawSpaprContainer {
    windows: WindowSet,
}

impl RawSpaprContainer {
    /// A container with the group of `device` in it, which must not be open elsewhere.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn open(host: &VfioHost, device: &str) -> Result<Self, VfioError> {
        Ok(Self { windows: WindowSet::new(Container::open(host, device, SPAPR_TCE_V2)?)? })
    }

    fn ioctl<T: UapiStruct>(&self, request: Request, mut value: T) -> Result<i32, Errno> {
        ioctl_struct(self.windows.container().descriptor(), request, &mut value)
    }

    /// Registers all of `memory`.
    ///
    /// # Errors
    /// The kernel's errno. A positive result is not an error for the kernel.
    pub fn register(&self, memory: &GuestMemory) -> Result<i32, Errno> {
        self.ioctl(SPAPR_REGISTER_MEMORY, shape(memory))
    }

    /// Unregisters all of `memory`.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn unregister(&self, memory: &GuestMemory) -> Result<i32, Errno> {
        self.ioctl(SPAPR_UNREGISTER_MEMORY, shape(memory))
    }

    /// Maps the first `bytes` of `memory` at `ioba`.
    ///
    /// # Errors
    /// The kernel's errno. ERANGE, without a system call, for a range outside of the default window or of the memory:
    /// the kernel does not check the end of the range and would write past its table.
    pub fn map(&self, memory: &GuestMemory, ioba: BusAddr, bytes: u64, access: Access) -> Result<i32, Errno> {
        if bytes > memory.bytes() {
            return Err(Errno::ERANGE);
        }
        self.in_window(ioba, bytes)?;
        let map = MapDma {
            argsz: MapDma::BYTES as u32,
            flags: access.bits() as u32,
            vaddr: memory.ua().raw(),
            iova: ioba.raw(),
            size: bytes,
        };
        self.ioctl(IOMMU_MAP_DMA, map)
    }

    /// Empties the entries of `bytes` bytes from `ioba` on.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn unmap(&self, ioba: BusAddr, bytes: u64) -> Result<i32, Errno> {
        self.in_window(ioba, bytes)?;
        let unmap = UnmapDma { argsz: UnmapDma::BYTES as u32, flags: 0, iova: ioba.raw(), size: bytes };
        self.ioctl(IOMMU_UNMAP_DMA, unmap)
    }

    /// The last page of the window is excluded, so that a misaligned range ends inside too.
    fn in_window(&self, ioba: BusAddr, bytes: u64) -> Result<(), Errno> {
        let limits = self.windows.limits();
        let end = ioba.raw().checked_add(bytes);
        let last = limits.default_start.raw() + limits.default_bytes.saturating_sub(1 << 16);
        let inside = ioba >= limits.default_start && end.is_some_and(|end| end <= last);
        if inside { Ok(()) } else { Err(Errno::ERANGE) }
    }
}

fn shape(memory: &GuestMemory) -> RegisterMemory {
    RegisterMemory {
        argsz: RegisterMemory::BYTES as u32,
        flags: 0,
        vaddr: memory.ua().raw(),
        size: memory.bytes(),
    }
}

impl fmt::Debug for RawSpaprContainer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawSpaprContainer").field(&self.windows).finish()
    }
}
