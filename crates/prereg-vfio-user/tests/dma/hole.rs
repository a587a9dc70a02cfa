//! Punches holes into files by a system call.
#![expect(unsafe_code, reason = "fallocate has no safe name in std")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// Removes the pages of `[offset, offset + bytes)` from the file; its length stays.
pub(crate) fn punch(fd: BorrowedFd<'_>, offset: u64, bytes: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes no pointer; the removed file memory contains no Rust value.
    let result = unsafe {
        libc::fallocate(
            fd.as_raw_fd(),
            mode,
            libc::off_t::try_from(offset).unwrap(),
            libc::off_t::try_from(bytes).unwrap(),
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
