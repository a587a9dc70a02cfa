//! Why a map, an unmap or an access was refused. Nothing has changed then.

use prereg::{Access, Errno, Iova, MapError, PageShift};

/// Why a mapping was not made or not taken away. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IovaMapError {
    /// Zero bytes. EINVAL.
    #[error("the range at {iova} is empty; map or unmap at least one page, or all")]
    Empty {
        /// The start asked for.
        iova: Iova,
    },
    /// Start or length is no multiple of the smallest page. EINVAL.
    #[error("{iova} + {bytes:#x} bytes is not made of whole pages; align start and length")]
    Misaligned {
        /// The start asked for.
        iova: Iova,
        /// The length asked for.
        bytes: u64,
    },
    /// The range passes 2^64. (A sum of exactly 2^64 is fine.) EINVAL.
    #[error("{iova} + {bytes:#x} bytes passes 2^64")]
    Wraps {
        /// The start asked for.
        iova: Iova,
        /// The length asked for.
        bytes: u64,
    },
    /// Outside of what can be mapped. EINVAL.
    #[error("{iova} + {bytes:#x} bytes is not inside {first}..={last}")]
    Aperture {
        /// The start asked for.
        iova: Iova,
        /// The length asked for.
        bytes: u64,
        /// The first address.
        first: Iova,
        /// The last address.
        last: Iova,
    },
    /// Something is mapped there. EEXIST.
    #[error("{iova} is mapped already ({bytes:#x} bytes there); unmap it first")]
    Exists {
        /// Where the mapping in the way starts.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// Too many mappings. ENOSPC.
    #[error("there are {limit} mappings already; unmap something, or map larger ranges")]
    Limit {
        /// How many there may be.
        limit: u32,
    },
    /// The memory is not registered (EFAULT), or is being unregistered (ENXIO).
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The pieces given do not add up to the range. EINVAL.
    #[error("{given:#x} bytes of memory were given for a range of {bytes:#x}")]
    Pieces {
        /// Bytes of memory.
        given: u64,
        /// Bytes of the range.
        bytes: u64,
    },
    /// The mappings would lead to too many pieces of memory together. ENOSPC.
    #[error(
        "{pieces} pieces of memory are needed beside {used} that are mapped, and the limit is {limit}; map less, map the same \
         memory fewer times, or choose larger pieces"
    )]
    PieceLimit {
        /// Pieces that the mapping leads to.
        pieces: u64,
        /// Pieces that other mappings lead to.
        used: u64,
        /// How many there may be.
        limit: u64,
    },
    /// Memory that is supplied on demand would have too many pieces. ENOSPC.
    #[error("{bytes:#x} bytes are more than {limit} pieces of {piece}; choose larger pieces")]
    TooManyPieces {
        /// The length asked for.
        bytes: u64,
        /// The size of a piece.
        piece: PageShift,
        /// How many there may be.
        limit: u64,
    },
    /// Memory that is supplied on demand is in pieces that end behind the last byte a 64-bit address has. EINVAL.
    #[error(
        "{bytes:#x} bytes, {skip:#x} into a piece of {piece}, take pieces of more than 2^64 bytes; choose smaller pieces"
    )]
    PiecesTooLarge {
        /// Bytes of the first piece that lie before the mapping.
        skip: u64,
        /// The length asked for.
        bytes: u64,
        /// The size of a piece.
        piece: PageShift,
    },
    /// The unmap would cut a mapping in two. EINVAL.
    #[error("the mapping of {bytes:#x} bytes at {iova} reaches out of the range; unmap all of it or nothing")]
    Splits {
        /// Where that mapping starts.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
}

impl IovaMapError {
    /// EINVAL, EEXIST, ENOSPC, EFAULT or ENXIO, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Exists { .. } => Errno::EEXIST,
            Self::Limit { .. } | Self::TooManyPieces { .. } | Self::PieceLimit { .. } => Errno::ENOSPC,
            Self::Memory(error) => error.errno(),
            _ => Errno::EINVAL,
        }
    }
}

/// Why memory behind a mapping could not be had at its first use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the memory behind the mapping could not be had: {errno}")]
pub struct SupplyError {
    /// What stood in the way.
    pub errno: Errno,
}

/// Why an access was refused. Nothing is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IovaAccessError {
    /// Zero bytes. EINVAL.
    #[error("an access of no bytes at {iova}")]
    Empty {
        /// The start asked for.
        iova: Iova,
    },
    /// The range passes 2^64. EINVAL.
    #[error("{iova} + {bytes:#x} bytes passes 2^64")]
    Wraps {
        /// The start asked for.
        iova: Iova,
        /// The length asked for.
        bytes: u64,
    },
    /// Nothing is mapped there. EFAULT.
    #[error("nothing is mapped at {iova}")]
    Unmapped {
        /// The first such byte.
        iova: Iova,
    },
    /// The mapping does not allow that. EACCES.
    #[error("the mapping at {iova} does not allow {access:?}")]
    Protected {
        /// The first such byte.
        iova: Iova,
        /// What was asked for.
        access: Access,
    },
    /// The mapping is going away. ENXIO.
    #[error("the mapping at {iova} is being unmapped")]
    Closing {
        /// The first such byte.
        iova: Iova,
    },
    /// Memory that was to be had at first use could not be had. Its errno.
    #[error("at {iova}: {error}")]
    Supply {
        /// The first byte of the mapping asked for.
        iova: Iova,
        /// What stood in the way.
        error: SupplyError,
    },
    /// What was supplied at first use is not registered (EFAULT) or being unregistered (ENXIO).
    #[error(transparent)]
    Memory(#[from] MapError),
}

impl IovaAccessError {
    /// EINVAL, EFAULT, EACCES, ENXIO, or what stood in the way, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Empty { .. } | Self::Wraps { .. } => Errno::EINVAL,
            Self::Unmapped { .. } => Errno::EFAULT,
            Self::Protected { .. } => Errno::EACCES,
            Self::Closing { .. } => Errno::ENXIO,
            Self::Supply { error, .. } => error.errno,
            Self::Memory(error) => error.errno(),
        }
    }
}
