//! The pin back end on iommufd: one I/O address space (IOAS) that pins memory, and one for devices that copies mappings
//! from it.
//!
//! iommufd pins lazily: memory mapped into an IOAS without a hardware page table is not pinned, and attaching a device
//! later may then fail. So the *staging* IOAS gets a hardware page table (HWPT) that is allocated for the device but
//! not attached to it. Memory mapped there is pinned and charged at once, once, and unreachable for devices. Devices
//! are attached to the *device* IOAS, which gets its mappings from the staging IOAS by `IOMMU_IOAS_COPY`, without a pin
//! or a charge. Pins therefore survive the last device, and another device costs no pin.
//!
//! [`Placement`] selects what devices reach: all registered memory, at I/O addresses that are this back end's host
//! addresses, or only what an [`IommufdTable`] maps for them.

use std::fmt;
use std::sync::Arc;

use prereg::{AddressKind, Errno, PageSink, PinError, PinId, UserRange};

use crate::account::MemlockAccount;
use crate::counter::Counter;
use crate::proc_status::KernelCount;
use crate::vfio::device::VfioDevice;
use crate::vfio::error::VfioError;
use crate::vfio::host::VfioHost;
use crate::vfio::iova::{IovaAllocator, IovaRange};
use crate::vfio::kernel::{IOAS_COPY, IOAS_MAP};
use crate::vfio::kernel_pins::{IovaBackend, IovaPins, KernelPin, PinState, impl_kernel_pin};

pub(crate) mod ioas;
pub(crate) mod table;

use ioas::{Devices, IoasPair, IommufdLimits};
use table::IommufdTable;

/// The registered memory that devices reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Placement {
    /// All of it, in the device IOAS, at the host addresses of its mappings.
    #[default]
    DeviceIoas,
    /// Only what an [`IommufdTable`] maps into the device IOAS. Host addresses are those of the staging IOAS, which no
    /// device uses.
    StagingIoas,
}

/// Pins by mapping into an IOAS of iommufd.
///
/// ```no_run
/// use std::sync::Arc;
/// use prereg::{AddressSpace, PageShift};
/// use prereg_linux::{GuestMemory, Iommufd, Placement};
///
/// let iommufd = Arc::new(Iommufd::open("0000:00:04.0", Placement::DeviceIoas)?);
/// let space = AddressSpace::builder(Arc::clone(&iommufd)).build()?;
/// let ram = GuestMemory::memfd("guest", 1 << 30)?;
/// let registration = space.register(&ram)?;                         // pinned now, not when a device comes
/// let mut translator = space.translator();
/// let mapping = translator.map(registration.ua(), PageShift::K4)?;  // no system call
/// iommufd.add_device("0000:00:05.0")?;                              // pins nothing
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Iommufd {
    // Devices are closed before the descriptor through which their mappings were made.
    devices: Devices,
    ioas: Arc<IoasPair>,
    placement: Placement,
    state: PinState,
    pins: IovaPins<IommufdLimits>,
    map_calls: Counter,
    copy_calls: Counter,
}

/// Counters of an [`Iommufd`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct IommufdState {
    /// Bytes pinned now.
    pub pinned_bytes: u64,
    /// `IOMMU_IOAS_MAP` calls, which pin.
    pub map_calls: u64,
    /// `IOMMU_IOAS_COPY` calls, which do not pin.
    pub copy_calls: u64,
    /// Attached devices.
    pub devices: u32,
    /// Whether memory stays pinned without a device, because the kernel could allocate a page table for the staging
    /// IOAS.
    pub pins_without_device: bool,
    /// Unpins of unknown pins, which are ignored: a defect of the caller.
    pub stray_unpins: u64,
    /// Bytes that the kernel did not unmap; their I/O addresses are never used again.
    pub stuck_bytes: u64,
}

const TAKEN: &str = "IOMMU_IOAS_MAP (the I/O addresses are taken, and not by this back end)";
const OUTSIDE: &str =
    "IOMMU_IOAS_MAP (the IOMMU does not accept these addresses; was a device added that accepts fewer?)";
const LAZY: &str = "pinning (no device is attached and this kernel's iommufd makes no page table without one, so it would pin \
                    nothing; attach a device first)";

/// Page sizes to align I/O addresses to, if memory is large enough: those of most IOMMUs.
const LARGE_PAGES: u64 = 1 << 21 | 1 << 30;

impl Iommufd {
    /// Opens iommufd and attaches `device` (`0000:00:04.0`).
    ///
    /// # Errors
    /// [`VfioError`]; nothing stays open.
    pub fn open(device: &str, placement: Placement) -> Result<Self, VfioError> {
        Self::open_on(&VfioHost::system(), device, placement)
    }

    /// [`open`](Self::open) on another host than this machine's kernel.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_on(host: &VfioHost, device: &str, placement: Placement) -> Result<Self, VfioError> {
        let state = PinState::new(&host.kernel)?;
        let ioas = IoasPair::open(host)?;
        let devices = Devices::default();
        let first = ioas.open_device(host, device)?;
        ioas.alloc_staging_hwpt(first.id)?;
        devices.push(first);
        let limits = ioas.limits()?;
        let unit = limits.alignment.max(state.granule.bytes());
        let allocator = IovaAllocator::new(&limits.raw_ranges(), unit);
        Ok(Self {
            devices,
            ioas: Arc::new(ioas),
            placement,
            state,
            pins: IovaPins::new(limits, allocator),
            map_calls: Counter::default(),
            copy_calls: Counter::default(),
        })
    }

    /// Returns an attached device.
    ///
    /// # Errors
    /// [`VfioError::NoDevice`].
    pub fn device(&self, device: &str) -> Result<Arc<VfioDevice>, VfioError> {
        self.devices.find(device).ok_or_else(|| VfioError::NoDevice { device: device.to_owned() })
    }

    /// Attaches another device, which reaches what the first one reaches. Pins and charges nothing. A device that was
    /// removed and is still open is attached again.
    ///
    /// # Errors
    /// [`VfioError`]; nothing changes.
    pub fn add_device(&self, device: &str) -> Result<Arc<VfioDevice>, VfioError> {
        let attached = match self.devices.take_detached(device) {
            Some(detached) => self.ioas.reattach(detached)?,
            None => self.ioas.open_device(self.ioas.host(), device)?,
        };
        if !self.ioas.has_staging_hwpt() {
            self.ioas.alloc_staging_hwpt(attached.id)?;
        }
        let shared = Arc::clone(&attached.device);
        self.devices.push(attached);
        let limits = self.ioas.limits()?;
        let ranges = limits.raw_ranges();
        self.pins.restrict(limits, &ranges);
        Ok(shared)
    }

    /// Detaches a device. Registered memory stays pinned, even after the last device.
    ///
    /// # Errors
    /// [`VfioError::MemoryRegistered`] (EBUSY) for the last device if this kernel pins nothing without one.
    pub fn remove_device(&self, device: &str) -> Result<(), VfioError> {
        // A registration at the same time may come before or after this check; the caller must order the two.
        let bytes = self.state.pinned.get();
        if bytes > 0 && !self.ioas.has_staging_hwpt() && self.devices.count() == 1 {
            return Err(VfioError::MemoryRegistered { what: format!("{device}, the last device,"), bytes });
        }
        self.devices.detach(device)
    }

    /// A table that decides what devices reach; `None` unless the placement is [`Placement::StagingIoas`].
    #[must_use]
    pub fn table(&self) -> Option<IommufdTable> {
        (self.placement == Placement::StagingIoas)
            .then(|| IommufdTable::new(Arc::clone(&self.ioas), self.limits()))
    }

    /// Limits on mappings for the devices attached now.
    #[must_use]
    pub fn limits(&self) -> IommufdLimits {
        self.pins.limits()
    }

    /// The account that charges go to.
    #[must_use]
    pub const fn account(&self) -> &MemlockAccount {
        &self.state.account
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn state(&self) -> IommufdState {
        IommufdState {
            pinned_bytes: self.state.pinned.get(),
            map_calls: self.map_calls.get(),
            copy_calls: self.copy_calls.get(),
            devices: self.devices.count(),
            pins_without_device: self.ioas.has_staging_hwpt(),
            stray_unpins: self.state.stray.get(),
            stuck_bytes: self.state.stuck.get(),
        }
    }
}

impl KernelPin for Iommufd {
    const NAME: &'static str = "iommufd";
    const ADDRESSES: AddressKind = AddressKind::Iova;
    const COUNTER: fn(KernelCount) -> u64 = |counted| counted.pinned;

    fn pin_state(&self) -> &PinState {
        &self.state
    }

    fn check(&self, range: UserRange) -> Result<(), PinError> {
        if !self.ioas.has_staging_hwpt()
            && (self.devices.count() == 0 || self.placement == Placement::StagingIoas)
        {
            return Err(PinError::Os { ua: range.first(), errno: Errno::EOPNOTSUPP, during: LAZY });
        }
        Ok(())
    }

    fn pin_prefaulted(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        self.pins.pin(self, range, LARGE_PAGES, pages).map(|(pin, _)| pin)
    }

    fn release(&self, pin: PinId, _range: UserRange) -> bool {
        self.pins.unpin(self, pin).is_some()
    }
}

impl IovaBackend for Iommufd {
    /// Maps into the staging IOAS and, for [`Placement::DeviceIoas`], copies the mapping to the device IOAS.
    fn map(&self, ua: u64, iova: IovaRange) -> Result<(), (&'static str, Errno)> {
        self.map_calls.add(1);
        self.ioas.map_staging(ua, iova).map_err(|errno| refused(IOAS_MAP.name, errno))?;
        if self.placement == Placement::DeviceIoas {
            self.copy_calls.add(1);
            if let Err(errno) = self.ioas.copy_to_device(iova.iova, iova) {
                if !self.ioas.unmap_staging(iova) {
                    self.state.stuck.add(iova.bytes);
                }
                return Err(refused(IOAS_COPY.name, errno));
            }
        }
        Ok(())
    }

    fn unmap(&self, iova: IovaRange) -> bool {
        // The device IOAS first, so that a device never reaches memory that is not pinned.
        (self.placement == Placement::StagingIoas || self.ioas.unmap_device(iova))
            && self.ioas.unmap_staging(iova)
    }
}

/// The call to name in an error, with the likely cause if the errno implies one.
const fn refused(during: &'static str, errno: Errno) -> (&'static str, Errno) {
    match errno {
        Errno::EEXIST => (TAKEN, errno),
        Errno::EINVAL | Errno::EOVERFLOW => (OUTSIDE, errno),
        errno => (during, errno),
    }
}

// The kernel pins what is mapped into the staging IOAS, and the pushed addresses are those it was mapped at.
impl_kernel_pin!(Iommufd);

impl fmt::Debug for Iommufd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommufd")
            .field("placement", &self.placement)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
