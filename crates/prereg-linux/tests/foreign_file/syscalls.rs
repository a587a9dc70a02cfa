//! Changes to files that need system calls.
#![expect(unsafe_code, reason = "fallocate and seals have no safe names in std")]

use std::os::fd::{AsRawFd, BorrowedFd};

/// Removes the pages of `[offset, offset + bytes)` from the file; its length stays.
pub(crate) fn punch(fd: BorrowedFd<'_>, offset: u64, bytes: u64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, bytes) = (libc::off_t::try_from(offset).unwrap(), libc::off_t::try_from(bytes).unwrap());
    // SAFETY: takes no pointer; the removed file memory contains no Rust value.
    let result = unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, bytes) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Seals the file against new writable mappings. `false` before Linux 5.1.
pub(crate) fn seal_against_writing(fd: BorrowedFd<'_>) -> bool {
    const F_SEAL_FUTURE_WRITE: libc::c_int = 0x10;
    // SAFETY: takes no pointer.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0 }
}
