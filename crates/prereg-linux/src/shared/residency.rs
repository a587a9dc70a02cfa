//! Which parts of a shared file have pages, as far as its file system says.
//!
//! tmpfs answers SEEK_DATA and SEEK_HOLE. They move the offset of the open file, which the descriptor's sender shares, so the
//! file is opened once more by its name under /proc. Hugetlbfs does not know holes; it counts the file's pages instead,
//! which tells a file that has all of them. Where neither can be asked the file counts as empty: what is registered later
//! is asked for then.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use prereg::Errno;

use super::calls;
use super::error::SharedError;

/// Which parts of a shared file have pages. Others may add and remove pages at any time.
#[derive(Debug)]
pub struct Residency {
    how: How,
}

#[derive(Debug)]
enum How {
    Seek(File),
    /// Every page is there.
    Full,
    Unknown,
}

impl Residency {
    pub(super) fn of(fd: BorrowedFd<'_>, seeks: bool) -> Result<Self, SharedError> {
        let how = if seeks {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
                .open(path)
                .map_or(How::Unknown, How::Seek)
        } else {
            let state = calls::stat(fd).map_err(SharedError::os("statx"))?;
            // Blocks are counted in 512 bytes on every file system.
            if state.stx_blocks.saturating_mul(512) >= state.stx_size { How::Full } else { How::Unknown }
        };
        Ok(Self { how })
    }

    /// The first stretch at `from` or behind it of which every byte has a page: where it begins and ends. `None` when there is
    /// none. Takes as long as the kernel takes to walk to its end, so a caller that goes through a file keeps that.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn next_data(&self, from: u64) -> Result<Option<(u64, u64)>, SharedError> {
        let file = match &self.how {
            How::Full => return Ok(Some((from, u64::MAX))),
            How::Unknown => return Ok(None),
            How::Seek(file) => file.as_fd(),
        };
        let Some(data) = found(calls::seek(file, from, libc::SEEK_DATA))? else { return Ok(None) };
        // A file has a hole at its end. One that was made shorter meanwhile ends before `data`.
        let hole = found(calls::seek(file, data, libc::SEEK_HOLE))?;
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
