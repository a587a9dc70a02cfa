//! Memory that has no descriptor: only its client can reach it.

use prereg::Iova;

use super::error::RemoteError;

/// The port to memory that the client moves bytes of: DMA_READ and DMA_WRITE. Blocks until the client has answered.
pub trait Remote: Send + Sync {
    /// Reads `into.len()` bytes, any number of them.
    ///
    /// # Errors
    /// [`RemoteError`]; what `into` holds is then not to be used.
    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), RemoteError>;

    /// Writes `from.len()` bytes, any number of them.
    ///
    /// # Errors
    /// [`RemoteError`]; a part may have been written.
    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), RemoteError>;
}
