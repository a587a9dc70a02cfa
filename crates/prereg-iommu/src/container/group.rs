//! IOMMU groups: devices that cannot be isolated from each other, and the hardware that windows are programmed into.

use core::fmt;

use prereg::Errno;

use super::platform::Platform;
use crate::geometry::Geometry;

/// An IOMMU group.
///
/// Windows belong to the container, which programs all of them into each of its groups.
pub trait Group: Send + Sync + fmt::Debug {
    /// The number that identifies the group.
    fn number(&self) -> u32;

    /// The platform. Groups of one container must agree.
    fn platform(&self) -> &Platform;

    /// Programs window `slot`.
    ///
    /// # Errors
    /// The hardware's; then nothing is programmed.
    fn set_window(&self, slot: usize, geometry: &Geometry) -> Result<(), Errno> {
        let _ = (slot, geometry);
        Ok(())
    }

    /// Removes window `slot`, whose entries were cleared before.
    fn unset_window(&self, slot: usize) {
        let _ = slot;
    }
}

/// A group without hardware: its windows are reached only through their tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftwareGroup {
    number: u32,
    platform: Platform,
}

impl SoftwareGroup {
    /// Group `number` on `platform`.
    #[must_use]
    pub const fn new(number: u32, platform: Platform) -> Self {
        Self { number, platform }
    }
}

impl Group for SoftwareGroup {
    fn number(&self) -> u32 {
        self.number
    }

    fn platform(&self) -> &Platform {
        &self.platform
    }
}
