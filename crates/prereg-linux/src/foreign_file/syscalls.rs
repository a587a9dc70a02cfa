//! System calls on foreign memory: status of a descriptor, copies that return an error instead of faulting, the page
//! map.
//!
//! Addresses given as numbers are accessed by the kernel only, which returns EFAULT for unmapped ones. The callers pass
//! no address to write to but inside mappings without Rust values.
#![expect(unsafe_code, reason = "system calls; every pointer handed over is made from a slice or a local")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use prereg::Errno;
use rustix::fs::{AtFlags, OFlags, SealFlags, SeekFrom, Statx, StatxFlags};

use crate::sys::{errno_from, errno_of};

fn errno() -> Errno {
    errno_of(&io::Error::last_os_error())
}

/// `statx(2)` without a request to the owner of the file system, which may never reply.
pub(super) fn stat(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let fields =
        StatxFlags::TYPE | StatxFlags::INO | StatxFlags::SIZE | StatxFlags::CTIME | StatxFlags::BLOCKS;
    rustix::fs::statx(fd, c"", flags, fields).map_err(errno_from)
}

/// The magic number of the file system that holds the file, and its block size.
pub(super) fn file_system(fd: BorrowedFd<'_>) -> Result<(i64, u64), Errno> {
    let state = rustix::fs::fstatfs(fd).map_err(errno_from)?;
    Ok((state.f_type as i64, state.f_bsize as u64))
}

/// How the descriptor was opened: `O_ACCMODE`, `O_PATH` and the rest.
pub(super) fn flags(fd: BorrowedFd<'_>) -> Result<OFlags, Errno> {
    rustix::fs::fcntl_getfl(fd).map_err(errno_from)
}

/// The file's seals; EINVAL unless it is on tmpfs or hugetlbfs. The kernel knows without asking the file's owner.
pub(super) fn seals(fd: BorrowedFd<'_>) -> Result<SealFlags, Errno> {
    rustix::fs::fcntl_get_seals(fd).map_err(errno_from)
}

/// `lseek(2)` to the next data or hole; ENXIO where there is neither.
pub(super) fn seek(fd: BorrowedFd<'_>, to: SeekFrom) -> Result<u64, Errno> {
    rustix::fs::seek(fd, to).map_err(errno_from)
}

/// Reads from `offset` of the file on until `into` is full or the file ends; returns the bytes read.
pub(super) fn read_file(fd: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut done = 0;
    while done < into.len() {
        match rustix::io::pread(fd, &mut into[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno_from(error)),
        }
    }
    Ok(done)
}

/// Copies `from` to `ua` in this process. EFAULT where a store would fault; a part may have been written.
pub(super) fn write_self(ua: u64, from: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < from.len() {
        let rest = &from[done..];
        let local = libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() };
        let remote = libc::iovec { iov_base: (ua + done as u64) as *mut libc::c_void, iov_len: rest.len() };
        let me = std::process::id() as libc::pid_t;
        // SAFETY: `rest` is only read; see the module documentation for the bytes written.
        let put = unsafe { libc::process_vm_writev(me, &raw const local, 1, &raw const remote, 1, 0) };
        match usize::try_from(put) {
            Ok(0) => return Err(Errno::EFAULT),
            Ok(put) => done += put,
            Err(_) => return Err(errno()),
        }
    }
    Ok(())
}

/// Whether the aligned 32 bits at `ua` equal `value`, by a single load; EFAULT where a load would fault. (Requests a
/// futex requeue of zero waiters, which the kernel makes conditional on the value.)
pub(super) fn holds_value(ua: u64, value: u32) -> Result<bool, Errno> {
    let elsewhere = 0u32;
    // SAFETY: no waiter is woken or moved, and no memory is written.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            ua as *const u32,
            libc::FUTEX_CMP_REQUEUE,
            0,
            std::ptr::null::<libc::timespec>(),
            &raw const elsewhere,
            value,
        )
    };
    if result >= 0 {
        return Ok(true);
    }
    match errno() {
        Errno::EAGAIN => Ok(false),
        errno => Err(errno),
    }
}

/// `struct page_region` of `include/uapi/linux/fs.h`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct PageRegion {
    pub(super) start: u64,
    pub(super) end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `include/uapi/linux/fs.h`.
#[repr(C)]
struct PageScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 3 << 30 | (size_of::<PageScan>() as libc::c_ulong) << 16 | 0x66 << 8 | 16;

/// Finds ranges of `[start, end)` whose pages are neither present nor under migration. Returns how many were stored in
/// `found`, and where the scan stopped. ENOTTY before Linux 6.7.
pub(super) fn absent_pages(
    pagemap: &File,
    start: u64,
    end: u64,
    found: &mut [PageRegion],
) -> Result<(usize, u64), Errno> {
    let mut scan = PageScan {
        size: size_of::<PageScan>() as u64,
        flags: 0,
        start,
        end,
        walk_end: 0,
        vec: found.as_mut_ptr() as u64,
        vec_len: found.len() as u64,
        max_pages: 0,
        category_inverted: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        category_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_PRESENT,
    };
    // SAFETY: `scan` and `found`, whose length it contains, are valid for the call.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut scan) };
    usize::try_from(count).map(|count| (count, scan.walk_end)).map_err(|_| errno())
}
