//! Memory behind a descriptor that another process created and may change at any time.
//!
//! `FileStat` describes a file descriptor. A `SharedFile` is a file that is memory. `SharedMemory` is a range of
//! it mapped into this process, which can be registered and copied in and out of. `PageResidency` checks whether
//! pinned pages still belong to the file, and `DataExtents` lists the parts of the file that have pages.
//!
//! The other process can truncate the file, punch holes into it, or write anything. None of that may end this process,
//! so:
//! - Only files of tmpfs and hugetlbfs are accepted. A page of another file system may be supplied by another process
//!   (FUSE), which then decides how long a load takes.
//! - Memory that is sealed against shrinking (`F_SEAL_SHRINK`) is accessed directly: a missing page of it is allocated
//!   on access. All other memory is accessed by system calls, which return EFAULT where a load would raise SIGBUS. That
//!   includes huge pages, sealed or not: a missing page comes from a pool, which may be empty.
//! - Every range is mapped twice, once to be registered and once to be copied. The processor never accesses the first
//!   mapping, so its page-table entries show what happened to the pinned pages: see `PageResidency`.
//!
//! A `SharedMemory`, its parts and its clones share both mappings and the file. Regions registered from it keep them
//! until the last page is unpinned. The `SharedFile` is needed only to map more.

pub(crate) mod data_extents;
mod dual_mapping;
pub(crate) mod error;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod page_residency;
mod syscalls;
