//! A device's I/O virtual address space over pre-registered memory: a container of the kind that VFIO calls type 1, with the
//! rules of its second version.
//!
//! An [`IovaMap`] has ranges of I/O virtual addresses. Each leads to registered memory, of which it holds one unit however
//! long it is; or to memory that a port supplies at each access, or piece by piece at the first one; or to memory that is
//! reached by other means. A device's
//! access ([`Held`]) keeps what it touches: an unmap takes the range out at once, and is over when the last access has left.
//!
//! Who owns whom:
//! - an [`IovaMap`] owns its live mappings, in order; a mapping owns its units of the regions it leads to;
//! - a [`Held`] shares those units, and stands in the rundown ref of every mapping it touches;
//! - an unmapped mapping belongs to the accesses in its rundown ref. The last one to leave gives the units back, then says so, once,
//!   to the port [`Drained`] and to the [`Unmapping`].
//!
//! Locks: one over the ordered mappings, shared by accesses and taken alone by map and unmap, for the time of a search; one
//! over the list of closing mappings, taken inside the first or alone. No port is called and no unit given back under either.
//!
//! Who says no: a range in use (EEXIST), a range that would cut a mapping in two (EINVAL, as version 2 does), too many
//! mappings (ENOSPC), memory that is not registered (EFAULT) or going (ENXIO). Nothing has changed then.
//!
//! ```
//! use prereg::{Access, AddressSpace, Granule, Holder, Iova};
//! use prereg_iommu::iova::{Backing, Drained, IovaLimits, IovaMap, Piece};
//! # use prereg_sim::SimHost;
//! # use std::sync::Arc;
//! # struct Nobody;
//! # impl Drained for Nobody { fn drained(&self) {} }
//! # let host = SimHost::new(Granule::K4);
//! # let ram = host.memory(0x7f00_0000_0000, 1 << 20);
//! # let nobody = Arc::new(Nobody);
//! let space = AddressSpace::builder(host).build()?;
//! let registration = space.register(&ram)?;                              // pinned once
//!
//! let map = IovaMap::new(&space, IovaLimits::default(), Holder::default(), nobody)?;
//! let iova = Iova::new(0xffff_f000);
//! map.map(iova, 0x1000, Backing::Local(registration.ua()), Access::ReadWrite)?; // counted, not pinned
//!
//! let held = map.hold(iova, 0x200, Access::Read)?;                       // an I/O
//! assert!(matches!(held.pieces().next(), Some(Piece::Local { bytes: 0x200, .. })));
//! let unmapping = map.unmap(iova, 0x1000)?;                              // nobody gets in any more
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
mod state;
mod units;
mod unmapping;

pub use access::{Held, Piece, Stretch};
pub use backing::{Backing, LocalPiece, Owner, Supply};
pub use error::{IovaAccessError, IovaMapError, SupplyError};
pub use limits::IovaLimits;
pub use map::IovaMap;
pub use mapping::Drained;
pub use state::{ClosingState, IovaState};
pub use unmapping::Unmapping;
