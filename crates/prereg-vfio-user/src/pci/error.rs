//! What does not fit together in a configuration space.

use prereg::Errno;

/// Why a configuration space cannot be built. EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// A BAR's index or size.
    #[error(
        "BAR {index} of {bytes:#x} bytes cannot be: six at most, none twice, sizes are powers of two (memory from 16 bytes, 32-bit ones up to 2 GiB, I/O 4 to 256 bytes), 64-bit ones take two"
    )]
    Bar {
        /// The BAR.
        index: usize,
        /// Its length.
        bytes: u64,
    },
    /// How many interrupts.
    #[error("{count} vectors cannot be: MSI has a power of two up to 32, MSI-X 1 to 2048")]
    Vectors {
        /// How many.
        count: u32,
    },
    /// Where the MSI-X table or its pending bits lie.
    #[error(
        "{bytes:#x} bytes of MSI-X at {offset:#x} of BAR {bar} do not lie in memory of it, aligned to 8, by themselves"
    )]
    Place {
        /// The BAR.
        bar: u8,
        /// Where in it.
        offset: u32,
        /// How much.
        bytes: u32,
    },
    /// A capability twice.
    #[error("capability {id:#x} is there twice")]
    Twice {
        /// Its number.
        id: u8,
    },
}

impl PciError {
    /// The error number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}
