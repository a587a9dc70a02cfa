//! Errors of building a configuration space.

use prereg::Errno;

/// Errors of building a configuration space. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// Invalid index or size of a BAR.
    #[error(
        "BAR {index} of {bytes:#x} bytes cannot be: six at most, none twice, sizes are powers of two (memory from 16 bytes, 32-bit ones up to 2 GiB, I/O 4 to 256 bytes), 64-bit ones take two"
    )]
    Bar {
        /// The BAR.
        index: usize,
        /// The length.
        bytes: u64,
    },
    /// Invalid number of interrupts.
    #[error("{count} vectors cannot be: MSI has a power of two up to 32, MSI-X 1 to 2048")]
    Vectors {
        /// The number.
        count: u32,
    },
    /// Invalid location of the MSI-X table or its pending bits.
    #[error(
        "{bytes:#x} bytes of MSI-X at {offset:#x} of BAR {bar} do not lie in memory of it, aligned to 8, by themselves"
    )]
    Place {
        /// The BAR.
        bar: u8,
        /// The offset in it.
        offset: u32,
        /// The length.
        bytes: u32,
    },
    /// A capability was added twice.
    #[error("capability {id:#x} is there twice")]
    Twice {
        /// The number.
        id: u8,
    },
}

prereg::debug_as_display!(PciError);

impl PciError {
    /// The errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}
