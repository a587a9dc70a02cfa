//! A device that counts as attached to its container while it lives.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::error::DmaMapError;
use crate::persistent_mappings::PersistentMappings;

/// An open device. While it lives its container has all mappings. It is closed when this is dropped.
pub struct Attached<D> {
    device: D,
    mappings: Arc<PersistentMappings>,
}

impl PersistentMappings {
    /// Opens a device, counts it, and makes the mappings again if the container may have lost them. `open` may map and unmap,
    /// and may drop devices or attach other ones: no lock is held while it runs.
    ///
    /// # Errors
    /// The error of `open`; or `refused` of the container's refusal to take the mappings: the device is closed then.
    pub fn attach<D, E>(
        self: &Arc<Self>,
        open: impl FnOnce() -> Result<D, E>,
        refused: impl FnOnce(DmaMapError) -> E,
    ) -> Result<Attached<D>, E> {
        let device = open()?;
        self.device_arrived().map_err(refused)?;
        Ok(Attached { device, mappings: Arc::clone(self) })
    }
}

impl<D> Drop for Attached<D> {
    /// Counts the device off. `device` is dropped, and so closed, after this: a counted device is always an open one, so a
    /// container with a counted device never is without devices.
    fn drop(&mut self) {
        self.mappings.device_leaving();
    }
}

impl<D> Deref for Attached<D> {
    type Target = D;

    fn deref(&self) -> &D {
        &self.device
    }
}

impl<D> DerefMut for Attached<D> {
    fn deref_mut(&mut self) -> &mut D {
        &mut self.device
    }
}

impl<D: fmt::Debug> fmt::Debug for Attached<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("device", &self.device).finish_non_exhaustive()
    }
}
