//! Errors of mapping and unmapping.

use std::fmt;

use prereg::{Errno, Iova, MapError, RegisterError};

/// A mapping was not made or not removed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaMapError {
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
        /// The start of the mapping in the way.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// The unmap would cut a mapping in two. EINVAL.
    #[error("the mapping of {bytes:#x} bytes at {iova} reaches out of the range; unmap all of it or nothing")]
    Splits {
        /// The start of that mapping.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// The memory is not registered, and registering it failed. The address space's errno.
    #[error("the memory could not be pinned: {0}")]
    Register(#[from] RegisterError),
    /// The memory lies in a region that cannot be mapped. EFAULT or ENXIO.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The file's descriptor could not be duplicated. The system's errno.
    #[error("the descriptor of the memory could not be duplicated: {errno}")]
    Descriptor {
        /// The system's number.
        errno: Errno,
    },
    /// The container refused. Its errno. Nothing has changed except what `lost` says.
    #[error("{during} of {bytes:#x} bytes at {iova} failed with {errno}{}", Lost(*.lost))]
    Container {
        /// The operation it refused.
        during: &'static str,
        /// The I/O virtual address.
        iova: Iova,
        /// How much.
        bytes: u64,
        /// Its number.
        errno: Errno,
        /// Mappings that were removed before the refusal and could not be made again. They are gone here too.
        lost: u64,
    },
}

prereg::debug_as_display!(DmaMapError);

/// The end of the message about a refusal: mappings that could not be made again, if any.
struct Lost(u64);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            lost => write!(f, "; {lost} mappings were lost in undoing it"),
        }
    }
}

impl DmaMapError {
    /// EINVAL, EEXIST, or the errno of the refusing side, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } | Self::Splits { .. } => Errno::EINVAL,
            Self::Exists { .. } => Errno::EEXIST,
            Self::Register(error) => error.errno(),
            Self::Map(error) => error.errno(),
            Self::Descriptor { errno } | Self::Container { errno, .. } => *errno,
        }
    }
}
