//! The memory behind a descriptor that another process made and may change at any time.
//!
//! [`FileStat`] is what can be told of any descriptor: which file it is, how long, what its holder may do with it. A
//! [`SharedFile`] is one that turned out to be memory. [`SharedMemory`] is a stretch of it in this process, to be registered,
//! and to be copied in and out of. [`PageResidency`] tells whether the pages that were pinned still are the file's,
//! [`DataExtents`] which parts of the file have pages.
//!
//! Whoever holds the descriptor on the other side can make the file shorter, punch holes into it, or write what he wants.
//! None of that may end this process, so:
//! - only files of tmpfs and hugetlbfs are memory here. A page of another file system may come from its owner (FUSE), who
//!   then decides how long a load takes;
//! - memory that was sealed against shrinking (`F_SEAL_SHRINK`) is loaded and stored directly: a page of it that is not there
//!   is made. All other memory is reached by system calls, which answer EFAULT where a load would be SIGBUS. Huge pages are
//!   among the other, sealed or not: the page of a punched hole comes from a pool, and the pool may be empty;
//! - every stretch is mapped twice, once to be registered and once to be copied. The processor never touches the first, so that
//!   it shows what happened to the pages it was pinned by: see [`PageResidency`].
//!
//! Who owns whom: a [`SharedMemory`] (and each part or clone) shares both mappings and the file; regions made from it hold
//! them until the last page is unpinned. The [`SharedFile`] is needed only to map more.

pub(crate) mod data_extents;
mod dual_mapping;
pub(crate) mod error;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod page_residency;
mod syscalls;
