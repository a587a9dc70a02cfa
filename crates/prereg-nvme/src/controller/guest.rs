//! A client's memory as the engine's guest memory.

use std::sync::Arc;

use prereg::{Access, Iova};
use prereg_vfio_user::server::{Dma, DmaGuard};

use super::unmap_watch::UnmapWatch;
use crate::engine::memory::{GuestGuard, GuestMemory, Unreachable};

/// A client's memory.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    dma: Dma,
    unmap_watch: Arc<UnmapWatch>,
}

impl Guest {
    pub(super) fn new(dma: Dma, unmap_watch: Arc<UnmapWatch>) -> Self {
        Self { dma, unmap_watch }
    }
}

impl GuestMemory for Guest {
    type Guard = DmaGuard;

    fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<DmaGuard, Unreachable> {
        self.dma.hold(iova, bytes, access).map_err(|_| Unreachable)
    }

    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), Unreachable> {
        self.dma.read(iova, into).map_err(|_| Unreachable)
    }

    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), Unreachable> {
        self.dma.write(iova, from).map_err(|_| Unreachable)
    }

    fn may_keep_holds(&self) -> bool {
        self.unmap_watch.may_keep_holds()
    }
}

impl GuestGuard for DmaGuard {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreachable> {
        Self::read(self, offset, into).map_err(|_| Unreachable)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Unreachable> {
        Self::write(self, offset, from).map_err(|_| Unreachable)
    }

    fn load_u32(&self, offset: u64) -> Result<u32, Unreachable> {
        Self::load_u32(self, offset).map_err(|_| Unreachable)
    }

    fn store_u32(&self, offset: u64, value: u32) -> Result<(), Unreachable> {
        Self::store_u32(self, offset, value).map_err(|_| Unreachable)
    }
}
