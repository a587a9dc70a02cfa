//! Client memory that the server accesses by messages.

use prereg::{Errno, Iova};

/// Memory for the server's DMA_READ and DMA_WRITE.
pub trait ServedMemory: Send {
    /// Fills `into` from `iova`.
    ///
    /// # Errors
    /// The errno of the reply; ENODEV for memory that does not exist, as in QEMU.
    fn read(&mut self, iova: Iova, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes `from` to `iova`.
    ///
    /// # Errors
    /// The errno of the reply.
    fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), Errno>;
}

/// Memory of the client's process at one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnMemory {
    start: Iova,
    bytes: Vec<u8>,
}

impl OwnMemory {
    /// `bytes` at `start`.
    #[must_use]
    pub fn new(start: Iova, bytes: Vec<u8>) -> Self {
        Self { start, bytes }
    }

    /// The contents.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn place(&mut self, iova: Iova, bytes: usize) -> Result<&mut [u8], Errno> {
        let start = iova.offset_from(self.start).and_then(|start| usize::try_from(start).ok());
        let range = start.and_then(|start| Some(start..start.checked_add(bytes)?));
        range.and_then(|range| self.bytes.get_mut(range)).ok_or(Errno::ENODEV)
    }
}

impl ServedMemory for OwnMemory {
    fn read(&mut self, iova: Iova, into: &mut [u8]) -> Result<(), Errno> {
        into.copy_from_slice(self.place(iova, into.len())?);
        Ok(())
    }

    fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), Errno> {
        self.place(iova, from.len())?.copy_from_slice(from);
        Ok(())
    }
}
