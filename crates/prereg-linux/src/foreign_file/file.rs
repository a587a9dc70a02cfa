//! A descriptor that turned out to be memory.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use prereg::PageShift;
use rustix::fs::{FileType, OFlags, SealFlags};

use super::data_extents::DataExtents;
use super::dual_mapping::{CopyMethod, DualMapping};
use super::error::SharedError;
use super::memory::SharedMemory;
use super::syscalls;

/// Which file a descriptor leads to, however many descriptors lead there. True as long as somebody has it open.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileIdentity {
    /// The device number of its file system, major and minor.
    pub dev: (u32, u32),
    /// Its number there.
    pub ino: u64,
}

/// When a file was changed last, as its file system says: punching a hole and making a file shorter or longer move it on tmpfs,
/// and so does the first write to a page. Hugetlbfs does not tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangeTime {
    /// Seconds and nanoseconds since 1970.
    pub at: (i64, u32),
}

/// What can be told of a descriptor that is a file: cheap, two system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileStat {
    /// Which file.
    pub identity: FileIdentity,
    /// Its length now.
    pub bytes: u64,
    /// When it was changed last.
    pub changed: ChangeTime,
    /// Whether the descriptor is open for reading.
    pub readable: bool,
    /// Whether it is open for reading and writing.
    pub writable: bool,
}

impl FileStat {
    /// Asks the system about `fd`.
    ///
    /// # Errors
    /// [`SharedError::NotMemory`] for anything but a file, [`SharedError::Os`].
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

/// A file that is memory: on tmpfs (a memfd is) or hugetlbfs, open for reading and writing. Its descriptor stays open.
#[derive(Debug)]
pub struct SharedFile {
    fd: Arc<OwnedFd>,
    identity: FileIdentity,
    page: PageShift,
    copy_method: CopyMethod,
    tracks_changes: bool,
}

/// The number of tmpfs (`include/uapi/linux/magic.h`); what else can be sealed is on hugetlbfs.
const TMPFS: i64 = 0x0102_1994;
/// Either of them forbids writing.
const AGAINST_WRITING: SealFlags = SealFlags::WRITE.union(SealFlags::FUTURE_WRITE);
const OTHER_FILE: SharedError = SharedError::NotMemory {
    what: "a file of a disk, a network or another file system that is not in memory",
};

impl SharedFile {
    /// Takes `fd` without looking at its [`FileStat`] first.
    ///
    /// # Errors
    /// As [`FileStat::of`] and [`SharedFile::new`].
    pub fn of(fd: OwnedFd) -> Result<Self, SharedError> {
        let facts = FileStat::of(fd.as_fd())?;
        Self::new(fd, &facts)
    }

    /// Takes `fd`, whose [`FileStat`] are `facts`.
    ///
    /// # Errors
    /// [`SharedError::Mode`], [`SharedError::NotMemory`], [`SharedError::Sealed`], [`SharedError::Os`]; the descriptor is
    /// closed then.
    pub fn new(fd: OwnedFd, facts: &FileStat) -> Result<Self, SharedError> {
        if !facts.writable {
            return Err(SharedError::Mode {
                wanted: "reading and writing, which memory must be to be pinned",
            });
        }
        // First, because it asks nobody: only files of tmpfs and hugetlbfs have seals, be it none.
        let seals = syscalls::seals(fd.as_fd()).map_err(|_| OTHER_FILE)?;
        if seals.intersects(AGAINST_WRITING) {
            return Err(SharedError::Sealed);
        }
        let (magic, page) = syscalls::file_system(fd.as_fd()).map_err(SharedError::os("fstatfs"))?;
        let page = if magic == TMPFS { crate::sys::page_size() } else { page };
        let shift = if page.is_power_of_two() { PageShift::new(page.trailing_zeros()) } else { None };
        // A seal is never taken off again.
        let sealed = seals.contains(SealFlags::SHRINK);
        Ok(Self {
            fd: Arc::new(fd),
            identity: facts.identity,
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

    /// Which file it is.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// The pages it is made of.
    #[must_use]
    pub fn page(&self) -> PageShift {
        self.page
    }

    /// Whether [`ChangeTime`] of this file moves when pages are taken out of it.
    #[must_use]
    pub fn tracks_changes(&self) -> bool {
        self.tracks_changes
    }

    /// Whether its memory is loaded and stored directly.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.copy_method == CopyMethod::Processor
    }

    /// Its length now.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn bytes(&self) -> Result<u64, SharedError> {
        syscalls::stat(self.fd.as_fd()).map(|state| state.stx_size).map_err(SharedError::os("statx"))
    }

    /// Which parts of it have pages.
    ///
    /// # Errors
    /// [`SharedError::Os`].
    pub fn data_extents(&self) -> Result<DataExtents, SharedError> {
        DataExtents::of(self.fd.as_fd(), self.tracks_changes)
    }

    /// Maps `bytes` bytes from `offset` on, at addresses of their own.
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
