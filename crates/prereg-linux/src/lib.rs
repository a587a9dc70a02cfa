//! Pin back ends and guest memory on Linux, for [`prereg`].
//!
//! - [`IoUring`] really pins, for anybody within the locked-memory limit; [`Mlock`] only looks as if; [`Fixed`] is for
//!   device memory. Each is handed to [`AddressSpace::builder`](prereg::AddressSpace::builder).
//! - [`VfioType1`], [`VfioSpaprV2`] and [`Iommufd`] pin through the kernel's VFIO, for devices behind an IOMMU.
//! - [`GuestMemory`] is memory that can be registered: anonymous, transparent or explicit huge pages, a memfd, or a
//!   caller's own range.
//! - [`LockedTables`] is memory for the core's own tables that is locked and never faults.
//! - [`fault_in`](fault_in()) brings memory in with several threads; [`audit_range`] tells whether pinned pages still lie
//!   behind their addresses; [`HostReport`] tells what this host allows; [`measure`] has the bare system calls.
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
//! Modules, lowest first: `sys` (system calls), `mapping` (one `mmap`) and `racing` (accesses to what others change); `pagemap`, `maps`, `status` (what
//! `/proc` says); `account`, `barrier`, `memory`, `fault_in`, `audit`; `slots`, `ring`, `limit`, `frames`, `clones`; the back ends `uring` (with `options` below it and `builder`
//! above), `mlock`, `fixed`, `vfio` and `iommufd` above it; `io_ring` (I/O on what `uring` pinned), `host` and `measure` on top. Unsafe code
//! is in `sys`, `mapping`, `racing`, `io_ring`, `vfio`'s `sys` and `bar`, one corner of `memory` and one of `fault_in`.
#![cfg(target_os = "linux")]

mod account;
mod audit;
mod barrier;
mod builder;
mod clones;
mod error;
mod fault_in;
mod fixed;
mod frames;
mod host;
mod io_ring;
mod iommufd;
mod limit;
mod mapping;
mod maps;
pub mod measure;
mod memory;
mod mlock;
mod options;
mod pagemap;
mod racing;
mod ring;
mod ring_state;
mod shared;
mod slots;
mod status;
mod sys;
mod tables;
mod uring;
mod vfio;

pub use account::MemlockAccount;
pub use audit::{Audit, ChangedPage, audit_range};
pub use barrier::Membarrier;
pub use builder::IoUringBuilder;
pub use error::BackendError;
pub use fault_in::{FaultIn, FaultInError, Progress, fault_in};
pub use fixed::Fixed;
pub use frames::SlotAddress;
pub use host::{BackendReport, Capabilities, HostReport, HugePool, Memlock, PagemapAccess, UringAccess};
pub use io_ring::{
    AlignedBuffer, Completed, IoMemory, IoPiece, IoRing, IoWait, Pieces, PlainReason, Transfer, Way,
};
pub use iommufd::{Iommufd, IommufdLimits, IommufdState, IommufdTable, IommufdTableError, Placement};
pub use memory::{GuestMemory, HugeSize, MemoryError, MemoryKind};
pub use mlock::Mlock;
pub use pagemap::{Backing, Pagemap, PagemapError, Run};
pub use ring_state::RingState;
pub use shared::{
    FileFacts, FileIdentity, LastChange, Presence, Residency, SharedError, SharedFile, SharedMemory,
};
pub use status::KernelCount;
pub use tables::LockedTables;
pub use uring::IoUring;
pub use vfio::{
    Bar, ExchangeLog, GroupDevice, GroupLimits, GroupReport, Occupant, SpaprAnswers, SpaprLimits, SpaprState,
    SpaprTable, SpaprTableError, Type1Limits, Type1State, VfioDevice, VfioError, VfioHost, VfioSpaprV2,
    VfioType1, WindowPlace,
};
