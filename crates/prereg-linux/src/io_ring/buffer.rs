//! Buffers aligned for direct I/O.

use prereg::Errno;

/// Suits devices with blocks of up to 4 KiB.
const ALIGN: usize = 4096;

/// Zeroed memory of this process, aligned to 4096 bytes: a bounce buffer for data that cannot go directly to or from
/// guest memory.
pub struct AlignedBuffer {
    memory: Vec<u8>,
    skip: usize,
    bytes: usize,
}

impl AlignedBuffer {
    /// A buffer of `bytes` zeros.
    ///
    /// # Errors
    /// ENOMEM.
    pub fn zeroed(bytes: usize) -> Result<Self, Errno> {
        let whole = bytes.checked_add(ALIGN - 1).ok_or(Errno::ENOMEM)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(whole).map_err(|_| Errno::ENOMEM)?;
        memory.resize(whole, 0);
        let address = memory.as_ptr().addr();
        Ok(Self { skip: address.next_multiple_of(ALIGN) - address, memory, bytes })
    }

    /// The contents.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.skip..self.skip + self.bytes]
    }

    /// The contents, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.skip..self.skip + self.bytes]
    }

    /// The length in bytes.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AlignedBuffer").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
