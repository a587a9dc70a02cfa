//! Memory of a client that the server reaches by messages alone.

use prereg::{Errno, Iova};

/// What a client answers DMA_READ and DMA_WRITE from.
pub trait ServedMemory: Send {
    /// Fills `into` with what lies at `iova` and behind it.
    ///
    /// # Errors
    /// What the server is answered; ENODEV for memory that is not there, as QEMU has it.
    fn read(&mut self, iova: Iova, into: &mut [u8]) -> Result<(), Errno>;

    /// Puts `from` at `iova` and behind it.
    ///
    /// # Errors
    /// What the server is answered.
    fn write(&mut self, iova: Iova, from: &[u8]) -> Result<(), Errno>;
}

/// Memory of the client's own process at one address.
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

    /// What is there.
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
