//! Doorbells in memory that the client maps: the guest writes them without telling anybody.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use prereg::Errno;
use prereg_linux::GuestMemory;
use prereg_vfio_user::client::Window;
use prereg_vfio_user::server::Sparse;
use prereg_vfio_user::wire::SparseArea;

use crate::engine::board::Doorbells;
use crate::spec::register::DOORBELLS;

/// Bytes of the page of doorbells.
pub(super) const PAGE: u64 = 0x1000;

/// A page of doorbells.
#[derive(Debug)]
pub(super) struct MappedDoorbells {
    window: Window,
    descriptor: Arc<OwnedFd>,
}

impl MappedDoorbells {
    /// A new page, all zero, that lies in its memory where it lies in the BAR.
    ///
    /// # Errors
    /// The system's number.
    pub(super) fn new() -> Result<Self, Errno> {
        let memory = GuestMemory::memfd("nvme-doorbells", DOORBELLS + PAGE).map_err(|error| error.errno())?;
        let descriptor = memory.descriptor().ok_or(Errno::EBADF)?;
        let window = Window::new(descriptor, DOORBELLS, PAGE).map_err(|_| Errno::ENOMEM)?;
        let descriptor = descriptor.try_clone_to_owned().map_err(|_| Errno::ENFILE)?;
        Ok(Self { window, descriptor: Arc::new(descriptor) })
    }

    /// How a client maps it, as part of BAR 0.
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
        self.window.load_u32(at * 4).map_or(0, u32::from_le)
    }

    fn store(&self, at: usize, value: u32) {
        self.window.store_u32(at * 4, value.to_le());
    }
}
