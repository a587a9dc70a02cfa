//! A PCI device in user space: its group in a type1 container, its regions, and memory for its DMA.
//!
//! Numbers and layouts are those of the kernel's `linux/vfio.h`.

#![expect(unsafe_code, reason = "ioctls, and memory that a device writes")]

use std::fs::{File, OpenOptions, read_link};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;

use crate::error::Error;

const SET_IOMMU: libc::c_ulong = 0x3b66;
const GROUP_SET_CONTAINER: libc::c_ulong = 0x3b68;
const GROUP_GET_DEVICE_FD: libc::c_ulong = 0x3b6a;
const DEVICE_GET_REGION_INFO: libc::c_ulong = 0x3b6c;
const IOMMU_MAP_DMA: libc::c_ulong = 0x3b71;
const IOMMU_UNMAP_DMA: libc::c_ulong = 0x3b72;

/// The second version of type1, which unmaps whole mappings only.
const TYPE1V2: libc::c_ulong = 3;

/// Indexes of regions.
const BAR0: u32 = 0;
const CONFIG: u32 = 7;

/// Offset and bits of the PCI command register.
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 0b110;

/// A device and its container.
#[derive(Debug)]
pub(crate) struct Device {
    container: File,
    /// Kept open: closing it would remove the device from the container.
    _group: File,
    device: File,
    bar: u64,
}

/// `struct vfio_region_info`.
#[repr(C)]
#[derive(Default)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

/// `struct vfio_iommu_type1_dma_map`.
#[repr(C)]
struct Map {
    argsz: u32,
    flags: u32,
    vaddr: u64,
    iova: u64,
    size: u64,
}

/// `struct vfio_iommu_type1_dma_unmap`.
#[repr(C)]
struct Unmap {
    argsz: u32,
    flags: u32,
    iova: u64,
    size: u64,
}

/// An ioctl whose argument is a structure or a number.
///
/// # Safety
/// `argument` is valid for `request` and lives through the call.
unsafe fn ioctl(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the caller's promise; the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn address<T>(of: &mut T) -> libc::c_ulong {
    std::ptr::from_mut(of).addr() as libc::c_ulong
}

fn size_of<T>() -> u32 {
    // The structures have a few dozen bytes.
    u32::try_from(std::mem::size_of::<T>()).unwrap_or(u32::MAX)
}

impl Device {
    /// Opens the device at the PCI address `name`, which is bound to vfio-pci, and enables bus mastering.
    pub(crate) fn open(name: &str) -> Result<Self, Error> {
        let link = format!("/sys/bus/pci/devices/{name}/iommu_group");
        let group = read_link(&link).map_err(|error| format!("{link}: {error}"))?;
        let group = format!("/dev/vfio/{}", group.file_name().unwrap_or_default().to_string_lossy());
        let open = |path: &str| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.map_err(|error| format!("{path}: {error}"))
        };
        let (container, group) = (open("/dev/vfio/vfio")?, open(&group)?);
        let mut number = container.as_raw_fd();
        // SAFETY: it takes the address of a descriptor's number.
        unsafe { ioctl(&group, GROUP_SET_CONTAINER, address(&mut number)) }
            .map_err(|error| format!("the group's container: {error}"))?;
        // SAFETY: it takes a number.
        unsafe { ioctl(&container, SET_IOMMU, TYPE1V2) }.map_err(|error| format!("type1: {error}"))?;
        let mut text = std::ffi::CString::new(name).map_err(|error| error.to_string())?.into_bytes_with_nul();
        // SAFETY: it takes a string that ends in a zero.
        let device = unsafe { ioctl(&group, GROUP_GET_DEVICE_FD, text.as_mut_ptr().addr() as libc::c_ulong) }
            .map_err(|error| format!("device {name}: {error}"))?;
        // SAFETY: the kernel returned this descriptor to this call only.
        let device = unsafe { File::from_raw_fd(device) };
        let (bar, config) = (region(&device, BAR0)?, region(&device, CONFIG)?);
        let mut command = [0; 2];
        let failed = |error: io::Error| format!("configuration space: {error}");
        device.read_exact_at(&mut command, config + COMMAND).map_err(failed)?;
        let command = (u16::from_le_bytes(command) | MEMORY_AND_MASTER).to_le_bytes();
        device.write_all_at(&command, config + COMMAND).map_err(failed)?;
        Ok(Self { container, _group: group, device, bar })
    }

    /// The register of 32 bits at `offset` of BAR 0.
    pub(crate) fn read32(&self, offset: u64) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.device
            .read_exact_at(&mut bytes, self.bar + offset)
            .map_err(|error| format!("register {offset:#x}: {error}"))?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes the register of 32 bits at `offset` of BAR 0.
    pub(crate) fn write32(&self, offset: u64, value: u32) -> Result<(), Error> {
        let written = self.device.write_all_at(&value.to_le_bytes(), self.bar + offset);
        written.map_err(|error| format!("register {offset:#x}: {error}"))
    }

    /// Writes the register of 64 bits at `offset` of BAR 0, its lower half first.
    pub(crate) fn write64(&self, offset: u64, value: u64) -> Result<(), Error> {
        self.write32(offset, u32::try_from(value & 0xffff_ffff).unwrap_or(0))?;
        self.write32(offset + 4, u32::try_from(value >> 32).unwrap_or(0))
    }

    /// Maps `bytes` of `memory` from `offset` for the device, at `iova`.
    pub(crate) fn map(&self, memory: &Memory, offset: usize, bytes: usize, iova: u64) -> Result<(), Error> {
        let vaddr = memory.at(offset, bytes)?.addr().get() as u64;
        let mut map = Map { argsz: size_of::<Map>(), flags: 3, vaddr, iova, size: bytes as u64 };
        // SAFETY: it takes this structure; the memory lives as long as the caller's borrow and is pinned beyond.
        unsafe { ioctl(&self.container, IOMMU_MAP_DMA, address(&mut map)) }
            .map_err(|error| format!("mapping {bytes} bytes at {iova:#x}: {error}"))?;
        Ok(())
    }

    /// Unmaps `bytes` at `iova`.
    pub(crate) fn unmap(&self, iova: u64, bytes: usize) -> Result<(), Error> {
        let mut unmap = Unmap { argsz: size_of::<Unmap>(), flags: 0, iova, size: bytes as u64 };
        // SAFETY: it takes and fills this structure.
        unsafe { ioctl(&self.container, IOMMU_UNMAP_DMA, address(&mut unmap)) }
            .map_err(|error| format!("unmapping {bytes} bytes at {iova:#x}: {error}"))?;
        if unmap.size == bytes as u64 {
            Ok(())
        } else {
            Err(format!("unmapped {} of {bytes} bytes at {iova:#x}", unmap.size))
        }
    }
}

/// The offset of the region `index` in the device's file.
fn region(device: &File, index: u32) -> Result<u64, Error> {
    let mut info = RegionInfo { argsz: size_of::<RegionInfo>(), index, ..RegionInfo::default() };
    // SAFETY: it takes and fills this structure.
    unsafe { ioctl(device, DEVICE_GET_REGION_INFO, address(&mut info)) }
        .map_err(|error| format!("region {index}: {error}"))?;
    if info.size == 0 { Err(format!("the device has no region {index}")) } else { Ok(info.offset) }
}

/// Memory that a device may write at any time; there are no references into it.
#[derive(Debug)]
pub(crate) struct Memory {
    begin: NonNull<u8>,
    bytes: usize,
}

impl Memory {
    /// `bytes` of zeros, page-aligned.
    pub(crate) fn new(bytes: usize) -> Result<Self, Error> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: new memory at an address of the kernel's choice.
        let begin = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        match NonNull::new(begin.cast::<u8>()) {
            Some(begin) if begin.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { begin, bytes }),
            _ => Err(format!("{bytes} bytes of memory: {}", io::Error::last_os_error())),
        }
    }

    fn at(&self, offset: usize, bytes: usize) -> Result<NonNull<u8>, Error> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            return Err(format!("{bytes} bytes at {offset} are beyond the memory"));
        }
        // SAFETY: just checked to be inside.
        Ok(unsafe { self.begin.add(offset) })
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), Error> {
        let begin = self.at(offset, into.len())?;
        for (index, byte) in into.iter_mut().enumerate() {
            // SAFETY: inside, by the check above.
            let place = unsafe { begin.add(index) };
            // SAFETY: readable; volatile, because the device may write it.
            *byte = unsafe { place.read_volatile() };
        }
        Ok(())
    }

    /// Copies bytes in.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> Result<(), Error> {
        let begin = self.at(offset, from.len())?;
        for (index, byte) in from.iter().enumerate() {
            // SAFETY: inside, by the check above.
            let place = unsafe { begin.add(index) };
            // SAFETY: writable; volatile, because the device may read it.
            unsafe { place.write_volatile(*byte) };
        }
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is what `new` mapped, and no pointer into it is left.
        let _ = unsafe { libc::munmap(self.begin.as_ptr().cast(), self.bytes) };
    }
}
