//! Files that are memory, and what is known of a descriptor before that.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use prereg::PageShift;
use rustix::fs::{FileType, OFlags, SealFlags};

use super::data_extents::DataExtents;
use super::dual_mapping::{CopyMethod, DualMapping};
use super::error::SharedError;
use super::memory::SharedMemory;
use super::syscalls;

/// Identity of a file, equal for all descriptors of it. Valid while the file is open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileIdentity {
    /// Device number of the file system, major and minor.
    pub dev: (u32, u32),
    /// Inode number.
    pub ino: u64,
}

/// A file's ctime. On tmpfs it changes when a hole is punched, when the file is resized, and at the first write to a
/// page. On hugetlbfs it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangeTime {
    /// Seconds and nanoseconds since 1970.
    pub at: (i64, u32),
}

/// Status of a file descriptor. Takes two system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStat {
    /// The file.
    pub identity: FileIdentity,
    /// The current length.
    pub bytes: u64,
    /// The time of the last change.
    pub changed: ChangeTime,
    /// Whether the descriptor is open for reading.
    pub readable: bool,
    /// Whether the descriptor is open for reading and writing.
    pub writable: bool,
}

impl FileStat {
    /// Reads the status of `fd`.
    ///
    /// # Errors
    /// [`SharedError::NotMemory`] unless it is a regular file, [`SharedError::Os`].
    pub fn of(fd: BorrowedFd<'_>) -> Result<Self, SharedError> {
        let state = syscalls::stat(fd).map_err(SharedError::os("statx"))?;
        let what = match FileType::from_raw_mode(state.stx_mode.into()) {
            FileType::RegularFile => None,
            FileType::Directory => Some("a directory"),
            FileType::Socket => Some("a socket"),
            FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
            FileType::Fifo => Some("a pipe"),
            _ => Some("no file"),
        };
        if let Some(what) = what {
            return Err(SharedError::NotMemory { what });
        }
        let flags = syscalls::flags(fd).map_err(SharedError::os("fcntl(F_GETFL)"))?;
        let mode = if flags.contains(OFlags::PATH) { OFlags::WRONLY } else { flags & OFlags::ACCMODE };
        Ok(Self {
            identity: FileIdentity { dev: (state.stx_dev_major, state.stx_dev_minor), ino: state.stx_ino },
            bytes: state.stx_size,
            changed: ChangeTime { at: (state.stx_ctime.tv_sec, state.stx_ctime.tv_nsec) },
            readable: mode != OFlags::WRONLY,
            writable: mode == OFlags::RDWR,
        })
    }
}

/// A file of tmpfs (such as a memfd) or hugetlbfs, open for reading and writing. Its descriptor stays open.
#[derive(Debug)]
pub struct SharedFile {
    fd: Arc<OwnedFd>,
    identity: FileIdentity,
    page: PageShift,
    copy_method: CopyMethod,
    tracks_changes: bool,
}

/// `TMPFS_MAGIC`. Any other file that can be sealed is on hugetlbfs.
const TMPFS: i64 = 0x0102_1994;
/// Each of them forbids writing.
const AGAINST_WRITING: SealFlags = SealFlags::WRITE.union(SealFlags::FUTURE_WRITE);
const OTHER_FILE: SharedError = SharedError::NotMemory {
    what: "a file of a disk, a network or another file system that is not in memory",
};

impl SharedFile {
    /// Uses `fd`, reading its [`FileStat`] first.
    ///
    /// # Errors
    /// As [`FileStat::of`] and [`SharedFile::new`].
    pub fn of(fd: OwnedFd) -> Result<Self, SharedError> {
        let stat = FileStat::of(fd.as_fd())?;
        Self::new(fd, &stat)
    }

    /// Uses `fd`, whose [`FileStat`] is `stat`.
    ///
    /// # Errors
    /// [`SharedError::Mode`], [`SharedError::NotMemory`], [`SharedError::Sealed`], [`SharedError::Os`]; the descriptor is
    /// closed then.
    pub fn new(fd: OwnedFd, stat: &FileStat) -> Result<Self, SharedError> {
        if !stat.writable {
            return Err(SharedError::Mode { wanted: "reading and writing, which pinning requires" });
        }
        // First, because it needs no file system operation: only files of tmpfs and hugetlbfs have seals.
        let seals = syscalls::seals(fd.as_fd()).map_err(|_| OTHER_FILE)?;
        if seals.intersects(AGAINST_WRITING) {
            return Err(SharedError::Sealed);
        }
        let (magic, page) = syscalls::file_system(fd.as_fd()).map_err(SharedError::os("fstatfs"))?;
        let page = if magic == TMPFS { crate::sys::page_size() } else { page };
        let shift = if page.is_power_of_two() { PageShift::new(page.trailing_zeros()) } else { None };
        // A seal cannot be removed.
        let sealed = seals.contains(SealFlags::SHRINK);
        Ok(Self {
            fd: Arc::new(fd),
            identity: stat.identity,
            page: shift.ok_or(OTHER_FILE)?,
            copy_method: if sealed && magic == TMPFS { CopyMethod::Processor } else { CopyMethod::System },
            tracks_changes: magic == TMPFS,
        })
    }

    /// Whether the file behind `fd` is not sealed against writing.
    #[must_use]
    pub fn may_be_written(fd: BorrowedFd<'_>) -> bool {
        syscalls::seals(fd).is_ok_and(|seals| !seals.intersects(AGAINST_WRITING))
    }

    /// The file's identity.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// The file's page size.
    #[must_use]
    pub fn page(&self) -> PageShift {
        self.page
    }

    /// Whether [`ChangeTime`] changes when pages are removed from this file.
    #[must_use]
    pub fn tracks_changes(&self) -> bool {
        self.tracks_changes
    }

    /// Whether its memory is accessed by loads and stores.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.copy_method == CopyMethod::Processor
    }

    /// The current length.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn bytes(&self) -> Result<u64, SharedError> {
        syscalls::stat(self.fd.as_fd()).map(|state| state.stx_size).map_err(SharedError::os("statx"))
    }

    /// The parts of the file that have pages.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn data_extents(&self) -> Result<DataExtents, SharedError> {
        DataExtents::of(self.fd.as_fd(), self.tracks_changes)
    }

    /// Maps `bytes` bytes from `offset` on.
    ///
    /// # Errors
    /// [`SharedError::Misaligned`], [`SharedError::Short`], [`SharedError::Os`].
    pub fn map(&self, offset: u64, bytes: u64) -> Result<SharedMemory, SharedError> {
        if bytes == 0 || (offset | bytes) & self.page.mask() != 0 {
            return Err(SharedError::Misaligned { offset, bytes, page: self.page });
        }
        let length = self.bytes()?;
        if bytes > length || offset > length - bytes {
            return Err(SharedError::Short { offset, bytes, length });
        }
        let mapping = DualMapping::new(Arc::clone(&self.fd), offset, bytes, self.copy_method)?;
        Ok(SharedMemory::new(Arc::new(mapping), bytes))
    }
}
