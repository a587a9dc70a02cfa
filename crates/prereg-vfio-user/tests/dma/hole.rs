//! What only a system call can do to a file.
#![expect(unsafe_code, reason = "fallocate has no safe name in std")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// Takes the pages of `[offset, offset + bytes)` out of the file; its length stays.
pub(crate) fn punch(fd: BorrowedFd<'_>, offset: u64, bytes: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes no pointer; what it takes away is file memory that no Rust value lives in.
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
