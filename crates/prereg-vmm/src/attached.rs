//! A device that counts as attached while it lives.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::error::KeptError;
use crate::kept::KeptMappings;

/// A device in a container. While it lives the container has its mappings; when the last one is dropped they are only
/// remembered, and memory stays pinned.
///
/// Fields are dropped in this order: until the device is closed the container has its mappings.
pub struct Attached<D> {
    device: D,
    _leaves: Leaves,
}

/// Counts a device off when dropped.
struct Leaves(Arc<KeptMappings>);

impl Drop for Leaves {
    fn drop(&mut self) {
        self.0.device_left();
    }
}

impl KeptMappings {
    /// Opens a device that brings the container to life, and puts the mappings in if the container has lost them.
    ///
    /// # Errors
    /// What `open` says; or, `refused` by the container, why the mappings could not be put in: the device is then gone again
    /// and the container has none of them.
    pub fn attach<D, E>(
        self: &Arc<Self>,
        open: impl FnOnce() -> Result<D, E>,
        refused: impl FnOnce(KeptError) -> E,
    ) -> Result<Attached<D>, E> {
        let device = open()?;
        self.device_arrived().map_err(refused)?;
        Ok(Attached { device, _leaves: Leaves(Arc::clone(self)) })
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
