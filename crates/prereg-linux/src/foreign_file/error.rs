//! Why a descriptor is no memory, or its memory cannot be reached.

use prereg::{Errno, PageShift};

/// Why a descriptor is no memory, or its memory cannot be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// It is a socket, a directory, a device, a file on a disk. ENODEV.
    #[error(
        "the descriptor is {what}, not memory that can be pinned; hand over a memfd or a file of tmpfs or hugetlbfs"
    )]
    NotMemory {
        /// What it is.
        what: &'static str,
    },
    /// The descriptor does not allow what was asked for. EACCES.
    #[error("the descriptor is not open for {wanted}; open the file for reading and writing")]
    Mode {
        /// What it should be open for.
        wanted: &'static str,
    },
    /// The file is sealed against writing, and pinned pages can be written. EPERM.
    #[error(
        "the memory is sealed against writing, so no device may have it; leave out F_SEAL_WRITE and F_SEAL_FUTURE_WRITE"
    )]
    Sealed,
    /// The file ends before the range. EINVAL.
    #[error("{bytes:#x} bytes at offset {offset:#x} reach past the {length:#x} bytes of the file")]
    Short {
        /// The offset asked for.
        offset: u64,
        /// The length asked for.
        bytes: u64,
        /// The file's length.
        length: u64,
    },
    /// The range is empty or not made of whole pages. EINVAL.
    #[error("{bytes:#x} bytes at offset {offset:#x} of the file are not whole {page} pages")]
    Misaligned {
        /// The offset asked for.
        offset: u64,
        /// The length asked for.
        bytes: u64,
        /// The page the file is made of.
        page: PageShift,
    },
    /// A copy reaches outside of the memory, or an address is not aligned. EINVAL.
    #[error(
        "{len} bytes at offset {offset:#x} are not inside the {bytes:#x} bytes of the memory, or not aligned"
    )]
    OutOfBounds {
        /// Where the copy was to begin.
        offset: u64,
        /// Its length.
        len: u64,
        /// The memory's length.
        bytes: u64,
    },
    /// The file was made shorter, or there is no page to be had for it. EFAULT.
    #[error("the memory is gone: its file was made shorter, or has no page to be had there")]
    Gone,
    /// A system call failed.
    #[error("{during} failed with {errno}")]
    Os {
        /// The call.
        during: &'static str,
        /// The system's number.
        errno: Errno,
    },
}

impl SharedError {
    /// ENODEV, EACCES, EPERM, EINVAL or EFAULT as said at each kind, else what the system gave.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NotMemory { .. } => Errno::ENODEV,
            Self::Mode { .. } => Errno::EACCES,
            Self::Sealed => Errno::EPERM,
            Self::Short { .. } | Self::Misaligned { .. } | Self::OutOfBounds { .. } => Errno::EINVAL,
            Self::Gone => Errno::EFAULT,
            Self::Os { errno, .. } => *errno,
        }
    }

    pub(super) const fn os(during: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Os { during, errno }
    }
}
