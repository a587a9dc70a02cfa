//! Two mappings of a file range: one to register, one to copy in and out of.
#![expect(unsafe_code, reason = "accesses within mappings whose bounds were checked")]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use prereg::Errno;

use super::error::SharedError;
use super::syscalls;
use crate::atomic_access;
use crate::mapping::Mapping;

/// Methods of copying.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CopyMethod {
    /// Loads and stores, for memory whose other owners cannot make them fault.
    Processor,
    /// System calls, which return an error instead of faulting.
    System,
}

/// A file range, mapped twice.
#[derive(Debug)]
pub(super) struct DualMapping {
    /// For registration. The processor never accesses it.
    registered: Mapping,
    /// For copies.
    copied: Mapping,
    file: Arc<OwnedFd>,
    offset: u64,
    copy_method: CopyMethod,
}

impl DualMapping {
    /// Maps `bytes` bytes of the file from `offset` on, both multiples of its page.
    pub(super) fn new(
        file: Arc<OwnedFd>,
        offset: u64,
        bytes: u64,
        copy_method: CopyMethod,
    ) -> Result<Self, SharedError> {
        let os = SharedError::os("mmap");
        let registered = Mapping::of_file(file.as_fd(), offset, bytes).map_err(&os)?;
        let copied = Mapping::of_file(file.as_fd(), offset, bytes).map_err(&os)?;
        Ok(Self { registered, copied, file, offset, copy_method })
    }

    pub(super) fn ua(&self) -> u64 {
        self.registered.ua()
    }

    pub(super) fn copy_ua(&self) -> u64 {
        self.copied.ua()
    }

    /// The start of the range in the file.
    pub(super) fn file_offset(&self) -> u64 {
        self.offset
    }

    pub(super) fn copy_method(&self) -> CopyMethod {
        self.copy_method
    }

    /// The address of `len` bytes at `offset` in the mapping for copies, if they lie inside and are aligned to `align`.
    fn place(&self, offset: u64, len: usize, align: u64) -> Result<*mut u8, SharedError> {
        let bytes = self.copied.bytes();
        let len = len as u64;
        if offset > bytes || len > bytes - offset || offset % align != 0 {
            return Err(SharedError::OutOfBounds { offset, len, bytes });
        }
        Ok(self.copied.as_ptr().wrapping_add(offset as usize))
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), SharedError> {
        let from = self.place(offset, into.len(), 1)?;
        match self.copy_method {
            CopyMethod::Processor => {
                // SAFETY: the whole length lies inside a mapping that exists while `self` does, of a file that cannot
                // shrink.
                unsafe { atomic_access::copy_out(from, into) };
                Ok(())
            }
            CopyMethod::System => self.read_file(offset, into),
        }
    }

    /// Reads the file: the same pages as the mapping, at half the cost of letting the kernel copy from the mapping.
    fn read_file(&self, offset: u64, into: &mut [u8]) -> Result<(), SharedError> {
        match syscalls::read_file(self.file.as_fd(), into, self.offset + offset) {
            Ok(got) if got == into.len() => Ok(()),
            Ok(_) | Err(Errno::EFAULT) => Err(SharedError::Gone),
            Err(errno) => Err(SharedError::Os { during: "pread", errno }),
        }
    }

    pub(super) fn write(&self, offset: u64, from: &[u8]) -> Result<(), SharedError> {
        let to = self.place(offset, from.len(), 1)?;
        match self.copy_method {
            CopyMethod::Processor => {
                // SAFETY: the whole length lies inside a mapping that exists while `self` does, of a file that cannot
                // shrink.
                unsafe { atomic_access::copy_in(to, from) };
                Ok(())
            }
            CopyMethod::System => Self::write_mapped(to, from),
        }
    }

    /// Writes through the mapping: writing to a truncated file would extend it again.
    fn write_mapped(to: *mut u8, from: &[u8]) -> Result<(), SharedError> {
        syscalls::write_self(to.addr() as u64, from).map_err(|errno| match errno {
            Errno::EFAULT => SharedError::Gone,
            errno => SharedError::Os { during: "process_vm_writev", errno },
        })
    }

    pub(super) fn load_u32(&self, offset: u64) -> Result<u32, SharedError> {
        let at = self.place(offset, 4, 4)?;
        match self.copy_method {
            CopyMethod::Processor => {
                // SAFETY: aligned, inside a mapping that exists while `self` does and contains no Rust value.
                Ok(u32::from_le(unsafe { atomic_access::load_u32(at.cast()) }))
            }
            CopyMethod::System => self.load_u32_copied(offset, at.addr() as u64),
        }
    }

    /// The kernel may copy byte by byte, so the copy is compared with a single load by the kernel.
    fn load_u32_copied(&self, offset: u64, at: u64) -> Result<u32, SharedError> {
        /// A word that still changes after this many attempts may be read torn.
        const TRIES: u32 = 64;
        let mut bytes = [0; 4];
        for _ in 0..TRIES {
            self.read_file(offset, &mut bytes)?;
            match syscalls::holds_value(at, u32::from_ne_bytes(bytes)) {
                Ok(true) => break,
                Ok(false) => {}
                Err(Errno::EFAULT) => return Err(SharedError::Gone),
                Err(errno) => return Err(SharedError::Os { during: "futex", errno }),
            }
        }
        fence(Ordering::Acquire);
        Ok(u32::from_le_bytes(bytes))
    }

    pub(super) fn store_u32(&self, offset: u64, value: u32) -> Result<(), SharedError> {
        let at = self.place(offset, 4, 4)?;
        match self.copy_method {
            CopyMethod::Processor => {
                // SAFETY: as in `load_u32`.
                unsafe { atomic_access::store_u32(at.cast(), value.to_le()) };
                Ok(())
            }
            CopyMethod::System => {
                fence(Ordering::Release);
                Self::write_mapped(at, &value.to_le_bytes())
            }
        }
    }

    pub(super) fn load_u64(&self, offset: u64) -> Result<u64, SharedError> {
        let at = self.place(offset, 8, 8)?;
        match self.copy_method {
            CopyMethod::Processor => {
                // SAFETY: as in `load_u32`.
                Ok(u64::from_le(unsafe { atomic_access::load_u64(at.cast()) }))
            }
            CopyMethod::System => {
                let mut bytes = [0; 8];
                self.read_file(offset, &mut bytes)?;
                fence(Ordering::Acquire);
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    pub(super) fn store_u64(&self, offset: u64, value: u64) -> Result<(), SharedError> {
        let at = self.place(offset, 8, 8)?;
        match self.copy_method {
            CopyMethod::Processor => {
                // SAFETY: as in `load_u32`.
                unsafe { atomic_access::store_u64(at.cast(), value.to_le()) };
                Ok(())
            }
            CopyMethod::System => {
                fence(Ordering::Release);
                Self::write_mapped(at, &value.to_le_bytes())
            }
        }
    }
}
