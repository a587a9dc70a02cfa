//! Memory without a descriptor, which only its client can access.

use prereg::Iova;

use super::error::RemoteError;

/// The port to a client's memory by DMA_READ and DMA_WRITE. Blocks until the client replies.
pub trait Remote: Send + Sync {
    /// Reads `into.len()` bytes.
    ///
    /// # Errors
    /// [`RemoteError`]; `into` must not be used then.
    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), RemoteError>;

    /// Writes `from.len()` bytes.
    ///
    /// # Errors
    /// [`RemoteError`]; a part may have been written.
    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), RemoteError>;
}
