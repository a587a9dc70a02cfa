//! Mapped device registers. Every access is volatile, of one size, and checked against the end of the region.
//!
//! Volatile and not atomic, because an access to a register has side effects, and the compiler may merge atomic
//! accesses.
#![expect(unsafe_code, reason = "reads and writes registers of a device")]

use std::os::fd::BorrowedFd;

use prereg::Errno;

use crate::mapping::Mapping;

/// A mapped region of device registers. Dropping it unmaps.
///
/// Registers are accessed in native byte order, each in one access.
#[derive(Debug)]
pub struct Bar {
    mapping: Mapping,
}

impl Bar {
    /// Maps `bytes` bytes of `descriptor` from `offset` on.
    pub(super) fn map(descriptor: BorrowedFd<'_>, offset: u64, bytes: u64) -> Result<Self, Errno> {
        Mapping::of_file(descriptor, offset, bytes).map(|mapping| Self { mapping })
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.bytes()
    }

    /// The first register. Valid while this value exists; the device may change registers at any time.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.mapping.as_ptr()
    }

    /// The address of an aligned register at `offset`.
    fn register<R>(&self, offset: u64) -> Option<*mut R> {
        let size = size_of::<R>() as u64;
        if offset.checked_add(size)? > self.bytes() || offset % size != 0 {
            return None;
        }
        Some(self.as_ptr().wrapping_add(usize::try_from(offset).ok()?).cast())
    }

    /// Reads a register of 4 bytes; `None` when it is misaligned or outside.
    #[must_use]
    pub fn read_u32(&self, offset: u64) -> Option<u32> {
        let register = self.register::<u32>(offset)?;
        // SAFETY: aligned and inside the mapping, which lives as long as `self`.
        Some(unsafe { register.read_volatile() })
    }

    /// Reads a register of 8 bytes; `None` when it is misaligned or outside.
    #[must_use]
    pub fn read_u64(&self, offset: u64) -> Option<u64> {
        let register = self.register::<u64>(offset)?;
        // SAFETY: as in `read_u32`.
        Some(unsafe { register.read_volatile() })
    }

    /// Writes a register of 4 bytes; `None` when it is misaligned or outside.
    pub fn write_u32(&self, offset: u64, value: u32) -> Option<()> {
        let register = self.register::<u32>(offset)?;
        // SAFETY: as in `read_u32`.
        unsafe { register.write_volatile(value) };
        Some(())
    }

    /// Writes a register of 8 bytes; `None` when it is misaligned or outside.
    pub fn write_u64(&self, offset: u64, value: u64) -> Option<()> {
        let register = self.register::<u64>(offset)?;
        // SAFETY: as in `read_u32`.
        unsafe { register.write_volatile(value) };
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMemory;
    #[test]
    fn registers_are_reached_aligned_and_inside_only() {
        let memory = GuestMemory::memfd("registers", 1 << 16).unwrap();
        let file = memory.descriptor().unwrap();
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
