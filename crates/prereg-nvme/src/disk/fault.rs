//! Errors of requests and of disks.

use std::path::PathBuf;

use prereg::Errno;
use prereg_vfio_user::server::DmaError;

/// An error of one request. The disk still works.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskFault {
    /// I/O error.
    #[error("the storage failed with {0}")]
    Io(Errno),
    /// The storage is full.
    #[error("the storage below the disk is full")]
    NoSpace,
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A compare found a difference.
    #[error("the data differ")]
    Mismatch,
    /// The range is not a range of whole blocks inside the disk.
    #[error("the range is not one of whole blocks inside the disk")]
    Range,
    /// Guest memory could not be reached.
    #[error("the guest memory could not be reached: {0}")]
    Data(DmaError),
    /// An earlier write could not be made durable; no flush can succeed any more.
    #[error("an earlier write could not be made durable ({0}); the disk must be opened again")]
    Lost(Errno),
}

prereg::debug_as_display!(DiskFault);

impl DiskFault {
    /// EIO, ENOSPC, EROFS, EILSEQ for a mismatch, EINVAL for a range, or the cause's error number.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io(errno) | Self::Lost(errno) => *errno,
            Self::NoSpace => Errno::ENOSPC,
            Self::ReadOnly => Errno::from_raw(libc::EROFS),
            Self::Mismatch => Errno::from_raw(libc::EILSEQ),
            Self::Range => Errno::EINVAL,
            Self::Data(error) => error.errno(),
        }
    }
}

/// An error of opening a disk, or of its queue.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// A system call on the file failed.
    #[error("{path}: cannot {during}: {}", system_text(*errno), path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system call.
        during: &'static str,
        /// The system's error number.
        errno: Errno,
    },
    /// Neither a regular file nor a block device.
    #[error("{path}: a disk must be a regular file or a block device", path = .path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Another process uses the file.
    #[error(
        "{path}: in use by another process; open it read-only in both to share it",
        path = .path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The block size is not possible for the file.
    #[error("{path}: blocks of {asked} bytes are not possible: {why}", path = .path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// The block size in bytes.
        asked: u64,
        /// The reason.
        why: &'static str,
    },
    /// Less than one block.
    #[error("{path}: {bytes} bytes are less than one block; make it larger", path = .path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// `Direct::On` was given, but the file system has no direct I/O.
    #[error("{path}: direct I/O is not supported here ({errno})", path = .path.display())]
    NotDirect {
        /// The file.
        path: PathBuf,
        /// The system's error number.
        errno: Errno,
    },
    /// A memory disk of this size is not possible.
    #[error(
        "a memory disk of {bytes} bytes in blocks of 2^{block_shift} bytes is not possible ({errno}); blocks are 2^9 to 2^12 bytes"
    )]
    Memory {
        /// The size in bytes.
        bytes: u64,
        /// The block size as a shift.
        block_shift: u8,
        /// EINVAL, or ENOMEM.
        errno: Errno,
    },
    /// The queue's ring cannot be made, or failed.
    #[error("the I/O ring failed during {during}: {errno}")]
    Ring {
        /// The system call.
        during: &'static str,
        /// The system's error number.
        errno: Errno,
    },
}

prereg::debug_as_display!(DiskError);

impl DiskError {
    /// The system's error number, or the closest one.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::File { errno, .. }
            | Self::NotDirect { errno, .. }
            | Self::Memory { errno, .. }
            | Self::Ring { errno, .. } => *errno,
            Self::Kind { .. } | Self::Block { .. } | Self::TooSmall { .. } => Errno::EINVAL,
            Self::InUse { .. } => Errno::EBUSY,
        }
    }
}

/// The error as text.
fn system_text(errno: Errno) -> String {
    std::io::Error::from_raw_os_error(errno.raw()).to_string()
}
