//! Pin back ends and guest memory on Linux, for [`prereg`].
//!
//! - [`IoUring`] pins memory for any user within the locked-memory limit. [`Mlock`] locks memory, which is no pin; it
//!   is for comparison. [`Fixed`] is for device memory. Each is handed to
//!   [`AddressSpace::builder`](prereg::AddressSpace::builder).
//! - [`VfioType1`], [`VfioSpaprV2`] and [`Iommufd`] pin through the kernel's VFIO, for devices behind an IOMMU.
//! - [`GuestMemory`] is memory that can be registered: anonymous, with transparent or explicit huge pages, a memfd, or
//!   a range that the caller mapped.
//! - [`LockedTables`] is locked memory for the core's own tables, which never faults.
//! - [`prefault`](prefault()) faults memory in with several threads; [`audit_range`] checks that pinned pages still
//!   back their addresses; [`drain_eventfd`](drain_eventfd()) is readable when a drain is done; [`HostReport`] says what this host allows; [`syscall_baseline`] has the bare system calls of
//!   a registration, for benchmarks.
//!
//! ```
//! use prereg_linux::{GuestMemory, HostReport};
//!
//! let ram = GuestMemory::memfd("guest", 2 << 20)?;
//! let host = HostReport::probe();
//! for backend in &host.backends {
//!     println!("{}: {}", backend.name, backend.why);
//! }
//! # assert!(ram.bytes() == 2 << 20 && !host.backends.is_empty());
//! # Ok::<(), prereg_linux::MemoryError>(())
//! ```
//!
//! Modules, lowest first: `sys` (system calls), `mapping` (owner of an `mmap`), `atomic_access` (accesses to memory
//! that others change) and `counter`; `pagemap`, `proc_maps`, `proc_status`; `account`, `barrier`, `memory`,
//! `prefault`, `audit`; `slot_table`, `pin_ring`, `buffer_limit`, `frames`, `buffer_clones`; the back ends `uring`
//! (with `options` below it and `builder` above it), `mlock`, `fixed`, `vfio` and, above that, `iommufd`; `io_ring`
//! (I/O on memory that `uring` pinned), `host` and `syscall_baseline` on top. `layers.toml` lists the files that may
//! contain `unsafe`.
#![cfg(target_os = "linux")]

mod account;
mod atomic_access;
mod audit;
mod barrier;
mod buffer_clones;
mod buffer_limit;
mod builder;
mod counter;
mod drain_eventfd;
mod error;
mod fixed;
mod foreign_file;
mod frames;
mod host;
mod io_ring;
mod io_uring_state;
mod iommufd;
mod locked_tables;
mod mapping;
mod memory;
mod mlock;
mod options;
mod pagemap;
mod pin_ring;
mod prefault;
mod proc_maps;
mod proc_status;
mod slot_table;
mod sys;
pub mod syscall_baseline;
mod uring;
mod vfio;

pub use account::MemlockAccount;
pub use audit::{Audit, ChangedPage, audit_range};
pub use barrier::Membarrier;
pub use builder::IoUringBuilder;
pub use drain_eventfd::drain_eventfd;
pub use error::BackendError;
pub use fixed::Fixed;
pub use foreign_file::data_extents::DataExtents;
pub use foreign_file::error::SharedError;
pub use foreign_file::file::{ChangeTime, FileIdentity, FileStat, SharedFile};
pub use foreign_file::memory::SharedMemory;
pub use foreign_file::page_residency::PageResidency;
pub use frames::SlotAddress;
pub use host::report::{
    BackendReport, Capabilities, HostReport, HugePool, Memlock, PagemapAccess, UringAccess,
};
pub use io_ring::buffer::AlignedBuffer;
pub use io_ring::segments::{IoSegment, IoSegments};
pub use io_ring::sqe::Transfer;
pub use io_ring::{Completed, IoMemory, IoPath, IoRing, IoWait, PlainReason};
pub use io_uring_state::IoUringState;
pub use iommufd::ioas::IommufdLimits;
pub use iommufd::table::{IommufdTable, IommufdTableError};
pub use iommufd::{Iommufd, IommufdState, Placement};
pub use locked_tables::LockedTables;
pub use memory::{GuestMemory, HugeSize, MemoryError, MemoryKind};
pub use mlock::Mlock;
pub use pagemap::{PageBacking, Pagemap, PagemapError};
pub use prefault::{Prefault, PrefaultError, prefault};
pub use proc_status::KernelCount;
pub use sys::raise_descriptor_limit;
pub use uring::IoUring;
pub use vfio::bar::Bar;
pub use vfio::device::VfioDevice;
pub use vfio::error::{BoundDriver, VfioError};
pub use vfio::groups::{GroupLimits, GroupReport};
pub use vfio::host::VfioHost;
pub use vfio::ioctl_trace::IoctlTrace;
pub use vfio::spapr::raw_container::RawSpaprContainer;
pub use vfio::spapr::table::{SpaprTable, SpaprTableError};
pub use vfio::spapr::window::{SpaprLimits, WindowPlace};
pub use vfio::spapr::{SpaprState, VfioSpaprV2};
pub use vfio::sysfs::GroupDevice;
pub use vfio::type1::{Type1State, VfioType1};
pub use vfio::type1_limits::Type1Limits;
