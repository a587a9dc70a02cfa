//! Errors from initialising a back end.

use prereg::{Errno, PinError, UserRange};

use crate::pagemap::PagemapError;

/// A back end could not be initialised. Nothing is left behind.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The system forbids io_uring to this user.
    #[error(
        "io_uring is forbidden here (EPERM): /proc/sys/kernel/io_uring_disabled must be 0 (or 1, for root and the group of \
         io_uring_group), and a container's seccomp filter must allow io_uring_setup"
    )]
    Forbidden,
    /// The kernel has no io_uring, or none with sparse buffer tables.
    #[error(
        "this kernel's io_uring cannot hold a sparse buffer table ({errno} from {during}); Linux 5.19 or newer is needed"
    )]
    TooOld {
        /// The call that failed.
        during: &'static str,
        /// The system's number.
        errno: Errno,
    },
    /// A ring does not fit: it is charged to RLIMIT_MEMLOCK too.
    #[error(
        "no memory for an io_uring instance under the locked-memory limit ({}); raise RLIMIT_MEMLOCK (ulimit -l) or grant \
         CAP_IPC_LOCK", limit_text(*.limit)
    )]
    NoMemory {
        /// The soft limit in bytes; `None` when unlimited.
        limit: Option<u64>,
    },
    /// Another system call failed.
    #[error("{during} failed with {errno}")]
    Os {
        /// The call that failed.
        during: &'static str,
        /// The system's number.
        errno: Errno,
    },
    /// The page map cannot be read.
    #[error(transparent)]
    Pagemap(#[from] PagemapError),
    /// Physical addresses were required and are hidden from this user.
    #[error(
        "physical addresses are hidden from this user: /proc/self/pagemap shows page frames only with CAP_SYS_ADMIN; run \
         with it, or use (slot, offset) addresses"
    )]
    FramesHidden,
}

prereg::debug_as_display!(BackendError);

/// The error for a pin in a child of `fork`.
pub(crate) const fn pinned_by_parent(range: UserRange) -> PinError {
    PinError::Os {
        ua: range.first(),
        errno: Errno::EPERM,
        during: "pinning in a child of the process that made the back end",
    }
}

fn limit_text(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10))
}

impl BackendError {
    /// EPERM, ENOMEM, or the system's errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Forbidden | Self::FramesHidden => Errno::EPERM,
            Self::TooOld { errno, .. } | Self::Os { errno, .. } => *errno,
            Self::NoMemory { .. } => Errno::ENOMEM,
            Self::Pagemap(error) => error.errno(),
        }
    }

    /// The error for `errno` from making a ring.
    pub(crate) fn of_ring(during: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES => Self::Forbidden,
            Errno::ENOSYS | Errno::EINVAL => Self::TooOld { during, errno },
            Errno::ENOMEM => Self::NoMemory { limit: crate::sys::memlock_limit().0 },
            errno => Self::Os { during, errno },
        }
    }
}
