//! Memory that cannot be pinned for a device: read-only, without access, beyond the end of its file, of a file on a disk, and
//! registers of a device.
#![expect(unsafe_code, reason = "maps memory in ways that the safe kinds of memory rule out")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use prereg_linux::GuestMemory;

use super::edu::Edu;

/// A mapping owned by its memory.
#[derive(Debug)]
struct Mapped {
    start: usize,
    bytes: usize,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        let start = std::ptr::with_exposed_provenance_mut(self.start);
        // SAFETY: the mapping made by `map`, whole; its users own this value.
        unsafe { libc::munmap(start, self.bytes) };
    }
}

fn map(bytes: usize, protection: libc::c_int, file: Option<&File>) -> io::Result<GuestMemory> {
    let (flags, descriptor) = match file {
        Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
    };
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, descriptor, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mapped = Arc::new(Mapped { start: start.expose_provenance(), bytes });
    // SAFETY: the mapping lives as long as `mapped`, no other code has its address, and nothing here reads or writes it: a
    // back end only refuses it.
    Ok(unsafe { GuestMemory::from_raw_with_owner(start.cast(), bytes, mapped) })
}

const READ_WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Read-only memory.
///
/// # Errors
/// Of `mmap`.
pub(super) fn read_only(bytes: usize) -> io::Result<GuestMemory> {
    map(bytes, libc::PROT_READ, None)
}

/// Memory without any access.
///
/// # Errors
/// Of `mmap`.
pub(super) fn no_access(bytes: usize) -> io::Result<GuestMemory> {
    map(bytes, libc::PROT_NONE, None)
}

/// A shared mapping of a file that is truncated or extended to `length` bytes.
///
/// # Errors
/// Of the file system and `mmap`.
pub(super) fn of_file(file: &File, bytes: usize, length: u64) -> io::Result<GuestMemory> {
    file.set_len(length)?;
    map(bytes, READ_WRITE, Some(file))
}

/// The registers of a device as memory, which owns the device.
pub(super) fn of_device(device: &Arc<Edu>) -> GuestMemory {
    let registers = device.registers();
    let bytes = usize::try_from(registers.bytes()).unwrap_or(0);
    // SAFETY: the mapping lives as long as the device, which the memory owns, and nothing reads or writes it through this
    // value: a back end only refuses it.
    unsafe { GuestMemory::from_raw_with_owner(registers.as_ptr(), bytes, Arc::<Edu>::clone(device)) }
}
