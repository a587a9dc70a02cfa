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
//! What each file owns: `addr`, `errno` the words; `port` the outside; `pages` where pages are; `gate` the count that
//! closes; `publish` and `slots` what readers reach without a lock; `region`, `books`, `engine` the state and its changes;
//! `registration`, `translator`, `entries`, `space` the handles.
#![cfg_attr(not(test), no_std)]

extern crate alloc;
#[cfg(feature = "std")]
extern crate std;

mod addr;
mod books;
mod engine;
mod entries;
mod errno;
mod gate;
mod lookup;
mod pages;
mod port;
#[cfg(loom)]
#[doc(hidden)]
pub mod publish;
#[cfg(not(loom))]
mod publish;
mod region;
mod registration;
mod slots;
mod space;
mod state;
mod sync;
mod tally;
mod translator;

pub use addr::{BusAddr, Granule, GuestAddr, HostAddr, Iova, PageShift, RangeError, UserAddr, UserRange};
pub use engine::{OutOfMemory, RegisterError};
pub use entries::{Access, EntryBlock, EntryView};
pub use errno::Errno;
pub use gate::{Closed, Drain, Gate, Inside, Left, Unbalanced};
pub use pages::{DirtyPages, PageList, PageListError};
pub use port::{AddressKind, Charge, ChargeError, Memory, Pin, PinError, PinId};
pub use region::{MapError, Mapping};
pub use registration::{Draining, Refusal, Registration, UnregisterError};
pub use space::AddressSpace;
pub use state::{RegionState, SpaceState};
pub use tally::{Held, Holder, HolderKind};
pub use translator::Translator;
