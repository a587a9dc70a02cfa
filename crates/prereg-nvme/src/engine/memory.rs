//! The port to the guest's memory.

use prereg::{Access, Iova};

/// Guest memory that cannot be reached: not mapped, not for this kind of access, or lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the guest's memory cannot be reached there")]
pub struct Unreachable;

/// The guest's memory as the controller sees it.
pub trait GuestMemory {
    /// A piece that stays mapped as long as it is held.
    type Guard: GuestGuard;

    /// Holds `bytes` at `iova`. `access` is what the controller does.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<Self::Guard, Unreachable>;

    /// Copies out.
    ///
    /// # Errors
    /// [`Unreachable`]; what `into` has then is not said.
    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), Unreachable>;

    /// Copies in.
    ///
    /// # Errors
    /// [`Unreachable`]; a part may have been written.
    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), Unreachable>;

    /// Whether a hold that begins now may be kept. `false` between the announcement that memory goes and its going: a hold
    /// taken in between must be given back soon, because nobody will ask for it.
    fn may_keep_holds(&self) -> bool {
        true
    }
}

/// A held piece of guest memory. Offsets are from its start.
pub trait GuestGuard: std::fmt::Debug {
    /// Copies out.
    ///
    /// # Errors
    /// [`Unreachable`]: the memory behind a mapping may be lost although it is held.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreachable>;

    /// Copies in.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Unreachable>;

    /// Loads four aligned bytes, little endian; what the guest wrote before them is seen by later reads.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn load_u32(&self, offset: u64) -> Result<u32, Unreachable>;

    /// Stores four aligned bytes, little endian; a guest that sees them sees what was written before.
    ///
    /// # Errors
    /// [`Unreachable`].
    fn store_u32(&self, offset: u64, value: u32) -> Result<(), Unreachable>;
}
