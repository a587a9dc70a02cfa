//! DMA memory pre-registration: pin memory once, map it for DMA a million times.
//!
//! Four types, in the order of use:
//! - [`AddressSpace`] owns the regions of one process or guest. How pages are pinned and charged is chosen when it is built.
//! - [`Registration`] is one owner's claim on a region of memory. The first one pins every page and charges it, the last
//!   one unpins.
//! - [`Translator`] is a thread's reader handle. It maps a page without a lock, an allocation, a system call or a page fault.
//! - [`Mapping`] is one counted use of a page and yields its host address. While one lives, the last
//!   [`unregister`](Registration::unregister) is refused.
//!
//! ```
//! use prereg::{AddressSpace, PageShift};
//! # use prereg_sim::SimHost;
//! # let host = SimHost::new(prereg::Granule::K4);
//! # let ram = host.memory(0x7f00_0000_0000, 16 << 12);
//! let space = AddressSpace::builder(host).build()?;
//! let reg = space.register(&ram)?;                 // pinned and charged; used = 1
//! let mut t = space.translator();                  // one per thread
//!
//! let ua = reg.ua().checked_add(0x1000).ok_or("past the end")?;
//! let mapping = t.map(ua, PageShift::K4)?;         // mapped = 1
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
//! # The rest
//! - Host: [`Pin`] pins pages, [`Charge`] counts them against a limit, [`Barrier`] is a fence on every thread,
//!   [`TableMemory`] is memory for tables, [`Memory`] is what can be registered. prereg-linux implements them.
//! - More ways to map: [`Translator::map_list`] many pages at once, [`RangeMapping`] a range as one unit, [`EntryBlock`] the
//!   entries of an IOMMU table.
//! - More ways to release: [`Registration::drain`] returns a [`Draining`], [`Registration::unregister_many`].
//! - Reports: [`SpaceState`], [`RegionState`], and by [`Holder`].
//! - Errors are small enums with an `errno()`: [`RegisterError`], [`MapError`], [`UnregisterError`] and others.
//! - [`RundownRef`] counts uses of an object that is released when the last one ends.
//!
//! The model is Linux's region list on POWER (`mm_iommu_*`, commit 15b244a8): a region has `used` registrations and
//! `mapped` mappings. docs/specification.md describes it, docs/contract.md what this crate guarantees.
//!
//! # Inside
//! The handles are `space`, `registration`, `translator/` and `entries`; `addr`, `errno`, `port` and `state` are the words
//! they share. `engine/` has the operations and the registry, `lookup/` what readers reach without a lock, `table_memory/`
//! the memory that they touch, `sync/` the counting primitives, hazard pointers and the lock. docs/reading-the-core.md is
//! a way through.
#![cfg_attr(not(test), no_std)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

/// `Debug` by `Display`, for errors: one that `main` returns is printed with `Debug`, and the sentence is what its reader needs.
#[doc(hidden)]
#[macro_export]
macro_rules! debug_as_display {
    ($error:ty) => {
        impl ::core::fmt::Debug for $error {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                ::core::fmt::Display::fmt(self, f)
            }
        }
    };
}

mod addr;
mod draining;
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
pub use draining::{DrainFuture, Draining};
pub use engine::OutOfMemory;
pub use engine::register::RegisterError;
pub use entries::{Access, EntryBlock, EntryBlockError, EntryView};
pub use errno::Errno;
pub use lookup::holder::{Holder, HolderKind, HolderTotal};
pub use lookup::pages::{DirtyPages, PageList, PageListError, PageSink};
pub use lookup::region::{MapError, Mapping};
pub use port::{AddressKind, Barrier, Charge, ChargeError, Memory, Pin, PinError, PinId};
pub use registration::{Refusal, Registration, UnregisterError};
pub use space::{AddressSpace, AddressSpaceBuilder};
pub use state::{RegionState, SpaceState};
pub use sync::rundown_ref::{Busy, Closed, DrainResult, LeaveResult, RefUnderflow, RundownRef};
pub use table_memory::{HeapTables, TableMemory, TableMemoryState};
pub use translator::Translator;
pub use translator::burst::{Burst, BurstMapping};
pub use translator::list::ListError;
pub use translator::range_mapping::{HostRun, RangeMapping};

/// The primitives that the loom models drive by themselves.
#[cfg(loom)]
#[doc(hidden)]
pub mod primitives {
    pub use crate::sync::hazard::{HazardSlot, Owner, Published, Retired};
    pub use crate::sync::percpu_ref::{EnterResult, FenceMode, PercpuRef};
}
