//! The ports: traits that the core calls and its user implements, chosen when an address space is built.
//!
//! A back end pins pages and names the host address of each; an account charges them against the owner's locked-memory
//! limit. Neither knows regions or counters. `unpin` and `uncharge` return nothing, so that teardown has no error path.

use alloc::sync::Arc;
use core::any::Any;

use crate::addr::{Granule, UserAddr, UserRange};
use crate::errno::Errno;
use crate::lookup::pages::{DirtyPages, PageListError, PageSink};
use crate::table_memory::TableMemory;

/// The kind of address that a back end names for a pinned page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum AddressKind {
    /// Physical addresses, as the machine's bus or an identity-mapped IOMMU needs them.
    Physical,
    /// Addresses on an I/O bus, chosen when the page was mapped there.
    Iova,
    /// `(slot, offset)` of a fixed buffer, for processes that may not see physical addresses.
    SlotOffset,
    /// The addresses of device memory, which is not pinned.
    Device,
    /// The user addresses themselves: the kernel keeps the host addresses and accepts these wherever one is needed.
    User,
    /// For tests, reports and hosts that cannot pin: must not be given to a device.
    Invented,
}

/// A back end's own number for one successful `pin`. Means nothing to the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PinId(u64);

impl PinId {
    /// Wraps a back end's number.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The back end's number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// Pins user memory for as long as it is registered.
///
/// Implementations are called from many threads at once and never under a lock of the core, so a call may block: only
/// callers that ask for exactly the range of the call wait. A call may use the address space, but must not register or
/// share the range of the call: on the same thread that fails with [`RegisterError::Reentrant`] (without the feature
/// `std`, and through another thread, it waits forever). A call that panics counts as failed ([`pin`](Self::pin)) or
/// done ([`unpin`](Self::unpin)): the span is freed, the charge taken off, and the panic propagates to the caller of
/// the address space.
///
/// [`RegisterError::Reentrant`]: crate::RegisterError::Reentrant
///
/// # Safety
/// Devices are programmed with the pushed addresses, so memory safety depends on them. From a successful
/// [`pin`](Self::pin) until [`unpin`](Self::unpin) is called for it, each address reaches the page of the range that it
/// was pushed for, and no other memory, in the sense of [`address_kind`](Self::address_kind): for kind
/// [`AddressKind::Device`] as far as the caller who named the device memory is right, for kind
/// [`AddressKind::Invented`] for no device at all. The core itself dereferences no host address, and checks that there
/// is one for each page.
#[expect(unsafe_code, reason = "the implementer guarantees where the pages are")]
pub unsafe trait Pin: Send + Sync {
    /// A short name for messages and reports: `"io-uring"`.
    fn name(&self) -> &'static str;

    /// The system page size: the unit of everything pinned here.
    fn granule(&self) -> Granule;

    /// The kind of the host addresses.
    fn address_kind(&self) -> AddressKind;

    /// A fence that acts on every thread of the process, if the host has one: then mapping needs no fence of its own.
    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        None
    }

    /// Memory for tables that stays resident, if the host has such: then mapping takes no page fault whatever the host
    /// is short of.
    fn tables(&self) -> Option<Arc<dyn TableMemory>> {
        None
    }

    /// Pins every page of `range` and pushes the host address of each, in order, into `pages`.
    ///
    /// Host addresses are read after the page is pinned, never before: the pin itself may move a page.
    ///
    /// # Errors
    /// [`PinError`]; then nothing stays pinned.
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError>;

    /// Releases a pin; `range` is the one that `pin` was called with. When this returns the pages are no longer pinned.
    /// `dirty` names the pages that a device may have written.
    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>);
}

/// A fence that acts on every thread of the process, as `membarrier(2)` provides.
///
/// # Safety
/// Between the call of [`all_threads`](Barrier::all_threads) and its return every running thread of the process has passed
/// a full memory fence, and so has the caller. It does not unwind.
#[expect(unsafe_code, reason = "no use after release, because of this fence")]
pub unsafe trait Barrier: Send + Sync {
    /// Passes the fence. Cannot fail: the implementer checks that it works when it is created.
    fn all_threads(&self);
}

/// Counts pages against the owner's locked-memory limit.
pub trait Charge: Send + Sync {
    /// Adds `pages` system pages.
    ///
    /// # Errors
    /// [`ChargeError::OverLimit`] when `charged + pages > limit` and the owner has no privilege to pass it (equality
    /// is allowed: docs/specification.md 1.7); then nothing is charged.
    fn charge(&self, pages: u64) -> Result<(), ChargeError>;

    /// Takes `pages` off. Never goes below zero: an implementation reports the excess itself.
    fn uncharge(&self, pages: u64);
}

// SAFETY: the calls are `T`'s own.
#[expect(unsafe_code, reason = "the guarantees are those of the value it points to")]
unsafe impl<T: Pin + ?Sized> Pin for Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }
    fn granule(&self) -> Granule {
        (**self).granule()
    }
    fn address_kind(&self) -> AddressKind {
        (**self).address_kind()
    }
    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        (**self).barrier()
    }
    fn tables(&self) -> Option<Arc<dyn TableMemory>> {
        (**self).tables()
    }
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        (**self).pin(range, pages)
    }
    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        (**self).unpin(pin, range, dirty);
    }
}

impl<T: Charge + ?Sized> Charge for Arc<T> {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        (**self).charge(pages)
    }
    fn uncharge(&self, pages: u64) {
        (**self).uncharge(pages);
    }
}

/// User memory that can be registered: its range, and the value that keeps it mapped.
///
/// # Safety
/// While the value returned by [`keep`](Memory::keep) lives (or forever, if that is `None`), `[ua, ua + bytes)` must
/// stay mapped to the same memory, and no Rust reference into it may exist while a device can write it.
#[expect(unsafe_code, reason = "only the implementer can guarantee this of the memory")]
pub unsafe trait Memory {
    /// The first byte.
    fn ua(&self) -> UserAddr;
    /// The length in bytes.
    fn bytes(&self) -> u64;
    /// Kept by the region until its last page is unpinned.
    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>>;
}

/// The reason why pages could not be pinned. Nothing stays pinned.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// A page of the range is missing, read-only or of a kind that cannot be pinned. EFAULT.
    #[error("the page at {ua} cannot be pinned: {why}")]
    Fault {
        /// The first page that could not be pinned.
        ua: UserAddr,
        /// Its kind, and the remedy.
        why: &'static str,
    },
    /// The kernel refused for the limit on locked memory. ENOMEM.
    #[error(
        "pinning {need} bytes passes the locked-memory limit of {limit} bytes ({used} in use); raise RLIMIT_MEMLOCK \
         (ulimit -l, LimitMEMLOCK=) or grant CAP_IPC_LOCK"
    )]
    Limit {
        /// Bytes asked for.
        need: u64,
        /// Bytes this user has charged already, as far as known.
        used: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The back end has no room for another range. ENOSPC.
    #[error(
        "the back end needs {need} free slots for this range and has {free}; unregister something or use larger ranges"
    )]
    NoSlot {
        /// Slots needed.
        need: u32,
        /// Slots free.
        free: u32,
    },
    /// No memory for the list of pages. ENOMEM.
    #[error("no memory for the page list of the range")]
    OutOfMemory,
    /// The pages do not lie where a device could reach them. EOPNOTSUPP.
    #[error("the memory at {ua} cannot be pinned for long: {why}")]
    Unsupported {
        /// The first such page.
        ua: UserAddr,
        /// Its kind.
        why: &'static str,
    },
    /// Any other error, with the system's number.
    #[error("{during} failed with {errno} for the range at {ua}")]
    Os {
        /// The start of the range.
        ua: UserAddr,
        /// The system's number.
        errno: Errno,
        /// The call that failed.
        during: &'static str,
    },
}

crate::debug_as_display!(PinError);

impl PinError {
    /// EFAULT, ENOMEM, ENOSPC, EOPNOTSUPP, or the system's number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Fault { .. } => Errno::EFAULT,
            Self::Limit { .. } | Self::OutOfMemory => Errno::ENOMEM,
            Self::NoSlot { .. } => Errno::ENOSPC,
            Self::Unsupported { .. } => Errno::EOPNOTSUPP,
            Self::Os { errno, .. } => *errno,
        }
    }
}

impl From<PageListError> for PinError {
    fn from(error: PageListError) -> Self {
        match error {
            PageListError::OutOfMemory => Self::OutOfMemory,
            PageListError::TooMany { range } => Self::Fault {
                ua: range.first(),
                why: "the back end named more pages than the range has; this is a defect of the back end",
            },
            PageListError::Wraps { .. } => Self::Unsupported {
                ua: UserAddr::new(0),
                why: "the back end named host memory past 2^64; this is a defect of the back end",
            },
        }
    }
}

/// The reason why pages could not be charged. Nothing is charged.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChargeError {
    /// Over the owner's limit. ENOMEM.
    #[error(
        "charging {need} pages to the {charged} already locked passes the limit of {limit} pages; raise RLIMIT_MEMLOCK \
         (ulimit -l, LimitMEMLOCK=), grant CAP_IPC_LOCK, or register less"
    )]
    OverLimit {
        /// Pages asked for.
        need: u64,
        /// Pages charged already.
        charged: u64,
        /// The limit in pages.
        limit: u64,
    },
}

crate::debug_as_display!(ChargeError);

impl ChargeError {
    /// ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::ENOMEM
    }
}
