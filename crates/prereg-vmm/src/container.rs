//! The port to whatever really maps memory for a device.

use prereg::{Access, Errno, Iova, UserAddr};

/// What really maps memory for a device: the kernel's VFIO container, a vfio-user client, a device model.
///
/// Called with the lock of the mappings held, one call at a time; it may not call back.
pub trait DmaContainer: Send + Sync {
    /// Lets the device reach `bytes` bytes of memory at `ua` by the addresses from `iova` on.
    ///
    /// # Errors
    /// The number that the system gave; then nothing of it is mapped.
    ///
    /// # Safety
    /// Until [`unmap`](Self::unmap) of the same range has succeeded, the memory stays mapped and the same memory, and nobody
    /// holds a Rust reference into it.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno>;

    /// Takes one mapping away, as it was made. When this returns the device cannot reach the memory any more. A mapping that is
    /// gone already is no error.
    ///
    /// # Errors
    /// The number that the system gave; then the device may still reach it.
    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno>;

    /// Whether every mapping is gone once the last device has left, as in a type1 container (an iommufd address space keeps
    /// them).
    fn forgets(&self) -> bool {
        true
    }
}
