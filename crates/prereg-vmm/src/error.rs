//! Why a mapping was not made or not taken away.

use prereg::{Errno, Iova, MapError, RegisterError};

/// Why a mapping was not made or not taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptError {
    /// Zero bytes, or past 2^64. EINVAL.
    #[error("{iova} + {bytes:#x} bytes is empty or passes 2^64")]
    Range {
        /// The start asked for.
        iova: Iova,
        /// The length asked for.
        bytes: u64,
    },
    /// Something is mapped there. EEXIST.
    #[error("{iova} is mapped already ({bytes:#x} bytes there); unmap it first")]
    Exists {
        /// Where the mapping in the way starts.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// The unmap would cut a mapping in two. EINVAL.
    #[error("the mapping of {bytes:#x} bytes at {iova} reaches out of the range; unmap all of it or nothing")]
    Splits {
        /// Where that mapping starts.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// Not all of the range is mapped, and gaps were not allowed. EINVAL.
    #[error("{mapped:#x} of the {bytes:#x} bytes at {iova} are mapped; name what was mapped")]
    Gap {
        /// The start asked for.
        iova: Iova,
        /// The length asked for.
        bytes: u64,
        /// How much of it is mapped.
        mapped: u64,
    },
    /// The memory was not registered, and could not be. The address space's errno.
    #[error("the memory could not be pinned: {0}")]
    Register(#[from] RegisterError),
    /// The memory lies in a region that cannot be mapped. EFAULT or ENXIO.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The container refused. Its errno. Nothing has changed but what `lost` says.
    #[error(
        "{during} of {bytes:#x} bytes at {iova} failed with {errno}; {lost} mappings were lost in undoing it"
    )]
    Container {
        /// What it was asked for.
        during: &'static str,
        /// Where.
        iova: Iova,
        /// How much.
        bytes: u64,
        /// Its number.
        errno: Errno,
        /// Mappings that were taken away before the refusal and could not be put back. They are gone here too.
        lost: u64,
    },
}

impl KeptError {
    /// EINVAL, EEXIST, or the number of whoever refused, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } | Self::Splits { .. } | Self::Gap { .. } => Errno::EINVAL,
            Self::Exists { .. } => Errno::EEXIST,
            Self::Register(error) => error.errno(),
            Self::Map(error) => error.errno(),
            Self::Container { errno, .. } => *errno,
        }
    }
}
