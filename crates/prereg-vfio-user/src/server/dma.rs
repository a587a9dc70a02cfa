//! Client memory: files registered once, and the mappings of devices.
//!
//! The memory behind a descriptor is registered by file identity: however many DMA_MAPs of 4 KiB a guest's IOMMU sends, and
//! however many clients share a file, there is one pin and one charge. A DMA_MAP is then a mapping in the client's
//! [`IovaMap`](prereg_iommu::iova::IovaMap): a search, a count and an insertion.
//!
//! Ownership:
//! - the [`MemoryStore`] owns the address space and the clients' files; a file (`file`) owns its extents, the registered parts
//!   of it (`extents`), as long as a client uses it;
//! - a [`DmaSpace`] is one client: its map and its files (`client_files`);
//! - a device has a [`Dma`]; a [`DmaGuard`] keeps the mappings it touches, and their memory pinned, whatever is unmapped
//!   meanwhile;
//! - memory without a descriptor stays with the client: [`Remote`] is the port to it.
//!
//! A DMA_MAP is charged for all its memory (`promises`) and answered; background threads pin what has pages (`background`), and
//! a device that is faster pins what it accesses (`provider`), each one piece of the file at a time. Other policies pin before
//! the reply, or charge and pin at first use (`policy`).
//!
//! Lock order: admission of a promise; a client's list of files; one file; the store's list of files; the client's map. Files
//! that are visited under a list, or beside another file, are only try-locked. No lock is held while memory is pinned or
//! unpinned: only a thread that needs the piece that another thread is pinning waits.
//!
//! A client cannot harm others. If it truncates its file, copies return [`DmaError::Gone`], I/O with fixed buffers continues in
//! the pinned pages, and no load faults (`prereg_linux::SharedMemory`). If it punches holes, its mappings lead to pages outside
//! the file until it maps them again; then, or when another client maps them, they are found stale and registered anew
//! (`extents`). If it disconnects, its registrations are released with the last access.

mod background;
mod client_files;
mod error;
mod event;
mod extents;
mod file;
mod guard;
mod interval_map;
mod policy;
mod promises;
mod provider;
mod register_context;
mod remote;
mod space;
mod state;
mod store;

pub use error::{DmaError, MapMemoryError, RemoteError};
pub use event::MemoryEvent;
pub use guard::{Dma, DmaGuard, DmaSegment};
pub use policy::{MemoryPolicy, RegisterWhen};
pub use prereg_iommu::iova::{IovaLimits, OnDrained, Unmapping};
pub use remote::Remote;
pub use space::DmaSpace;
pub use state::{DmaState, FileState, StoreState};
pub use store::MemoryStore;
