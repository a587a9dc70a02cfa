//! Doorbells in memory that the client maps: guest writes are not trapped.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use prereg::Errno;
use prereg_linux::GuestMemory;
use prereg_vfio_user::server::Sparse;
use prereg_vfio_user::wire::SparseArea;

use crate::engine::queue_table::Doorbells;
use crate::spec::register::DOORBELLS;

/// Bytes of the page of doorbells.
pub(super) const PAGE: u64 = 0x1000;

/// A page of doorbells.
#[derive(Debug)]
pub(super) struct MappedDoorbells {
    /// Sealed against shrinking, so that accesses of neither side can fault.
    memory: GuestMemory,
    descriptor: Arc<OwnedFd>,
}

impl MappedDoorbells {
    /// A new page of zeros, at the same offset in its memory as in the BAR.
    ///
    /// # Errors
    /// The system's error number.
    pub(super) fn new() -> Result<Self, Errno> {
        let memory = GuestMemory::memfd("nvme-doorbells", DOORBELLS + PAGE).map_err(|error| error.errno())?;
        let descriptor = memory.descriptor().ok_or(Errno::EBADF)?;
        let descriptor = descriptor.try_clone_to_owned().map_err(|_| Errno::ENFILE)?;
        Ok(Self { memory, descriptor: Arc::new(descriptor) })
    }

    /// How a client maps it, as a part of BAR 0.
    pub(super) fn sparse(&self) -> Sparse {
        Sparse {
            fd: Arc::clone(&self.descriptor),
            offset: 0,
            areas: vec![SparseArea { offset: DOORBELLS, bytes: PAGE }],
        }
    }
}

impl Doorbells for MappedDoorbells {
    fn load(&self, at: usize) -> u32 {
        self.memory.load_u32(DOORBELLS + at as u64 * 4).unwrap_or(0)
    }

    fn store(&self, at: usize, value: u32) {
        // There is no doorbell outside the page.
        let _ = self.memory.store_u32(DOORBELLS + at as u64 * 4, value);
    }
}
