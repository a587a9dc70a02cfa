//! Pin back ends and guest memory on Linux, for [`prereg`].
//!
//! - [`IoUring`] really pins, for anybody within the locked-memory limit; [`Mlock`] only looks as if; [`Fixed`] is for
//!   device memory. Each is handed to [`AddressSpace::new`](prereg::AddressSpace::new).
//! - [`GuestMemory`] is memory that can be registered: anonymous, transparent or explicit huge pages, a memfd, or a
//!   caller's own range.
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
//! Who builds on whom, lowest first: `sys` (system calls) and `mapping` (one `mmap`); `pagemap`, `maps`, `status` (what
//! `/proc` says); `account`, `barrier`, `memory`, `fault_in`, `audit`; `slots`, `ring`, `limit`, `frames`; the back ends `uring` (with `options` below it and `builder`
//! above), `mlock`, `fixed`; `host` and `measure` on top. Unsafe code is in `sys`, `mapping`, one corner of `memory` and one of
//! `fault_in`.
#![cfg(target_os = "linux")]

mod account;
mod audit;
mod barrier;
mod builder;
mod error;
mod fault_in;
mod fixed;
mod frames;
mod host;
mod limit;
mod mapping;
mod maps;
pub mod measure;
mod memory;
mod mlock;
mod options;
mod pagemap;
mod ring;
mod slots;
mod status;
mod sys;
mod uring;

pub use account::MemlockAccount;
pub use audit::{Audit, ChangedPage, audit_range};
pub use barrier::Membarrier;
pub use builder::IoUringBuilder;
pub use error::BackendError;
pub use fault_in::{FaultIn, FaultInError, Progress, fault_in};
pub use fixed::Fixed;
pub use frames::SlotAddress;
pub use host::{BackendReport, Capabilities, HostReport, HugePool, Memlock, PagemapAccess, UringAccess};
pub use memory::{GuestMemory, HugeSize, MemoryError, MemoryKind};
pub use mlock::Mlock;
pub use pagemap::{Backing, Pagemap, PagemapError, Run};
pub use status::KernelCount;
pub use uring::{IoUring, RingState};
