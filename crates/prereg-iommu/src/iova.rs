//! A device's I/O virtual address space over pre-registered memory: the model of VFIO's type1 container, version 2.
//!
//! An [`IovaMap`] maps ranges of I/O virtual addresses. A range leads to registered memory, of which it counts one unit per
//! region; to memory that a [`MemoryProvider`] registers at each access, or block by block at the first one; or to remote
//! memory, which the user of the map reaches by other means. An access ([`HeldRange`]) keeps the memory pinned: an unmap
//! removes the range at once and is complete when the last access is dropped.
//!
//! Ownership:
//! - an [`IovaMap`] owns its live mappings; a mapping owns its units of the regions it leads to;
//! - a [`HeldRange`] shares those units and holds the rundown ref of every mapping it touches;
//! - an unmapped mapping is owned by the accesses that hold its rundown ref. The last one releases the units, then notifies the
//!   port [`OnDrained`] and the [`Unmapping`], once.
//!
//! Locks: one over the ordered mappings, shared by accesses and exclusive for map and unmap, held for a search; one over the
//! list of closing mappings, taken inside the first or alone. No port is called and no unit released under either.
//!
//! Errors: a range in use (EEXIST), a range that would split a mapping (EINVAL, as in version 2), too many mappings (ENOSPC),
//! memory that is not registered (EFAULT) or being unregistered (ENXIO). Nothing has changed then.
//!
//! ```
//! use prereg::{Access, AddressSpace, Granule, Holder, Iova};
//! use prereg_iommu::iova::{Backing, HostSegment, IovaLimits, IovaMap};
//! # use prereg_sim::SimHost;
//! # use std::sync::Arc;
//! # let host = SimHost::new(Granule::K4);
//! # let ram = host.memory(0x7f00_0000_0000, 1 << 20);
//! # let on_drained = Arc::new(|| {});
//! let space = AddressSpace::builder(host).build()?;
//! let registration = space.register(&ram)?;                              // pinned once
//! let map = IovaMap::new(&space, IovaLimits::default(), Holder::default(), on_drained)?;
//! let iova = Iova::new(0xffff_f000);
//! map.map(iova, 0x1000, Backing::Local(registration.ua()), Access::ReadWrite)?; // counted, not pinned
//! let held = map.hold(iova, 0x200, Access::Read)?;                       // an I/O
//! assert!(matches!(held.host_segments().next(), Some(HostSegment::Local { bytes: 0x200, .. })));
//! let unmapping = map.unmap(iova, 0x1000)?;                              // closed for new accesses
//! assert!(!unmapping.is_done() && map.hold(iova, 1, Access::Read).is_err());
//! drop(held);
//! assert!(unmapping.is_done());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access;
mod backing;
mod error;
mod limits;
mod map;
mod mapping;
mod on_demand;
mod segments;
mod state;
mod unmap_future;
mod unmap_tasks;
mod unmapping;

pub use access::{HeldRange, HostSegment, UserSegment};
pub use backing::{Backing, LocalSegment, MemoryProvider, Owner};
pub use error::{IovaAccessError, IovaMapError, ProviderError};
pub use limits::IovaLimits;
pub use map::IovaMap;
pub use mapping::OnDrained;
pub use state::{ClosingState, IovaState};
pub use unmap_future::UnmapFuture;
pub use unmapping::Unmapping;
