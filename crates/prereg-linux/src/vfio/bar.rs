//! Device registers, mapped. Every access is volatile, of one size, and checked against the region's end.
#![expect(unsafe_code, reason = "maps registers of a device and reads and writes them")]

use std::os::fd::RawFd;
use std::ptr::NonNull;

use prereg::Errno;

/// A mapped region of device registers. Dropping it unmaps.
///
/// Registers are read and written in the machine's own byte order, each in one access.
#[derive(Debug)]
pub struct Bar {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the registers belong to the device; accesses are volatile, and what order they have is the caller's matter.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps `bytes` of `descriptor` from `offset` on.
    pub(super) fn map(descriptor: RawFd, offset: u64, bytes: u64) -> Result<Self, Errno> {
        let length = usize::try_from(bytes).ok().filter(|&length| length != 0).ok_or(Errno::EINVAL)?;
        let offset = libc::off64_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap64(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, descriptor, offset)
        };
        if start == libc::MAP_FAILED {
            return Err(crate::sys::errno_of(&std::io::Error::last_os_error()));
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::EFAULT)?;
        Ok(Self { start, bytes: length })
    }

    /// The length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// The first register. Valid while this lives; the device may change what stands there at any time.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Where an aligned register of `size` bytes at `offset` stands.
    fn register(&self, offset: u64, size: usize) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(size)?;
        if end > self.bytes || offset % size != 0 {
            return None;
        }
        // SAFETY: `offset` was just seen to lie inside the mapping.
        Some(unsafe { self.start.add(offset) })
    }

    /// Reads a register of 4 bytes; `None` when it is not aligned or lies outside.
    #[must_use]
    pub fn read_u32(&self, offset: u64) -> Option<u32> {
        let register = self.register(offset, 4)?.cast::<u32>();
        // SAFETY: aligned and inside the mapping, which lives as long as `self`.
        Some(unsafe { register.read_volatile() })
    }

    /// Reads a register of 8 bytes; `None` when it is not aligned or lies outside.
    #[must_use]
    pub fn read_u64(&self, offset: u64) -> Option<u64> {
        let register = self.register(offset, 8)?.cast::<u64>();
        // SAFETY: as in `read_u32`.
        Some(unsafe { register.read_volatile() })
    }

    /// Writes a register of 4 bytes; `None` when it is not aligned or lies outside.
    pub fn write_u32(&self, offset: u64, value: u32) -> Option<()> {
        let register = self.register(offset, 4)?.cast::<u32>();
        // SAFETY: as in `read_u32`.
        unsafe { register.write_volatile(value) };
        Some(())
    }

    /// Writes a register of 8 bytes; `None` when it is not aligned or lies outside.
    pub fn write_u64(&self, offset: u64, value: u64) -> Option<()> {
        let register = self.register(offset, 8)?.cast::<u64>();
        // SAFETY: as in `read_u32`.
        unsafe { register.write_volatile(value) };
        Some(())
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping made above, whole, which nobody else unmaps.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMemory;
    use std::os::fd::AsRawFd;

    #[test]
    fn registers_are_reached_aligned_and_inside_only() {
        let memory = GuestMemory::memfd("registers", 1 << 16).unwrap();
        let file = memory.descriptor().unwrap().as_raw_fd();
        let bar = Bar::map(file, 0, 1 << 16).unwrap();
        bar.write_u32(8, 0x1234_5678).unwrap();
        bar.write_u64(16, 0xaabb_ccdd_0011_2233).unwrap();
        assert_eq!((bar.read_u32(8), bar.read_u64(16)), (Some(0x1234_5678), Some(0xaabb_ccdd_0011_2233)));
        let mut seen = [0; 4];
        memory.read(8, &mut seen).unwrap();
        assert_eq!(u32::from_ne_bytes(seen), 0x1234_5678);
        for outside in [2, (1 << 16) - 2, 1 << 16, u64::MAX, u64::MAX - 3] {
            assert_eq!(bar.read_u32(outside), None, "{outside:#x}");
            assert_eq!(bar.write_u32(outside, 0), None, "{outside:#x}");
        }
        assert_eq!((bar.read_u64(4), bar.write_u64((1 << 16) - 4, 0)), (None, None));
        assert_eq!(Bar::map(file, 0, 0).unwrap_err(), Errno::EINVAL);
    }
}
