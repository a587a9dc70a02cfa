//! The parts of a shared file that have pages, as reported by its file system.
//!
//! tmpfs supports SEEK_DATA and SEEK_HOLE. They move the file offset, which is shared with the sender of the
//! descriptor, so the file is opened again through /proc. hugetlbfs reports no holes but counts pages, which identifies
//! a file that has all of them. If neither works the file counts as empty, and pages are allocated when memory is
//! registered.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use prereg::Errno;
use rustix::fs::SeekFrom;

use super::error::SharedError;
use super::syscalls;

/// The parts of a shared file that have pages. Other processes may add and remove pages at any time.
#[derive(Debug)]
pub struct DataExtents {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Seek(File),
    /// Every page is present.
    Full,
    Unknown,
}

impl DataExtents {
    pub(super) fn of(fd: BorrowedFd<'_>, seeks: bool) -> Result<Self, SharedError> {
        let source = if seeks {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(path)
                .map_or(Source::Unknown, Source::Seek)
        } else {
            let state = syscalls::stat(fd).map_err(SharedError::os("statx"))?;
            // Block counts are in units of 512 bytes on every file system.
            if state.stx_blocks.saturating_mul(512) >= state.stx_size {
                Source::Full
            } else {
                Source::Unknown
            }
        };
        Ok(Self { source })
    }

    /// The first byte from `from` on that has a page; `None` when there is none.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn next_data(&self, from: u64) -> Result<Option<u64>, SharedError> {
        match &self.source {
            Source::Full => Ok(Some(from)),
            Source::Unknown => Ok(None),
            Source::Seek(file) => found(syscalls::seek(file.as_fd(), SeekFrom::Data(from))),
        }
    }

    /// Bytes of `[from, to)` that have pages, counted until there are `enough`.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn bytes_within(&self, from: u64, to: u64, enough: u64) -> Result<u64, SharedError> {
        let file = match &self.source {
            Source::Full => return Ok(to - from),
            Source::Unknown => return Ok(0),
            Source::Seek(file) => file.as_fd(),
        };
        let (mut at, mut bytes) = (from, 0);
        while at < to && bytes < enough {
            let Some(data) = found(syscalls::seek(file, SeekFrom::Data(at)))?.filter(|data| *data < to)
            else {
                break;
            };
            // A file ends in a hole; one that was truncated in the meantime ends before `data`.
            let hole = found(syscalls::seek(file, SeekFrom::Hole(data)))?.unwrap_or(data).min(to);
            bytes += hole - data;
            if hole <= at {
                break;
            }
            at = hole;
        }
        Ok(bytes)
    }
}

fn found(sought: Result<u64, Errno>) -> Result<Option<u64>, SharedError> {
    match sought {
        Ok(at) => Ok(Some(at)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(SharedError::Os { during: "lseek(SEEK_DATA)", errno }),
    }
}
