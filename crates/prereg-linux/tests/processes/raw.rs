//! System calls that change memory and processes behind the library's back.
#![expect(unsafe_code, reason = "tests break promises on purpose, with raw calls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use prereg_linux::GuestMemory;

/// A mapping of a test, unmapped when dropped.
pub(crate) struct Area {
    pub(crate) start: *mut u8,
    pub(crate) bytes: usize,
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn map(at: *mut u8, bytes: usize, protection: i32, flags: i32, fd: i32) -> *mut u8 {
    // SAFETY: callers place nothing over memory that Rust uses.
    let start = unsafe { libc::mmap(at.cast(), bytes, protection, flags, fd, 0) };
    assert!(start != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    start.cast()
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

impl Area {
    /// Private anonymous memory.
    pub(crate) fn anonymous(bytes: usize) -> Self {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self { start: map(ptr::null_mut(), bytes, READ_WRITE, flags, -1), bytes }
    }

    /// A shared mapping of a whole file.
    pub(crate) fn shared(fd: BorrowedFd<'_>, bytes: usize) -> Self {
        let start = map(ptr::null_mut(), bytes, READ_WRITE, libc::MAP_SHARED, fd.as_raw_fd());
        Self { start, bytes }
    }

    /// A file mapped `times` over, contiguously: a large range with little memory.
    pub(crate) fn repeated(fd: BorrowedFd<'_>, file_bytes: usize, times: usize, more: usize) -> Self {
        let bytes = file_bytes * times + more;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let area = Self { start: map(ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1), bytes };
        for offset in (0..bytes).step_by(file_bytes) {
            let part = file_bytes.min(bytes - offset);
            let at = area.start.wrapping_add(offset);
            map(at, part, READ_WRITE, libc::MAP_SHARED | libc::MAP_FIXED, fd.as_raw_fd());
        }
        area
    }

    /// As memory that can be registered. The area must outlive every region registered from it.
    pub(crate) fn memory(&self) -> GuestMemory {
        // SAFETY: mapped while the area exists; the tests break the other duties on purpose.
        unsafe { GuestMemory::from_raw(self.start, self.bytes) }
    }

    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.bytes);
        self.start.wrapping_add(offset)
    }

    pub(crate) fn protect(&self, offset: usize, bytes: usize, protection: i32) {
        // SAFETY: a part of the area.
        checked(unsafe { libc::mprotect(self.at(offset).cast(), bytes, protection) }).unwrap();
    }

    pub(crate) fn advise(&self, offset: usize, bytes: usize, advice: i32) {
        // SAFETY: a part of the area.
        checked(unsafe { libc::madvise(self.at(offset).cast(), bytes, advice) }).unwrap();
    }

    pub(crate) fn unmap(&self, offset: usize, bytes: usize) {
        // SAFETY: a part of the area.
        checked(unsafe { libc::munmap(self.at(offset).cast(), bytes) }).unwrap();
    }

    /// Fresh anonymous memory over a part of the area.
    pub(crate) fn replace(&self, offset: usize, bytes: usize) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        map(self.at(offset), bytes, READ_WRITE, flags, -1);
    }

    /// Writes one byte into every page.
    pub(crate) fn touch(&self, value: u8) {
        for offset in (0..self.bytes).step_by(4096) {
            // SAFETY: inside the area, which is writable when this is called.
            unsafe { self.at(offset).write_volatile(value) };
        }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the whole area; unmapping parts twice is no error.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// A memfd that may be sealed, of a length.
pub(crate) fn memfd(bytes: u64) -> OwnedFd {
    // SAFETY: the name is a literal that ends in NUL.
    let fd =
        unsafe { libc::memfd_create(c"prereg-test".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", io::Error::last_os_error());
    // SAFETY: made above, without another owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: takes no pointer.
    checked(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes as i64) }).unwrap();
    fd
}

/// Tries to forbid all writing to a memfd. EBUSY while a page of it is pinned or it is mapped writable.
pub(crate) fn seal_writes(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no pointer.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) })
}

/// Punches a hole into a file.
pub(crate) fn punch_hole(fd: BorrowedFd<'_>, offset: i64, bytes: i64) {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes no pointer.
    checked(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, bytes) }).unwrap();
}

/// Sets RLIMIT_MEMLOCK of this process, soft and hard.
pub(crate) fn limit_memlock(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: `limit` is only read.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }).unwrap();
}

/// A child that waits to be killed. Only for a process with one thread.
pub(crate) struct Sleeper(libc::pid_t);

impl Sleeper {
    pub(crate) fn fork() -> Self {
        // SAFETY: this process has one thread, and the child calls nothing but `pause`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            loop {
                // SAFETY: takes nothing.
                unsafe { libc::pause() };
            }
        }
        Self(pid)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        // SAFETY: takes no pointer; the child is ours and not yet waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: a null status is allowed.
        unsafe { libc::waitpid(self.0, ptr::null_mut(), 0) };
    }
}
