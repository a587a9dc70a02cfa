//! A client's memory: what is behind its descriptors, registered once, and the mappings of its device.
//!
//! The memory behind a descriptor is registered by its identity, not by its messages: however many DMA_MAPs of 4 KiB a guest's
//! IOMMU sends, and however many clients hand the same file over, there is one pin and one charge. A DMA_MAP then is a
//! mapping in the client's [`IovaMap`](prereg_iommu::iova::IovaMap): a search, a count and an insertion.
//!
//! Who owns whom:
//! - the [`MemoryStore`] owns the address space and the files that clients handed over; a file (`file`) owns its extents, the
//!   registered pieces of it (`extents`), as long as one client names it;
//! - a [`DmaSpace`] is one client: its map, and the files it named (`client`);
//! - a device has a [`Dma`]; a [`Hold`] of it keeps the mappings it touches, and their memory pinned, whoever else goes;
//! - memory without a descriptor belongs to the client: [`Remote`] is the port to it.
//!
//! A DMA_MAP is charged for all its memory (`promises`) and answered; threads in the background pin what has pages
//! (`background`), a device that is faster pins what it reaches (`supply`), each a piece of the file at a time. Other policies
//! pin before the answer, or charge and pin at first use only (`policy`).
//!
//! Locks, in the order they are taken: the admission of a promise; a client's list of files; one file; the store's list of
//! files; the client's map. Files that are looked at under a list, or beside another file, are only tried. No lock is held
//! while memory is pinned or unpinned: only a thread that wants the very piece that another thread is pinning waits.
//!
//! What a client can do to others: nothing. It can make its file shorter: copies then answer [`DmaError::Gone`], I/O by fixed
//! buffers goes on in the pinned pages, and no load faults (`prereg_linux::SharedMemory`). It can punch holes: its own mappings
//! lead to pages that are nobody's until it maps them again; then, and for every other client that maps them, they are found
//! stale and registered anew (`extents`). It can go at any time: its registrations are released when the last access has left.

mod background;
mod client;
mod cover;
mod error;
mod extents;
mod file;
mod hold;
mod notes;
mod policy;
mod promises;
mod registrar;
mod remote;
mod space;
mod state;
mod store;
mod supply;

pub use error::{DmaError, MapMemoryError, RemoteError};
pub use hold::{Dma, DmaPiece, Hold};
pub use notes::{MemoryNote, NoteKind};
pub use policy::{MemoryPolicy, RegisterWhen};
pub use prereg_iommu::iova::{IovaLimits, OnDrained, Unmapping};
pub use remote::Remote;
pub use space::DmaSpace;
pub use state::{DmaState, FileState, StoreState};
pub use store::MemoryStore;
