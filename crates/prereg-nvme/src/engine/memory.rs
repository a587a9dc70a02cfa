//! The interface to guest memory.

use prereg::{Access, Iova};

/// Guest memory that cannot be reached: not mapped, not for this access, or lost.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest memory cannot be reached")]
pub struct Unreachable;

prereg::debug_as_display!(Unreachable);

/// Guest memory as the controller sees it.
pub trait GuestMemory {
    /// A range that stays mapped as long as this exists.
    type Guard: GuestGuard;

    /// Holds `bytes` at `iova`. `access` is what the controller does.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<Self::Guard, Unreachable>;

    /// Copies from guest memory.
    ///
    /// # Errors
    /// [`Unreachable`]; `into` may be partly written.
    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), Unreachable>;

    /// Copies to guest memory.
    ///
    /// # Errors
    /// [`Unreachable`]; a part may have been written.
    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), Unreachable>;

    /// Whether a hold that begins now may be kept. `false` between the announcement of an unmap and the unmap: a hold
    /// that is taken in between is not asked back, so it must be released soon.
    fn may_keep_holds(&self) -> bool {
        true
    }
}

/// A held range of guest memory. Offsets are from its start.
pub trait GuestGuard: std::fmt::Debug {
    /// Copies from guest memory.
    ///
    /// # Errors
    /// [`Unreachable`]: the memory of a mapping may be lost although it is held.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreachable>;

    /// Copies to guest memory.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Unreachable>;

    /// Loads an aligned little-endian dword with acquire order.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn load_u32(&self, offset: u64) -> Result<u32, Unreachable>;

    /// Stores an aligned little-endian dword with release order.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn store_u32(&self, offset: u64, value: u32) -> Result<(), Unreachable>;
}
