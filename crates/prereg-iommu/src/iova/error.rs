//! Errors of map, unmap and access. Nothing has changed then.

use prereg::{Access, Errno, Iova, MapError, PageShift};

/// Errors of a map or unmap. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
    /// Outside the aperture. EINVAL.
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
    /// The range overlaps a mapping. EEXIST.
    #[error("{iova} is mapped already ({bytes:#x} bytes there); unmap it first")]
    Exists {
        /// The start of that mapping.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// Too many mappings. ENOSPC.
    #[error("there are {limit} mappings already; unmap something, or map larger ranges")]
    Limit {
        /// The limit.
        limit: u32,
    },
    /// The memory is not registered (EFAULT), or is being unregistered (ENXIO).
    #[error(transparent)]
    Memory(#[from] MapError),
    /// The given segments do not add up to the range. EINVAL.
    #[error("{given:#x} bytes of memory were given for a range of {bytes:#x}")]
    LengthMismatch {
        /// Bytes of memory.
        given: u64,
        /// Bytes of the range.
        bytes: u64,
    },
    /// All mappings together would have too many segments of memory. ENOSPC.
    #[error(
        "{segments} segments of memory are needed beside {used} that are mapped, and the limit is {limit}; map less, map the same \
         memory fewer times, or choose larger blocks"
    )]
    SegmentLimit {
        /// Segments of the new mapping.
        segments: u64,
        /// Segments of the other mappings.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// Memory on demand would have too many blocks. ENOSPC.
    #[error("{bytes:#x} bytes are more than {limit} blocks of {block}; choose larger blocks")]
    TooManyBlocks {
        /// The length asked for.
        bytes: u64,
        /// The size of a block.
        block: PageShift,
        /// The limit.
        limit: u64,
    },
    /// Memory on demand has blocks that end above 2^64. EINVAL.
    #[error(
        "{bytes:#x} bytes, {skip:#x} into a block of {block}, take blocks of more than 2^64 bytes; choose smaller blocks"
    )]
    BlocksTooLarge {
        /// The offset of the mapping in its first block.
        skip: u64,
        /// The length asked for.
        bytes: u64,
        /// The size of a block.
        block: PageShift,
    },
    /// The unmap would split a mapping. EINVAL.
    #[error(
        "the mapping of {bytes:#x} bytes at {iova} is only partly in the range; unmap all of it or nothing"
    )]
    Splits {
        /// The start of that mapping.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
}

prereg::debug_as_display!(IovaMapError);

impl IovaMapError {
    /// EINVAL, EEXIST, ENOSPC, EFAULT or ENXIO, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Exists { .. } => Errno::EEXIST,
            Self::Limit { .. } | Self::TooManyBlocks { .. } | Self::SegmentLimit { .. } => Errno::ENOSPC,
            Self::Memory(error) => error.errno(),
            _ => Errno::EINVAL,
        }
    }
}

/// The error of a [`MemoryProvider`](super::MemoryProvider).
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory behind the mapping could not be provided: {errno}")]
pub struct ProviderError {
    /// The cause.
    pub errno: Errno,
}

prereg::debug_as_display!(ProviderError);

/// Errors of an access. Nothing is held.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
    /// The mapping does not allow the access. EACCES.
    #[error("the mapping at {iova} does not allow {access:?}")]
    Protected {
        /// The first such byte.
        iova: Iova,
        /// The access asked for.
        access: Access,
    },
    /// The mapping is being unmapped. ENXIO.
    #[error("the mapping at {iova} is being unmapped")]
    Closing {
        /// The first such byte.
        iova: Iova,
    },
    /// The memory could not be provided. The provider's errno.
    #[error("at {iova}: {error}")]
    Provider {
        /// The first byte of the mapping asked for.
        iova: Iova,
        /// The cause.
        error: ProviderError,
    },
    /// The provided memory is not registered (EFAULT) or being unregistered (ENXIO).
    #[error(transparent)]
    Memory(#[from] MapError),
}

prereg::debug_as_display!(IovaAccessError);

impl IovaAccessError {
    /// EINVAL, EFAULT, EACCES, ENXIO or the provider's, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Empty { .. } | Self::Wraps { .. } => Errno::EINVAL,
            Self::Unmapped { .. } => Errno::EFAULT,
            Self::Protected { .. } => Errno::EACCES,
            Self::Closing { .. } => Errno::ENXIO,
            Self::Provider { error, .. } => error.errno,
            Self::Memory(error) => error.errno(),
        }
    }
}
