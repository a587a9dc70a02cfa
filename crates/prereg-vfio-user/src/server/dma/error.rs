//! Errors of a client's memory.

use prereg::{Errno, Iova, RegisterError};
use prereg_iommu::iova::{IovaAccessError, IovaMapError};
use prereg_linux::SharedError;

/// Errors of a device's access. Nothing is held; a write may have been performed in part.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// Nothing is mapped there. EFAULT.
    #[error("nothing is mapped at {iova}")]
    Unmapped {
        /// The first such byte.
        iova: Iova,
    },
    /// The mapping does not allow the access. EACCES.
    #[error("the mapping at {iova} does not allow that access")]
    Protected {
        /// The first such byte.
        iova: Iova,
    },
    /// The mapping is being unmapped. ENXIO.
    #[error("the mapping at {iova} is being unmapped")]
    Closing {
        /// The first such byte.
        iova: Iova,
    },
    /// The client truncated the file behind the memory. EFAULT.
    #[error("the client truncated the file behind {iova}")]
    Gone {
        /// The start of the access.
        iova: Iova,
    },
    /// The client refused the transfer. Its errno.
    #[error("the client answered {0}")]
    Remote(Errno),
    /// The client is gone. ENXIO.
    #[error("the client is gone")]
    Disconnected,
    /// The driver has not enabled bus mastering. EACCES.
    #[error("the driver has not enabled bus mastering in the command register")]
    NotBusMaster,
    /// Memory that only the client can access, requested from the thread that receives its replies. EDEADLK.
    #[error(
        "this memory is accessed through the client, whose replies this thread receives; access it from another thread"
    )]
    WouldDeadlock,
    /// An offset or length outside of the guard, or a misaligned address. EINVAL.
    #[error("{bytes:#x} bytes at offset {offset:#x} are not inside the guard, or not aligned")]
    Range {
        /// The offset or address.
        offset: u64,
        /// The length asked for.
        bytes: u64,
    },
    /// The memory could not be registered at first use, or a copy failed. Its errno.
    #[error("the memory behind {iova} could not be registered or copied: {errno}")]
    Memory {
        /// The start of the access.
        iova: Iova,
        /// The cause.
        errno: Errno,
    },
}

prereg::debug_as_display!(DmaError);

impl DmaError {
    /// The errno, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Unmapped { .. } | Self::Gone { .. } => Errno::EFAULT,
            Self::Protected { .. } | Self::NotBusMaster => Errno::EACCES,
            Self::Closing { .. } | Self::Disconnected => Errno::ENXIO,
            Self::Remote(errno) | Self::Memory { errno, .. } => *errno,
            Self::WouldDeadlock => Errno::from_raw(libc::EDEADLK),
            Self::Range { .. } => Errno::EINVAL,
        }
    }
}

impl From<IovaAccessError> for DmaError {
    fn from(error: IovaAccessError) -> Self {
        match error {
            IovaAccessError::Unmapped { iova } => Self::Unmapped { iova },
            IovaAccessError::Protected { iova, .. } => Self::Protected { iova },
            IovaAccessError::Closing { iova } => Self::Closing { iova },
            IovaAccessError::Empty { iova } => Self::Range { offset: iova.raw(), bytes: 0 },
            IovaAccessError::Wraps { iova, bytes } => Self::Range { offset: iova.raw(), bytes },
            IovaAccessError::Provider { iova, error } => Self::Memory { iova, errno: error.errno },
            other => Self::Memory { iova: Iova::new(0), errno: other.errno() },
        }
    }
}

/// Errors of a DMA_MAP. Nothing is mapped, registered or kept open.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapMemoryError {
    /// The range of I/O virtual addresses cannot be mapped. Its errno.
    #[error(transparent)]
    Map(#[from] IovaMapError),
    /// The descriptor is no memory, is too short, or is not open for the access. Its errno.
    #[error(transparent)]
    Memory(#[from] SharedError),
    /// The memory cannot be registered, mostly because of a limit. Its errno.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The offset in the file is not page-aligned. EINVAL.
    #[error("offset {offset:#x} of the file is not page-aligned")]
    Offset {
        /// The offset.
        offset: u64,
    },
    /// The limit of all clients together. ENOMEM.
    #[error(
        "{bytes:#x} bytes of memory are needed beside {used:#x} in use, and the limit for all clients is {limit:#x}"
    )]
    Limit {
        /// Bytes to be registered.
        bytes: u64,
        /// Bytes registered or promised already.
        used: u64,
        /// The limit.
        limit: u64,
    },
    /// The limit of one client. ENOMEM.
    #[error(
        "{bytes:#x} bytes of memory of one file are needed for a client that may have {left:#x} beside its other files; raise \
         the limit for a client"
    )]
    Quota {
        /// Bytes of the file that would count for the client, including those registered or promised for any client.
        bytes: u64,
        /// Bytes left to the client besides its other files.
        left: u64,
    },
    /// Too many files of one client. ENOSPC.
    #[error("the client uses {0} files already, as many as it may")]
    TooManyFiles(usize),
    /// Too many regions, or mappings of this process, for one client's files, because of holes punched into them. ENOSPC.
    #[error(
        "the client's files are in too many fragments, because holes were punched into them all over; unmap them whole"
    )]
    TooScattered,
    /// The client is gone. ENXIO.
    #[error("the client is gone")]
    Disconnected,
}

prereg::debug_as_display!(MapMemoryError);

impl MapMemoryError {
    /// The errno, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Map(error) => error.errno(),
            Self::Memory(error) => error.errno(),
            Self::Register(error) => error.errno(),
            Self::Offset { .. } => Errno::EINVAL,
            Self::Limit { .. } | Self::Quota { .. } => Errno::ENOMEM,
            Self::TooManyFiles(_) | Self::TooScattered => Errno::ENOSPC,
            Self::Disconnected => Errno::ENXIO,
        }
    }
}

/// Errors of access through the client.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The client replied with an error.
    #[error("the client answered {0}")]
    Refused(Errno),
    /// The client is gone.
    #[error("the client is gone")]
    Disconnected,
    /// The calling thread is the one that receives the client's replies.
    #[error("the calling thread is the one that receives the client's replies")]
    WouldDeadlock,
}

prereg::debug_as_display!(RemoteError);

impl From<RemoteError> for DmaError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Refused(errno) => Self::Remote(errno),
            RemoteError::Disconnected => Self::Disconnected,
            RemoteError::WouldDeadlock => Self::WouldDeadlock,
        }
    }
}
