//! The port to the kernel: opening nodes, `ioctl(2)` on descriptors, and the request numbers.
//!
//! The back ends use only these two traits, so their tests run on recordings and on a model, on any machine. A request
//! is made with the bytes of its struct, whose first word is its length; the results are the call's return value and
//! the changed bytes.

use std::ffi::CStr;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use prereg::{Errno, PinError, UserRange};

use super::bar::Bar;
use super::uapi::UapiStruct;

/// A request of `linux/vfio.h` or `linux/iommufd.h`: name and number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) name: &'static str,
    number: u8,
}

impl Request {
    const fn new(name: &'static str, number: u8) -> Self {
        Self { name, number }
    }

    /// The number for `ioctl(2)`: type `';'`, size zero, and this architecture's code for "no direction".
    pub(crate) const fn raw(self) -> u32 {
        const NO_DIRECTION: u32 = if cfg!(any(
            target_arch = "powerpc",
            target_arch = "powerpc64",
            target_arch = "mips",
            target_arch = "mips64",
            target_arch = "sparc64"
        )) {
            1 << 29
        } else {
            0
        };
        NO_DIRECTION | (b';' as u32) << 8 | self.number as u32
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! requests {
    ($($name:ident = $number:literal $text:literal;)*) => {
        $(pub(crate) const $name: Request = Request::new($text, $number);)*
        #[cfg(test)]
        pub(crate) const ALL: &[Request] = &[$($name),*];
    };
}

requests! {
    GET_API_VERSION = 100 "VFIO_GET_API_VERSION";
    CHECK_EXTENSION = 101 "VFIO_CHECK_EXTENSION";
    SET_IOMMU = 102 "VFIO_SET_IOMMU";
    GROUP_GET_STATUS = 103 "VFIO_GROUP_GET_STATUS";
    GROUP_SET_CONTAINER = 104 "VFIO_GROUP_SET_CONTAINER";
    GROUP_UNSET_CONTAINER = 105 "VFIO_GROUP_UNSET_CONTAINER";
    GROUP_GET_DEVICE_FD = 106 "VFIO_GROUP_GET_DEVICE_FD";
    DEVICE_GET_INFO = 107 "VFIO_DEVICE_GET_INFO";
    DEVICE_GET_REGION_INFO = 108 "VFIO_DEVICE_GET_REGION_INFO";
    DEVICE_RESET = 111 "VFIO_DEVICE_RESET";
    DEVICE_BIND_IOMMUFD = 118 "VFIO_DEVICE_BIND_IOMMUFD";
    DEVICE_ATTACH_IOMMUFD_PT = 119 "VFIO_DEVICE_ATTACH_IOMMUFD_PT";
    DEVICE_DETACH_IOMMUFD_PT = 120 "VFIO_DEVICE_DETACH_IOMMUFD_PT";
    IOMMU_GET_INFO = 112 "VFIO_IOMMU_GET_INFO";
    IOMMU_MAP_DMA = 113 "VFIO_IOMMU_MAP_DMA";
    IOMMU_UNMAP_DMA = 114 "VFIO_IOMMU_UNMAP_DMA";
    SPAPR_TCE_GET_INFO = 112 "VFIO_IOMMU_SPAPR_TCE_GET_INFO";
    SPAPR_REGISTER_MEMORY = 117 "VFIO_IOMMU_SPAPR_REGISTER_MEMORY";
    SPAPR_UNREGISTER_MEMORY = 118 "VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY";
    SPAPR_TCE_CREATE = 119 "VFIO_IOMMU_SPAPR_TCE_CREATE";
    SPAPR_TCE_REMOVE = 120 "VFIO_IOMMU_SPAPR_TCE_REMOVE";
    IOAS_ALLOC = 0x81 "IOMMU_IOAS_ALLOC";
    IOAS_COPY = 0x83 "IOMMU_IOAS_COPY";
    IOAS_IOVA_RANGES = 0x84 "IOMMU_IOAS_IOVA_RANGES";
    IOAS_MAP = 0x85 "IOMMU_IOAS_MAP";
    IOAS_UNMAP = 0x86 "IOMMU_IOAS_UNMAP";
    HWPT_ALLOC = 0x89 "IOMMU_HWPT_ALLOC";
}

/// The argument of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Argument<'a> {
    /// Nothing.
    None,
    /// A number.
    Value(u64),
    /// A struct. Its first word is the length of the slice.
    Struct(&'a mut [u8]),
    /// The address of a descriptor number.
    Descriptor(i32),
    /// A name.
    Text(&'a CStr),
    /// A struct with the address of a list at byte `at`. The kernel fills as many pairs of words as the struct says.
    StructWithList { bytes: &'a mut [u8], at: usize, list: &'a mut [u64] },
}

/// Opens nodes, and prepares the process's memory for pins.
pub(crate) trait Kernel: Send + Sync + fmt::Debug {
    /// Opens a node for reading and writing.
    fn open(&self, path: &Path) -> Result<Arc<dyn Descriptor>, Errno>;

    /// Faults `range` in, and refuses memory that VFIO would map without pinning.
    fn prefault(&self, range: UserRange) -> Result<(), PinError>;

    /// The error for the first page of `range` that cannot be pinned, after the kernel returned EFAULT.
    fn unpinnable_reason(&self, range: UserRange) -> PinError;
}

/// An open descriptor. Dropping the last reference closes it.
pub(crate) trait Descriptor: Send + Sync + fmt::Debug {
    /// The descriptor number.
    fn number(&self) -> i32;

    /// Calls `ioctl(2)` and returns a result that is not negative.
    fn ioctl(&self, request: Request, argument: Argument<'_>) -> Result<i32, Errno>;

    /// Calls `ioctl(2)` for a request that returns a new descriptor.
    fn ioctl_fd(&self, request: Request, argument: Argument<'_>) -> Result<Arc<dyn Descriptor>, Errno>;

    /// Reads at an offset; the count is short at the end.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno>;

    /// Writes at an offset.
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<usize, Errno>;

    /// Maps device registers.
    fn map(&self, offset: u64, bytes: u64) -> Result<Bar, Errno>;
}

/// Makes a request with a struct and stores the kernel's changes to it.
pub(crate) fn ioctl_struct<T: UapiStruct>(
    descriptor: &dyn Descriptor,
    request: Request,
    value: &mut T,
) -> Result<i32, Errno> {
    let mut buffer = [0; 64];
    let bytes = &mut buffer[..T::BYTES];
    value.write(bytes);
    let result = descriptor.ioctl(request, Argument::Struct(bytes));
    // The kernel may change the struct even when it refuses.
    *value = T::read(bytes);
    result
}

/// [`ioctl_struct`] for requests whose only success is zero: a positive number is EINVAL.
pub(crate) fn ioctl_zero<T: UapiStruct>(
    descriptor: &dyn Descriptor,
    request: Request,
    value: &mut T,
) -> Result<(), Errno> {
    match ioctl_struct(descriptor, request, value)? {
        0 => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_numbered_as_ioctl_takes_them() {
        let none = if cfg!(target_arch = "powerpc64") { 0x2000_0000 } else { 0 };
        assert_eq!(GET_API_VERSION.raw(), none | 0x3b64);
        assert_eq!(IOMMU_MAP_DMA.raw(), none | 0x3b71);
        assert_eq!(IOAS_MAP.raw(), none | 0x3b85);
    }
}
