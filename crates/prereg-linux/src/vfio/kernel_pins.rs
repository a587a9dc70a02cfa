//! The parts of [`Pin`](prereg::Pin) that the back ends on VFIO containers and iommufd have in common.
//!
//! [`PinState`] is the state that each of them keeps. [`IovaPins`] records the pins of those that map memory at I/O
//! addresses of their own choice (type1, iommufd). A back end implements [`KernelPin`], and [`IovaBackend`] if it uses
//! `IovaPins`; `impl_kernel_pin!` makes a `Pin` of it.
//!
//! An unmap that the kernel does not confirm may have left pages pinned: the bytes are counted as stuck, and their I/O
//! addresses are never used again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{AddressKind, Errno, Granule, HostAddr, PageSink, PinError, PinId, UserAddr, UserRange};

use super::error::VfioError;
use super::iova::{IovaAllocator, IovaRange};
use super::kernel::Kernel;
use crate::account::MemlockAccount;
use crate::counter::Counter;
use crate::error::pinned_by_parent;
use crate::pagemap::system_granule;
use crate::proc_status::KernelCount;

/// State of a back end whose pins belong to a kernel descriptor.
pub(crate) struct PinState {
    pub(crate) kernel: Arc<dyn Kernel>,
    pub(crate) granule: Granule,
    pub(crate) account: MemlockAccount,
    /// Bytes pinned now.
    pub(crate) pinned: Counter,
    /// Unpins without a pin.
    pub(crate) stray: Counter,
    /// Bytes that the kernel did not confirm to be released.
    pub(crate) stuck: Counter,
    /// The process that made the back end: a child of `fork` has its own memory and must not touch these pins.
    process: u32,
}

impl PinState {
    pub(crate) fn new(kernel: &Arc<dyn Kernel>) -> Result<Self, VfioError> {
        let granule = system_granule().map_err(|error| VfioError::Os {
            during: "reading the system page size",
            on: "this host".into(),
            errno: error.errno(),
        })?;
        Ok(Self {
            kernel: Arc::clone(kernel),
            granule,
            account: MemlockAccount::new(granule),
            pinned: Counter::default(),
            stray: Counter::default(),
            stuck: Counter::default(),
            process: std::process::id(),
        })
    }
}

/// The parts of a back end that are its own.
pub(crate) trait KernelPin {
    const NAME: &'static str;
    const ADDRESSES: AddressKind;
    /// The kernel's counter that these pins are charged to.
    const COUNTER: fn(KernelCount) -> u64;

    fn pin_state(&self) -> &PinState;

    /// The error for a refusal of `part` of `range` with `errno`.
    fn refusal(&self, during: &'static str, errno: Errno, range: UserRange, part: UserRange) -> PinError {
        let state = self.pin_state();
        match errno {
            Errno::ENOMEM => {
                state.account.refusal(range.bytes(), || KernelCount::now().map_or(0, Self::COUNTER))
            }
            Errno::EFAULT => state.kernel.unpinnable_reason(part),
            errno => PinError::Os { ua: part.first(), errno, during },
        }
    }

    /// Refuses a range before any of it is prefaulted.
    fn check(&self, _range: UserRange) -> Result<(), PinError> {
        Ok(())
    }

    /// Pins prefaulted memory and pushes its host addresses. On an error nothing stays pinned.
    fn pin_prefaulted(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError>;

    /// Releases a pin; `false` when there is none of that name.
    fn release(&self, pin: PinId, range: UserRange) -> bool;
}

/// [`Pin::pin`](prereg::Pin::pin).
pub(crate) fn pin(
    backend: &impl KernelPin,
    range: UserRange,
    pages: &mut PageSink<'_>,
) -> Result<PinId, PinError> {
    let state = backend.pin_state();
    if state.process != std::process::id() {
        return Err(pinned_by_parent(range));
    }
    backend.check(range)?;
    state.kernel.prefault(range)?;
    let pin = backend.pin_prefaulted(range, pages)?;
    state.pinned.add(range.bytes());
    Ok(pin)
}

/// [`Pin::unpin`](prereg::Pin::unpin).
pub(crate) fn unpin(backend: &impl KernelPin, pin: PinId, range: UserRange) {
    let state = backend.pin_state();
    if state.process != std::process::id() {
        return;
    }
    if backend.release(pin, range) {
        state.pinned.sub(range.bytes());
    } else {
        state.stray.add(1);
    }
}

/// Implements `Pin` and `Charge` for a [`KernelPin`].
///
/// The caller vouches that the kernel pins what the back end maps or registers, and that devices reach it at the addresses
/// that the back end pushes.
macro_rules! impl_kernel_pin {
    ($backend:ty) => {
        // SAFETY: the promise of the macro's caller.
        #[expect(unsafe_code, reason = "what the addresses are is a promise")]
        unsafe impl prereg::Pin for $backend {
            fn name(&self) -> &'static str {
                <Self as $crate::vfio::kernel_pins::KernelPin>::NAME
            }

            fn granule(&self) -> prereg::Granule {
                $crate::vfio::kernel_pins::KernelPin::pin_state(self).granule
            }

            fn address_kind(&self) -> prereg::AddressKind {
                <Self as $crate::vfio::kernel_pins::KernelPin>::ADDRESSES
            }

            fn barrier(&self) -> Option<std::sync::Arc<dyn prereg::Barrier>> {
                $crate::barrier::Membarrier::shared()
            }

            fn pin(
                &self,
                range: prereg::UserRange,
                pages: &mut prereg::PageSink<'_>,
            ) -> Result<prereg::PinId, prereg::PinError> {
                $crate::vfio::kernel_pins::pin(self, range, pages)
            }

            /// The pages need no mark for `dirty`: the kernel marks what a device may have written when it unpins.
            fn unpin(&self, pin: prereg::PinId, range: prereg::UserRange, _dirty: prereg::DirtyPages<'_>) {
                $crate::vfio::kernel_pins::unpin(self, pin, range);
            }
        }

        $crate::account::impl_charge!($backend);
    };
}
pub(crate) use impl_kernel_pin;

/// Maps memory at I/O addresses, which pins it.
pub(crate) trait IovaBackend: KernelPin {
    /// Maps the memory from `ua` on at `iova`, or fails with the call and its error.
    fn map(&self, ua: u64, iova: IovaRange) -> Result<(), (&'static str, Errno)>;

    /// Unmaps; `false` unless the kernel confirms that all of it was unmapped.
    fn unmap(&self, iova: IovaRange) -> bool;
}

const NO_IOVA: &str =
    "allocating I/O addresses (the allowed ranges have no room for the region; unregister something)";

/// Pins by I/O address, and the limits that the addresses are allocated under.
#[derive(Debug)]
pub(crate) struct IovaPins<L> {
    records: Mutex<Records<L>>,
}

#[derive(Debug)]
struct Records<L> {
    limits: L,
    allocator: IovaAllocator,
    pins: BTreeMap<u64, Vec<IovaRange>>,
    next: u64,
}

impl<L: Clone> IovaPins<L> {
    pub(crate) fn new(limits: L, allocator: IovaAllocator) -> Self {
        Self { records: Mutex::new(Records { limits, allocator, pins: BTreeMap::new(), next: 1 }) }
    }

    fn records(&self) -> MutexGuard<'_, Records<L>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn limits(&self) -> L {
        self.records().limits.clone()
    }

    pub(crate) fn free_bytes(&self) -> u64 {
        self.records().allocator.free_bytes()
    }

    /// Replaces the limits. Free addresses outside `ranges` are not allocated any more.
    pub(crate) fn restrict(&self, limits: L, ranges: &[(u64, u64)]) {
        let mut records = self.records();
        records.allocator.restrict(ranges);
        records.limits = limits;
    }

    /// Maps `range` through `backend` and pushes its I/O addresses; returns the pin and how many I/O ranges it took.
    pub(crate) fn pin(
        &self,
        backend: &impl IovaBackend,
        range: UserRange,
        page_sizes: u64,
        pages: &mut PageSink<'_>,
    ) -> Result<(PinId, usize), PinError> {
        let allocated = self.records().allocator.alloc(range.first().raw(), range.bytes(), page_sizes);
        let iovas =
            allocated.ok_or(PinError::Os { ua: range.first(), errno: Errno::ENOSPC, during: NO_IOVA })?;
        self.map_all(backend, range, &iovas)?;
        let shift = backend.pin_state().granule.shift().get();
        for iova in &iovas {
            if let Err(error) = pages.push(HostAddr::new(iova.iova), iova.bytes >> shift) {
                self.unmap(backend, &iovas, iovas.len());
                return Err(error.into());
            }
        }
        let count = iovas.len();
        let mut records = self.records();
        let id = records.next;
        records.next += 1;
        records.pins.insert(id, iovas);
        Ok((PinId::new(id), count))
    }

    /// Releases a pin; returns how many I/O ranges it had, `None` when there is none of that name.
    pub(crate) fn unpin(&self, backend: &impl IovaBackend, pin: PinId) -> Option<usize> {
        let iovas = self.records().pins.remove(&pin.raw())?;
        self.unmap(backend, &iovas, iovas.len());
        Some(iovas.len())
    }

    /// Maps every range, or none.
    fn map_all(
        &self,
        backend: &impl IovaBackend,
        range: UserRange,
        iovas: &[IovaRange],
    ) -> Result<(), PinError> {
        let mut ua = range.first().raw();
        for (done, &iova) in iovas.iter().enumerate() {
            if let Err((during, errno)) = backend.map(ua, iova) {
                self.unmap(backend, iovas, done);
                // The container's budget of mappings is used up (`dma_entry_limit`).
                if errno == Errno::ENOSPC {
                    let need = u32::try_from(iovas.len() - done).unwrap_or(u32::MAX);
                    return Err(PinError::NoSlot { need, free: 0 });
                }
                let granule = backend.pin_state().granule;
                let part = UserRange::new(UserAddr::new(ua), iova.bytes, granule).unwrap_or(range);
                return Err(backend.refusal(during, errno, range, part));
            }
            ua = ua.wrapping_add(iova.bytes);
        }
        Ok(())
    }

    /// Unmaps the first `mapped` ranges and frees all addresses, except those that the kernel did not confirm.
    fn unmap(&self, backend: &impl IovaBackend, iovas: &[IovaRange], mapped: usize) {
        for (index, &iova) in iovas.iter().enumerate() {
            if index >= mapped || backend.unmap(iova) {
                self.records().allocator.free(iova);
            } else {
                backend.pin_state().stuck.add(iova.bytes);
            }
        }
    }
}
