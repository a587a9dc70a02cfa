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

    /// The first extent from `from` on in which every byte has a page, as its start and its end; `None` when there is none.
    /// Takes as long as the kernel's walk to the end of the extent, so keep it while going through a file.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>, SharedError> {
        let file = match &self.source {
            Source::Full => return Ok(Some((from, u64::MAX))),
            Source::Unknown => return Ok(None),
            Source::Seek(file) => file.as_fd(),
        };
        let Some(data) = found(syscalls::seek(file, SeekFrom::Data(from)))? else { return Ok(None) };
        // A file ends in a hole; one that was truncated in the meantime ends before `data`.
        let hole = found(syscalls::seek(file, SeekFrom::Hole(data)))?;
        Ok(hole.filter(|hole| *hole > data).map(|hole| (data, hole)))
    }
}

fn found(sought: Result<u64, Errno>) -> Result<Option<u64>, SharedError> {
    match sought {
        Ok(at) => Ok(Some(at)),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(SharedError::Os { during: "lseek(SEEK_DATA)", errno }),
    }
}
