//! What maps pre-registered memory: TCE tables, guest memory slots and the TCE hypercalls.
//!
//! A guest writes values into a table it sees; behind it, hardware tables hold what devices may really reach. Every live
//! hardware entry is one counted mapping of the address space (`prereg`), so a guest can point a device only at memory
//! that is pinned, and that memory stays as long as an entry does.
//!
//! Who owns whom:
//! - a [`Container`](container::Container) owns its windows' [`HwTable`]s and its registrations of memory;
//! - [`Hypercalls`] owns a guest's [`MemorySlots`] and its [`TceTable`]s, and decides every call;
//! - a [`TceTable`] owns its [`GuestTable`] (plain values) and shares [`HwTable`]s with whoever made them;
//! - an [`HwTable`] owns its entries and shares the `AddressSpace` they map.
//!
//! Nothing here does I/O or knows an operating system; guest memory is reached through one port,
//! [`GuestList`]. Nothing a guest passes in can panic it or leak a unit.
#![cfg_attr(not(test), no_std)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

pub mod container;
mod dispatch;
mod geometry;
mod guest_table;
mod hw_table;
mod hypercall;
#[cfg(feature = "std")]
pub mod iova;
mod kvm;
mod qemu;
mod slots;
mod sparse;
mod table;
mod tce;

pub use dispatch::{CreateError, Hypercalls, Lookup, Rules};
pub use geometry::{Geometry, GeometryError};
pub use guest_table::GuestTable;
pub use hw_table::{EntryError, HwTable};
pub use hypercall::{GuestList, HReturn, Hypercall, NotRam, Reply};
pub use slots::{MemorySlot, MemorySlots, SlotError};
pub use sparse::TableError;
pub use table::{AttachError, Liobn, TceTable, Translation};
pub use tce::Tce;
