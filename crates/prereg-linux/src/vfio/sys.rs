//! The port on this machine's kernel: `open`, `ioctl`, `pread`, `pwrite`.
#![expect(unsafe_code, reason = "system calls; every pointer handed over is made from a slice")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use prereg::{Errno, PinError, UserRange};

use super::bar::Bar;
use super::kernel::{Argument, Descriptor, Kernel, Request};
use super::prefault;
use super::uapi::u32_at;
use crate::sys::errno_of;

/// This machine's kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemKernel;

/// An open file.
#[derive(Debug)]
struct FileDescriptor(File);

impl Kernel for SystemKernel {
    fn open(&self, path: &Path) -> Result<Arc<dyn Descriptor>, Errno> {
        let file = File::options().read(true).write(true).open(path).map_err(|error| errno_of(&error))?;
        Ok(Arc::new(FileDescriptor(file)))
    }

    fn prefault(&self, range: UserRange) -> Result<(), PinError> {
        prefault::prefault(range)
    }

    fn unpinnable_reason(&self, range: UserRange) -> PinError {
        prefault::unpinnable_reason(range)
    }
}

/// Uses a descriptor that the caller opened.
pub(crate) fn wrap_fd(descriptor: OwnedFd) -> Arc<dyn Descriptor> {
    Arc::new(FileDescriptor(File::from(descriptor)))
}

/// One `ioctl(2)` with a number or an address.
fn call(descriptor: RawFd, request: Request, argument: u64) -> Result<i32, Errno> {
    let number = request.raw();
    // SAFETY: `ioctl` makes every address from a slice that lives through the call and is as long as its first word
    // says (or is only read). The kernel does not write memory that a struct names by address, except the list of
    // `Argument::StructWithList`, whose length is in the struct.
    let result = unsafe { libc::ioctl(descriptor, number as _, argument as libc::c_ulong) };
    if result < 0 { Err(errno_of(&std::io::Error::last_os_error())) } else { Ok(result) }
}

impl Descriptor for FileDescriptor {
    fn number(&self) -> i32 {
        self.0.as_raw_fd()
    }

    fn ioctl(&self, request: Request, argument: Argument<'_>) -> Result<i32, Errno> {
        let fd = self.0.as_raw_fd();
        let says_its_length =
            |bytes: &[u8]| u32_at(bytes, 0).is_some_and(|said| said as usize == bytes.len());
        match argument {
            Argument::None => call(fd, request, 0),
            Argument::Value(value) => call(fd, request, value),
            Argument::Struct(bytes) if says_its_length(bytes) => {
                call(fd, request, bytes.as_mut_ptr().expose_provenance() as u64)
            }
            Argument::Descriptor(number) => call(fd, request, (&raw const number).expose_provenance() as u64),
            Argument::Text(text) => call(fd, request, text.as_ptr().expose_provenance() as u64),
            Argument::StructWithList { bytes, at, list } if says_its_length(bytes) => {
                // The struct's third word is the room of the list in pairs.
                let pairs = u32_at(bytes, 8).ok_or(Errno::EINVAL)? as usize;
                let word = bytes.get_mut(at..at + 8).ok_or(Errno::EINVAL)?;
                if pairs * 2 > list.len() {
                    return Err(Errno::EINVAL);
                }
                word.copy_from_slice(&(list.as_mut_ptr().expose_provenance() as u64).to_ne_bytes());
                call(fd, request, bytes.as_mut_ptr().expose_provenance() as u64)
            }
            Argument::Struct(_) | Argument::StructWithList { .. } => Err(Errno::EINVAL),
        }
    }

    fn ioctl_fd(&self, request: Request, argument: Argument<'_>) -> Result<Arc<dyn Descriptor>, Errno> {
        let number = self.ioctl(request, argument)?;
        // SAFETY: the kernel has just returned this descriptor, which has no other owner.
        let file = unsafe { File::from_raw_fd(number) };
        Ok(Arc::new(FileDescriptor(file)))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.0.read_at(into, offset).map_err(|error| errno_of(&error))
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.0.write_at(from, offset).map_err(|error| errno_of(&error))
    }

    fn map(&self, offset: u64, bytes: u64) -> Result<Bar, Errno> {
        Bar::map(self.0.as_fd(), offset, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::{CHECK_EXTENSION, GET_API_VERSION, IOAS_IOVA_RANGES, IOMMU_MAP_DMA};
    use super::*;

    #[test]
    fn a_descriptor_that_is_no_container_says_enotty() {
        let open = SystemKernel.open(Path::new("/dev/null")).unwrap();
        assert!(open.number() >= 0);
        assert_eq!(open.ioctl(GET_API_VERSION, Argument::None), Err(Errno::ENOTTY));
        assert_eq!(open.ioctl(CHECK_EXTENSION, Argument::Value(3)), Err(Errno::ENOTTY));
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&8u32.to_ne_bytes());
        assert_eq!(open.ioctl(IOMMU_MAP_DMA, Argument::Struct(&mut bytes)), Err(Errno::ENOTTY));
        assert_eq!(open.ioctl_fd(GET_API_VERSION, Argument::Text(c"x")).unwrap_err(), Errno::ENOTTY);
        assert_eq!(SystemKernel.open(Path::new("/dev/no-such-node")).unwrap_err(), Errno::ENOENT);
    }

    #[test]
    fn a_struct_that_lies_about_its_length_is_not_asked() {
        let open = SystemKernel.open(Path::new("/dev/null")).unwrap();
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&9u32.to_ne_bytes());
        assert_eq!(open.ioctl(IOMMU_MAP_DMA, Argument::Struct(&mut bytes)), Err(Errno::EINVAL));
        assert_eq!(open.ioctl(IOMMU_MAP_DMA, Argument::Struct(&mut [1, 0])), Err(Errno::EINVAL));
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&32u32.to_ne_bytes());
        bytes[8..12].copy_from_slice(&2u32.to_ne_bytes());
        for (room, errno) in [(3, Errno::EINVAL), (4, Errno::ENOTTY)] {
            let mut list = vec![0; room];
            let argument = Argument::StructWithList { bytes: &mut bytes, at: 16, list: &mut list };
            assert_eq!(open.ioctl(IOAS_IOVA_RANGES, argument), Err(errno));
        }
    }
}
