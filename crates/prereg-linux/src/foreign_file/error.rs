//! Errors of memory behind foreign descriptors.

use prereg::{Errno, PageShift};

/// A descriptor is not memory, or its memory cannot be accessed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SharedError {
    /// A socket, a directory, a device, a file on a disk. ENODEV.
    #[error(
        "the descriptor is {what}, not memory that can be pinned; hand over a memfd or a file of tmpfs or hugetlbfs"
    )]
    NotMemory {
        /// The kind of file.
        what: &'static str,
    },
    /// The descriptor is not open for the required access. EACCES.
    #[error("the descriptor is not open for {wanted}; open the file for reading and writing")]
    Mode {
        /// The required access.
        wanted: &'static str,
    },
    /// The file is sealed against writing, and pinned pages can be written. EPERM.
    #[error(
        "the memory is sealed against writing, so no device may use it; omit F_SEAL_WRITE and F_SEAL_FUTURE_WRITE"
    )]
    Sealed,
    /// The file ends before the range. EINVAL.
    #[error("{bytes:#x} bytes at offset {offset:#x} reach past the {length:#x} bytes of the file")]
    Short {
        /// The offset requested.
        offset: u64,
        /// The length requested.
        bytes: u64,
        /// The file's length.
        length: u64,
    },
    /// The range is empty or not made of whole pages. EINVAL.
    #[error("{bytes:#x} bytes at offset {offset:#x} of the file are not whole {page} pages")]
    Misaligned {
        /// The offset requested.
        offset: u64,
        /// The length requested.
        bytes: u64,
        /// The page size of the file.
        page: PageShift,
    },
    /// The access reaches outside of the memory or is not aligned. EINVAL.
    #[error(
        "{len} bytes at offset {offset:#x} are not inside the {bytes:#x} bytes of the memory, or not aligned"
    )]
    OutOfBounds {
        /// Its offset.
        offset: u64,
        /// Its length.
        len: u64,
        /// The length of the memory.
        bytes: u64,
    },
    /// The file was truncated, or no page is available for it. EFAULT.
    #[error("the memory is gone: its file was truncated, or has no page available there")]
    Gone,
    /// A system call failed.
    #[error("{during} failed with {errno}")]
    Os {
        /// The call.
        during: &'static str,
        /// The system's errno.
        errno: Errno,
    },
}

prereg::debug_as_display!(SharedError);

impl SharedError {
    /// ENODEV, EACCES, EPERM, EINVAL or EFAULT as documented at each kind, else the system's errno.
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
