//! DMA memory pre-registration: pin memory once, map it for DMA a million times.
//!
//! An [`AddressSpace`] owns regions. A [`Registration`] is one owner's claim on a region: the first pins every page and
//! charges it, the last unpins. A [`Translator`] is a thread's reader handle: it maps a page by a lookup, a count and a
//! load. A [`Mapping`] is one counted use and the only thing that yields a host address; while one lives, the last
//! [`unregister`](Registration::unregister) is refused. How pages are pinned and charged is behind two ports, [`Pin`] and
//! [`Charge`].
//!
//! The model is the region list of Linux on POWER (`mm_iommu_*`, commit 15b244a8), with its words: a region has `used`
//! registrations and a `mapped` count that starts at 1.
//!
//! ```
//! use prereg::{AddressSpace, Granule, PageShift};
//! # use prereg_sim::SimHost;
//! # let host = SimHost::new(Granule::K4);
//! # let ram = host.memory(0x7f00_0000_0000, 16 << 12);
//! let space = AddressSpace::builder(host).build()?;             // how pages are pinned is chosen here, once
//! let reg = space.register(&ram)?;                 // pinned, charged; used = 1
//! let mut t = space.translator();                  // one per thread; never locks, never faults
//!
//! let ua = reg.ua().checked_add(0x1000).ok_or("past the end")?;
//! let mapping = t.map(ua, PageShift::K4)?;         // mapped + 1; the only way to an address
//! println!("the device finds it at {}", mapping.hpa());
//!
//! let busy = reg.unregister().unwrap_err();        // refused: one mapping lives; nothing changed
//! assert_eq!(busy.mapped(), 1);
//! let reg = busy.into_inner();
//! t.unmap(mapping);
//! reg.unregister()?;                               // unpinned, uncharged
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Busy
//! `addr`, `errno`: the words. `port`, `tables`: the outside. `slab`: memory for tables. `pages`: where pages are. `gate`,
//! `door`: counts that close. `publish`, `slots`, `doors`, `tally`, `tagged`: what readers reach without a lock. `region`, `cells`, `lookup`, `reader`, `registry`: the state. `engine`
//! with `register`, `release`, `publication`, `watch`: its changes. `registration`, `translator` with `list` and `prefetch`,
//! `entries`, `range_mapping`, `space`: the handles.
#![cfg_attr(not(test), no_std)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod addr;
mod engine;
mod entries;
mod errno;
mod lookup;
mod port;
mod registration;
mod space;
mod state;
mod sync;
mod table_memory;
mod translator;

pub use addr::{BusAddr, Granule, GuestAddr, HostAddr, Iova, PageShift, RangeError, UserAddr, UserRange};
pub use engine::OutOfMemory;
pub use engine::register::RegisterError;
pub use entries::{Access, EntryBlock, EntryBlockError, EntryView};
pub use errno::Errno;
pub use lookup::holder::{Holder, HolderKind, HolderTotal};
pub use lookup::pages::{DirtyPages, PageList, PageListError, PageSink};
pub use lookup::region::{MapError, Mapping};
pub use port::{AddressKind, Barrier, Charge, ChargeError, Memory, Pin, PinError, PinId};
pub use registration::{Draining, Refusal, Registration, UnregisterError};
pub use space::{AddressSpace, AddressSpaceBuilder};
pub use state::{RegionState, SpaceState};
pub use sync::rundown_ref::{Busy, Closed, DrainResult, LeaveResult, RefUnderflow, RundownRef};
pub use table_memory::{HeapTables, TableMemory, TableMemoryState};
pub use translator::Translator;
pub use translator::list::ListError;
pub use translator::range_mapping::{HostRun, RangeMapping};

/// The primitives that the loom models drive by themselves.
#[cfg(loom)]
#[doc(hidden)]
pub mod primitives {
    pub use crate::sync::hazard::{HazardSlot, Owner, Published, Retired};
    pub use crate::sync::percpu_ref::{EnterResult, FenceMode, PercpuRef};
}
