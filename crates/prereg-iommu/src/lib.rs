//! Maps pre-registered memory for devices: TCE tables, guest memory slots, the TCE hypercalls, VFIO containers and I/O virtual
//! address spaces.
//!
//! A guest writes values into a table that it can read back; hardware tables behind it hold the translations that devices use.
//! Every live hardware entry is one counted mapping of the address space (`prereg`), so a guest can point a device only at
//! pinned memory, which stays pinned as long as an entry maps it.
//!
//! Ownership:
//! - [`Hypercalls`] owns a guest's [`MemorySlots`] and [`TceTable`]s, and performs every call;
//! - a [`TceTable`] owns the values that the guest wrote and shares [`HwTable`]s;
//! - an [`HwTable`] owns its entries and shares the `AddressSpace` that they map;
//! - a [`Container`](container::Container) owns the [`HwTable`]s of its windows and its registrations of memory;
//! - an [`IovaMap`](iova::IovaMap) is the type1-like map of a device server.
//!
//! Nothing here does I/O or depends on an operating system; lists in guest memory are read through the port [`GuestRead`].
//! No input of a guest can cause a panic or leak a unit.
//!
//! ```
//! use prereg::{AddressSpace, BusAddr, Granule, GuestAddr, PageShift};
//! use prereg_iommu::{Geometry, HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Rules, Tce};
//! use prereg_sim::SimHost;
//! use std::sync::Arc;
//!
//! // 1 MiB of guest memory, registered once.
//! let host = SimHost::new(Granule::K4);
//! let space = Arc::new(AddressSpace::builder(host.clone()).build()?);
//! let ram = space.register(&host.memory(0x7000_0000, 1 << 20))?;
//! let mut slots = MemorySlots::new();
//! slots.insert(GuestAddr::new(0), ram.ua(), ram.bytes())?;
//!
//! // A window of 16 pages that a device goes through.
//! let mut calls = Hypercalls::new(Rules::Kvm, slots);
//! let window = Geometry::for_guest(BusAddr::new(0), PageShift::K4, 16)?;
//! let hardware = Arc::new(HwTable::new(space.clone(), window, 0)?);
//! calls.create(Liobn::new(0x8000_0000), window)?.attach(hardware)?;
//!
//! // The guest maps its page 2 at bus address 0x1000.
//! let mut translator = space.translator();
//! let no_lists = |_: GuestAddr, _: &mut [u64]| Err(NotRam);
//! let put = Hypercall::Put { liobn: 0x8000_0000, ioba: BusAddr::new(0x1000), tce: Tce::new(0x2003) };
//! assert_eq!(calls.call(&mut translator, &no_lists, put).code, HReturn::SUCCESS);
//!
//! // One mapping lives, so the memory stays.
//! assert!(ram.unregister().is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
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
pub use hw_table::{EntryError, HwTable};
pub use hypercall::{GuestRead, HReturn, Hypercall, NotRam, Reply};
pub use slots::{MemorySlot, MemorySlots, SlotError};
pub use sparse::TableError;
pub use table::{AttachError, Liobn, TceTable, Translation};
pub use tce::Tce;
