//! What can go wrong between a device and its client's memory.

use prereg::{Errno, Iova, RegisterError};
use prereg_iommu::iova::{IovaAccessError, IovaMapError};
use prereg_linux::SharedError;

/// Why a device could not reach memory. Nothing is held then; a write may have been done in part.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// Nothing is mapped there. EFAULT.
    #[error("nothing is mapped at {iova}")]
    Unmapped {
        /// The first such byte.
        iova: Iova,
    },
    /// The mapping does not allow it. EACCES.
    #[error("the mapping at {iova} does not allow that access")]
    Protected {
        /// The first such byte.
        iova: Iova,
    },
    /// The mapping is going away. ENXIO.
    #[error("the mapping at {iova} is being unmapped")]
    Closing {
        /// The first such byte.
        iova: Iova,
    },
    /// The client made the file behind the memory shorter. EFAULT.
    #[error("the client took away the memory behind {iova}")]
    Gone {
        /// Where the access began.
        iova: Iova,
    },
    /// The client refused to move the bytes. Its errno.
    #[error("the client answered {0}")]
    Remote(Errno),
    /// The client is gone. ENXIO.
    #[error("the client is gone")]
    Disconnected,
    /// Memory that only the client can reach cannot be reached from the thread that talks with it. EDEADLK.
    #[error(
        "this memory is reached through the client's thread, which is the one that asks; ask from another thread"
    )]
    WouldDeadlock,
    /// An offset or length outside of the hold, or an address that is not aligned. EINVAL.
    #[error("{bytes:#x} bytes at offset {offset:#x} are not inside the hold, or not aligned")]
    Range {
        /// The offset or address asked for.
        offset: u64,
        /// The length asked for.
        bytes: u64,
    },
    /// The memory could not be registered at its first use, or the system refused a copy. Its errno.
    #[error("the memory behind {iova} could not be had: {errno}")]
    Memory {
        /// Where the access began.
        iova: Iova,
        /// What stood in the way.
        errno: Errno,
    },
}

impl DmaError {
    /// The error number, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Unmapped { .. } | Self::Gone { .. } => Errno::EFAULT,
            Self::Protected { .. } => Errno::EACCES,
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

/// Why a DMA_MAP was refused. Nothing is mapped, registered or kept open for it then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapMemoryError {
    /// The range of I/O virtual addresses is not to be had. Its errno.
    #[error(transparent)]
    Map(#[from] IovaMapError),
    /// The descriptor is no memory, not enough of it, or not open for what the device is to do. Its errno.
    #[error(transparent)]
    Memory(#[from] SharedError),
    /// The memory cannot be registered: a limit, most of the time. Its errno.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// The offset in the file is not the start of a page. EINVAL.
    #[error("offset {offset:#x} of the file is not the start of a page")]
    Offset {
        /// The offset.
        offset: u64,
    },
    /// More than all clients together may have registered. ENOMEM.
    #[error(
        "{bytes:#x} bytes of memory are needed beside {used:#x} in use, and the limit for all clients is {limit:#x}"
    )]
    Limit {
        /// Bytes that would have to be registered.
        bytes: u64,
        /// Bytes registered or promised already.
        used: u64,
        /// What all clients together may have.
        limit: u64,
    },
    /// More than one client may have registered. ENOMEM.
    #[error(
        "{bytes:#x} bytes of memory of one file are needed for a client that may have {left:#x} beside its other files; raise \
         the limit for a client"
    )]
    Quota {
        /// Bytes of the file that would count for the client, those included that are registered or promised already, for
        /// whichever client.
        bytes: u64,
        /// Bytes that the client may have beside its other files.
        left: u64,
    },
    /// More files than one client may hand over. ENOSPC.
    #[error("the client handed over {0} files already")]
    TooManyFiles(usize),
    /// Memory that would take more regions, or mappings of this process, than one client may have: holes were punched into it
    /// all over. ENOSPC.
    #[error(
        "the client's files are in too many fragments, because holes were punched into them all over; unmap them whole"
    )]
    TooScattered,
    /// The client is gone. ENXIO.
    #[error("the client is gone")]
    Disconnected,
}

impl MapMemoryError {
    /// The error number, as said at each kind.
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

/// Why a client did not move bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// It answered with an error.
    #[error("the client answered {0}")]
    Refused(Errno),
    /// It is gone.
    #[error("the client is gone")]
    Disconnected,
    /// The thread that asks is the one that talks with the client.
    #[error("the thread that asks is the one that talks with the client")]
    WouldDeadlock,
}

impl From<RemoteError> for DmaError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Refused(errno) => Self::Remote(errno),
            RemoteError::Disconnected => Self::Disconnected,
            RemoteError::WouldDeadlock => Self::WouldDeadlock,
        }
    }
}
