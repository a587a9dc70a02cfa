//! The pin back end on a VFIO SPAPR TCE v2 container, the kernel's own pre-registration.
//!
//! `REGISTER_MEMORY` pins and charges memory, once ([`VfioSpaprV2`] as [`Pin`](prereg::Pin)). A device reaches it
//! through the entries of a window's table ([`SpaprTable`]), each of which is one counted mapping here and one TCE in
//! the kernel. The kernel translates user addresses itself, so they are the host addresses of this back end.
//!
//! Current kernels (6.12 and 7.2 were tested) violate the contract in places, so these cases never reach the kernel:
//! - The kernel returns 0 for an unregister of mapped memory and forgets region, pin and charge. Mappings counted here
//!   yield EBUSY first.
//! - It returns a positive number for a registration that was pinned only in part, and for misaligned maps. A positive
//!   number is a failure here.
//! - It does not check the end of a mapped range, and crashes. Ranges are checked against the window first.
//! - It leaks the charge of a window that it refuses. Arguments are checked first.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{AddressKind, Errno, HostAddr, PageShift, PageSink, PinError, PinId, UserRange};

use super::container::{Container, SPAPR_TCE_V2};
use super::device::VfioDevice;
use super::error::VfioError;
use super::host::VfioHost;
use super::kernel::{SPAPR_REGISTER_MEMORY, SPAPR_UNREGISTER_MEMORY, ioctl_struct};
use super::kernel_pins::{KernelPin, PinState, impl_kernel_pin};
use super::uapi::{RegisterMemory, UapiStruct};
use crate::account::MemlockAccount;
use crate::counter::Counter;
use crate::proc_status::KernelCount;

pub(crate) mod raw_container;
pub(crate) mod table;
pub(crate) mod window;

use table::SpaprTable;
use window::{SpaprLimits, WindowPlace, WindowSet};

/// Pins by registering with a VFIO SPAPR TCE v2 container.
///
/// ```no_run
/// use std::sync::Arc;
/// use prereg::{Access, AddressSpace, BusAddr};
/// use prereg_linux::{GuestMemory, VfioSpaprV2};
///
/// let vfio = Arc::new(VfioSpaprV2::open("0001:00:00.0")?);
/// let space = AddressSpace::builder(Arc::clone(&vfio)).build()?;
/// let ram = GuestMemory::memfd("guest", 1 << 30)?;
/// let registration = space.register(&ram)?;                          // REGISTER_MEMORY, once
/// let table = vfio.default_window()?;
/// let mut translator = space.translator();
/// table.put(&mut translator, BusAddr::new(0x1000), registration.ua(), Access::ReadWrite)?; // one MAP_DMA
/// assert_eq!(registration.unregister().unwrap_err().mapped(), 1);    // the kernel itself would return 0
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VfioSpaprV2 {
    windows: Arc<WindowSet>,
    state: PinState,
    /// First addresses of registered ranges.
    registered: Mutex<BTreeSet<u64>>,
    register_calls: Counter,
    unregister_calls: Counter,
}

/// Counters of a [`VfioSpaprV2`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SpaprState {
    /// Bytes registered with the kernel now.
    pub pinned_bytes: u64,
    /// `VFIO_IOMMU_SPAPR_REGISTER_MEMORY` calls.
    pub register_calls: u64,
    /// `VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY` calls.
    pub unregister_calls: u64,
    /// `VFIO_IOMMU_MAP_DMA` and `VFIO_IOMMU_UNMAP_DMA` calls of all tables.
    pub entry_calls: u64,
    /// Unpins of unknown pins, which are ignored: a defect of the caller.
    pub stray_unpins: u64,
    /// Bytes that the kernel did not unregister.
    pub stuck_bytes: u64,
}

const OVERLAPS: &str = "VFIO_IOMMU_SPAPR_REGISTER_MEMORY (it overlaps memory that other code of this process registered with \
                      VFIO as a different range; unregister that, or register the same range)";
const REGISTERED: &str = "VFIO_IOMMU_SPAPR_REGISTER_MEMORY (the container has it already; give this back end a container of its own)";

impl VfioSpaprV2 {
    /// Opens a container with the IOMMU group of `device` (`0001:00:00.0`) in it.
    ///
    /// # Errors
    /// [`VfioError`]; nothing stays open.
    pub fn open(device: &str) -> Result<Self, VfioError> {
        Self::open_on(&VfioHost::system(), device)
    }

    /// [`open`](Self::open) on another host than this machine's kernel.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_on(host: &VfioHost, device: &str) -> Result<Self, VfioError> {
        let state = PinState::new(&host.kernel)?;
        let container = Container::open(host, device, SPAPR_TCE_V2)?;
        Ok(Self {
            windows: Arc::new(WindowSet::new(container)?),
            state,
            registered: Mutex::new(BTreeSet::new()),
            register_calls: Counter::default(),
            unregister_calls: Counter::default(),
        })
    }

    /// Limits on the container's windows.
    #[must_use]
    pub fn limits(&self) -> SpaprLimits {
        self.windows.limits()
    }

    /// The table of the default 32-bit window. Only one can exist at a time.
    ///
    /// # Errors
    /// [`VfioError::Window`] when it exists already, or the window was replaced.
    pub fn default_window(&self) -> Result<SpaprTable, VfioError> {
        Ok(SpaprTable::new(WindowSet::open_default(&self.windows)?))
    }

    /// Creates a window of `bytes` bytes in pages of `page`, and its table. The kernel chooses the bus address.
    ///
    /// # Errors
    /// [`VfioError::Window`] for an invalid window, without a system call; [`VfioError::Os`].
    pub fn create_window(
        &self,
        page: PageShift,
        bytes: u64,
        place: WindowPlace,
    ) -> Result<SpaprTable, VfioError> {
        Ok(SpaprTable::new(WindowSet::create(&self.windows, page, bytes, place)?))
    }

    /// Opens a device of a group of this container.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn device(&self, device: &str) -> Result<VfioDevice, VfioError> {
        self.windows.container().device(device)
    }

    /// Adds the group of another device to the container.
    ///
    /// # Errors
    /// [`VfioError`]; the container is unchanged.
    pub fn add_group_of(&self, device: &str) -> Result<(), VfioError> {
        self.windows.container().join_group_of(device)
    }

    /// The account that charges go to.
    #[must_use]
    pub const fn account(&self) -> &MemlockAccount {
        &self.state.account
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn state(&self) -> SpaprState {
        SpaprState {
            pinned_bytes: self.state.pinned.get(),
            register_calls: self.register_calls.get(),
            unregister_calls: self.unregister_calls.get(),
            entry_calls: self.windows.entry_calls(),
            stray_unpins: self.state.stray.get(),
            stuck_bytes: self.state.stuck.get(),
        }
    }

    fn registered(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn register_argument(range: UserRange) -> RegisterMemory {
    RegisterMemory {
        argsz: RegisterMemory::BYTES as u32,
        flags: 0,
        vaddr: range.first().raw(),
        size: range.bytes(),
    }
}

impl KernelPin for VfioSpaprV2 {
    const NAME: &'static str = "vfio-spapr-v2";
    const ADDRESSES: AddressKind = AddressKind::User;
    const COUNTER: fn(KernelCount) -> u64 = |counted| counted.locked;

    fn pin_state(&self) -> &PinState {
        &self.state
    }

    fn pin_prefaulted(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        // Before the ioctl, so that nothing can fail after it.
        pages.push(HostAddr::new(range.first().raw()), range.pages(self.state.granule))?;
        self.register_calls.add(1);
        let mut argument = register_argument(range);
        match ioctl_struct(self.windows.container().descriptor(), SPAPR_REGISTER_MEMORY, &mut argument) {
            Ok(0) => {}
            // The number of pages that could be pinned; the kernel has released them and registered nothing.
            Ok(_) => return Err(self.state.kernel.unpinnable_reason(range)),
            Err(errno) => {
                let during = match errno {
                    Errno::EINVAL => OVERLAPS,
                    Errno::EBUSY => REGISTERED,
                    _ => SPAPR_REGISTER_MEMORY.name,
                };
                return Err(self.refusal(during, errno, range, range));
            }
        }
        self.registered().insert(range.first().raw());
        Ok(PinId::new(range.first().raw()))
    }

    fn release(&self, pin: PinId, range: UserRange) -> bool {
        if pin.raw() != range.first().raw() || !self.registered().remove(&pin.raw()) {
            return false;
        }
        self.unregister_calls.add(1);
        let mut argument = register_argument(range);
        let result =
            ioctl_struct(self.windows.container().descriptor(), SPAPR_UNREGISTER_MEMORY, &mut argument);
        if result != Ok(0) {
            self.state.stuck.add(range.bytes());
        }
        true
    }
}

// The kernel pins registered memory, and takes user addresses for it.
impl_kernel_pin!(VfioSpaprV2);

impl fmt::Debug for VfioSpaprV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioSpaprV2")
            .field("container", self.windows.container())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
