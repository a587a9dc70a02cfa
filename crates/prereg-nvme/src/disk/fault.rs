//! What can go wrong with a request, and with a disk as a whole.

use std::path::PathBuf;

use prereg::Errno;
use prereg_vfio_user::server::DmaError;

/// Why one request failed. The disk goes on.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskFault {
    /// The storage failed.
    #[error("the storage failed with {0}")]
    Io(Errno),
    /// There is no room below for what was written.
    #[error("the storage below the disk is full")]
    NoSpace,
    /// The disk is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A compare found a difference.
    #[error("the data differ")]
    Mismatch,
    /// The range is not one of whole blocks inside the disk.
    #[error("the range is not one of whole blocks inside the disk")]
    Range,
    /// The guest memory could not be reached.
    #[error("the guest memory could not be reached: {0}")]
    Data(DmaError),
    /// An earlier write could not be made durable, so nothing can be promised about any of them.
    #[error("an earlier write could not be made durable ({0}); the disk must be opened again")]
    Lost(Errno),
}

prereg::debug_as_display!(DiskFault);

impl DiskFault {
    /// EIO, ENOSPC, EROFS, EILSEQ for a mismatch, EINVAL for a range, or what was met.
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

/// Why a disk cannot be opened, or a queue of it cannot go on.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The file cannot be opened or asked.
    #[error("{path}: cannot {during}: {}", system_text(*errno), path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The call.
        during: &'static str,
        /// The system's number.
        errno: Errno,
    },
    /// Neither a regular file nor a block device.
    #[error("{path}: a disk must be a regular file or a block device", path = .path.display())]
    Kind {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it.
    #[error(
        "{path}: in use by another process; two writers would destroy it (open it read-only in both to share it)",
        path = .path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The block asked for does not suit the file.
    #[error("{path}: blocks of {asked} bytes cannot be had, {why}", path = .path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// Bytes a block.
        asked: u64,
        /// What stands against it.
        why: &'static str,
    },
    /// Less than one block.
    #[error("{path}: {bytes} bytes are less than one block", path = .path.display())]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// `Direct::On` was asked for and the file system has none.
    #[error("{path}: direct I/O was asked for and cannot be had here ({errno})", path = .path.display())]
    NotDirect {
        /// The file.
        path: PathBuf,
        /// The system's number.
        errno: Errno,
    },
    /// A disk in memory cannot be of this size.
    #[error(
        "no disk in memory of {bytes} bytes in blocks of 2^{block_shift} ({errno}); blocks are 2^9 to 2^12 bytes"
    )]
    Memory {
        /// The size asked for.
        bytes: u64,
        /// The block asked for.
        block_shift: u8,
        /// EINVAL, or ENOMEM.
        errno: Errno,
    },
    /// The queue's ring cannot be made, or broke.
    #[error("the I/O ring failed during {during}: {errno}")]
    Ring {
        /// The call.
        during: &'static str,
        /// The system's number.
        errno: Errno,
    },
}

prereg::debug_as_display!(DiskError);

impl DiskError {
    /// The system's number, or the one that says it best.
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

/// The system's number in words.
fn system_text(errno: Errno) -> String {
    std::io::Error::from_raw_os_error(errno.raw()).to_string()
}
