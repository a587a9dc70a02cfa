//! An IOMMU group: devices that cannot be told apart on the bus, and the hardware that windows are programmed into.

use core::fmt;

use prereg::Errno;

use super::platform::Platform;
use crate::geometry::Geometry;

/// A group as a container sees it.
///
/// Windows belong to the container; each of its groups is programmed with all of them.
pub trait Group: Send + Sync + fmt::Debug {
    /// The group's number: two handles with the same number are the same group.
    fn number(&self) -> u32;

    /// What its IOMMU offers. Groups of one container must agree.
    fn platform(&self) -> &Platform;

    /// Programs window `slot`.
    ///
    /// # Errors
    /// The hardware's; then nothing is programmed.
    fn set_window(&self, slot: usize, geometry: &Geometry) -> Result<(), Errno> {
        let _ = (slot, geometry);
        Ok(())
    }

    /// Takes window `slot` away. Every entry of it was cleared before.
    fn unset_window(&self, slot: usize) {
        let _ = slot;
    }
}

/// A group without hardware: its windows are reached through their tables only.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlainGroup {
    number: u32,
    platform: Platform,
}

impl PlainGroup {
    /// Group `number` on `platform`.
    #[must_use]
    pub const fn new(number: u32, platform: Platform) -> Self {
        Self { number, platform }
    }
}

impl Group for PlainGroup {
    fn number(&self) -> u32 {
        self.number
    }

    fn platform(&self) -> &Platform {
        &self.platform
    }
}
