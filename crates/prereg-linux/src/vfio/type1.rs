//! The pin back end on a VFIO type1 container: registering a region maps it at I/O addresses chosen here, which pins it.
//!
//! A region takes one `VFIO_IOMMU_MAP_DMA`, or one for each allowed range it is split over when no range has room for all of
//! it; never one per page. Its host addresses are I/O addresses, so mapping is a lookup and a count without a system call.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use prereg::{AddressKind, Errno, PageSink, PinError, PinId, UserRange};

use super::container::{Container, TYPE1_V2};
use super::device::VfioDevice;
use super::error::VfioError;
use super::host::VfioHost;
use super::iova::{IovaAllocator, IovaRange};
use super::kernel::{Descriptor, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, Kernel, ioctl_struct};
use super::kernel_pins::{IovaBackend, IovaPins, KernelPin, PinState, impl_kernel_pin};
use super::sys::wrap_fd;
use super::type1_limits::Type1Limits;
use super::uapi::{DMA_READ, DMA_WRITE, MapDma, UapiStruct, UnmapDma};
use crate::account::MemlockAccount;
use crate::counter::Counter;
use crate::proc_status::KernelCount;

/// Pins by mapping into a VFIO type1 container.
///
/// ```no_run
/// use std::sync::Arc;
/// use prereg::{AddressSpace, PageShift};
/// use prereg_linux::{GuestMemory, VfioType1};
///
/// let vfio = Arc::new(VfioType1::open("0000:00:04.0")?);
/// let space = AddressSpace::builder(Arc::clone(&vfio)).build()?;
/// let ram = GuestMemory::memfd("guest", 1 << 30)?;
/// let registration = space.register(&ram)?;           // one ioctl, which pins
/// let device = vfio.device("0000:00:04.0")?;
/// let mut translator = space.translator();
/// let mapping = translator.map(registration.ua(), PageShift::K4)?;  // no system call
/// println!("{} reaches it at {}", device.name(), mapping.hpa());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VfioType1 {
    container: ContainerHandle,
    state: PinState,
    pins: IovaPins<Type1Limits>,
    mappings: Counter,
    map_calls: Counter,
    unmap_calls: Counter,
}

/// The container, and who manages its groups.
#[derive(Debug)]
enum ContainerHandle {
    Owned(Container),
    /// The caller opened it and manages its groups and devices.
    Caller(Arc<dyn Descriptor>),
}

/// Counters of a [`VfioType1`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Type1State {
    /// Mappings in the container: one per region, more for a region that was split.
    pub mappings: u64,
    /// Bytes pinned now.
    pub pinned_bytes: u64,
    /// `VFIO_IOMMU_MAP_DMA` calls.
    pub map_calls: u64,
    /// `VFIO_IOMMU_UNMAP_DMA` calls.
    pub unmap_calls: u64,
    /// Free I/O addresses, in bytes.
    pub free_bytes: u64,
    /// Unpins of unknown pins, which are ignored: a defect of the caller.
    pub stray_unpins: u64,
    /// Bytes that the kernel did not unmap; their I/O addresses are never used again.
    pub stuck_bytes: u64,
}

const TAKEN: &str = "VFIO_IOMMU_MAP_DMA (something else in this process maps into the same container, at I/O addresses that \
                     were free here; give this back end a container of its own)";
const OUTSIDE: &str =
    "VFIO_IOMMU_MAP_DMA (the IOMMU does not accept these addresses; was a device added that accepts fewer?)";
const COARSE: &str =
    "the IOMMU's smallest page is larger than the system's; align the region's start and length to that";

impl VfioType1 {
    /// Opens a container with the IOMMU group of `device` (`0000:00:04.0`) in it.
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
        let container = Container::open(host, device, TYPE1_V2)?;
        Self::with(ContainerHandle::Owned(container), &host.kernel)
    }

    /// Uses a container that the caller opened, added a group to and set to type1 version 2. The caller keeps a group in it:
    /// the kernel drops all mappings with the last one.
    ///
    /// # Errors
    /// [`VfioError::Os`] when it is no such container.
    pub fn on_container(container: OwnedFd) -> Result<Self, VfioError> {
        Self::with(ContainerHandle::Caller(wrap_fd(container)), &VfioHost::system().kernel)
    }

    fn with(container: ContainerHandle, kernel: &Arc<dyn Kernel>) -> Result<Self, VfioError> {
        let state = PinState::new(kernel)?;
        let limits = Type1Limits::query(container.descriptor())?;
        let page = state.granule.bytes();
        let allocator = IovaAllocator::new(&limits.raw_ranges(), limits.smallest_page(page).max(page));
        Ok(Self {
            container,
            state,
            pins: IovaPins::new(limits, allocator),
            mappings: Counter::default(),
            map_calls: Counter::default(),
            unmap_calls: Counter::default(),
        })
    }

    /// Opens a device of a group of this container.
    ///
    /// # Errors
    /// [`VfioError`]; EOPNOTSUPP on a caller's container.
    pub fn device(&self, device: &str) -> Result<VfioDevice, VfioError> {
        self.owned()?.device(device)
    }

    /// Adds the group of another device to the container. The kernel maps registered memory for its devices too, without a
    /// second pin.
    ///
    /// # Errors
    /// [`VfioError`]; the container is unchanged.
    pub fn add_group_of(&self, device: &str) -> Result<(), VfioError> {
        let container = self.owned()?;
        container.join_group_of(device)?;
        let limits = Type1Limits::query(container.descriptor())?;
        let ranges = limits.raw_ranges();
        self.pins.restrict(limits, &ranges);
        Ok(())
    }

    /// Removes the group of a device, unless it is the last one and memory is registered.
    ///
    /// # Errors
    /// [`VfioError::MemoryRegistered`] (EBUSY), [`VfioError::DeviceBusy`] while its device is open.
    pub fn remove_group_of(&self, device: &str) -> Result<(), VfioError> {
        // A registration at the same time may come before or after this check; the caller must order the two.
        self.owned()?.leave_group_of(device, self.state.pinned.get())
    }

    fn owned(&self) -> Result<&Container, VfioError> {
        match &self.container {
            ContainerHandle::Owned(container) => Ok(container),
            ContainerHandle::Caller(_) => Err(VfioError::Os {
                during: "looking for a group",
                on: "a container that the caller opened".into(),
                errno: Errno::EOPNOTSUPP,
            }),
        }
    }

    /// Limits on mappings, as the kernel reported them when the last group was added.
    #[must_use]
    pub fn limits(&self) -> Type1Limits {
        self.pins.limits()
    }

    /// The account that charges go to.
    #[must_use]
    pub const fn account(&self) -> &MemlockAccount {
        &self.state.account
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn state(&self) -> Type1State {
        Type1State {
            mappings: self.mappings.get(),
            pinned_bytes: self.state.pinned.get(),
            map_calls: self.map_calls.get(),
            unmap_calls: self.unmap_calls.get(),
            free_bytes: self.pins.free_bytes(),
            stray_unpins: self.state.stray.get(),
            stuck_bytes: self.state.stuck.get(),
        }
    }
}

impl ContainerHandle {
    fn descriptor(&self) -> &dyn Descriptor {
        match self {
            Self::Owned(container) => container.descriptor(),
            Self::Caller(descriptor) => &**descriptor,
        }
    }
}

impl KernelPin for VfioType1 {
    const NAME: &'static str = "vfio-type1";
    const ADDRESSES: AddressKind = AddressKind::Iova;
    const COUNTER: fn(KernelCount) -> u64 = |counted| counted.locked;

    fn pin_state(&self) -> &PinState {
        &self.state
    }

    fn check(&self, range: UserRange) -> Result<(), PinError> {
        let unit = self.pins.limits().smallest_page(self.state.granule.bytes());
        if (range.first().raw() | range.bytes()) & (unit - 1) != 0 {
            return Err(PinError::Unsupported { ua: range.first(), why: COARSE });
        }
        Ok(())
    }

    fn pin_prefaulted(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        let (pin, mappings) = self.pins.pin(self, range, self.pins.limits().page_sizes, pages)?;
        self.mappings.add(mappings as u64);
        Ok(pin)
    }

    fn release(&self, pin: PinId, _range: UserRange) -> bool {
        let mappings = self.pins.unpin(self, pin);
        self.mappings.sub(mappings.unwrap_or(0) as u64);
        mappings.is_some()
    }
}

impl IovaBackend for VfioType1 {
    fn map(&self, ua: u64, iova: IovaRange) -> Result<(), (&'static str, Errno)> {
        let mut map = MapDma {
            argsz: MapDma::BYTES as u32,
            flags: DMA_READ | DMA_WRITE,
            vaddr: ua,
            iova: iova.iova,
            size: iova.bytes,
        };
        self.map_calls.add(1);
        match ioctl_struct(self.container.descriptor(), IOMMU_MAP_DMA, &mut map) {
            Ok(0) => Ok(()),
            // No known kernel returns a positive number; it could only mean that less was mapped than requested.
            Ok(_) => Err((IOMMU_MAP_DMA.name, Errno::EFAULT)),
            Err(errno @ Errno::EEXIST) => Err((TAKEN, errno)),
            Err(errno @ (Errno::EINVAL | Errno::EOVERFLOW)) => Err((OUTSIDE, errno)),
            Err(errno) => Err((IOMMU_MAP_DMA.name, errno)),
        }
    }

    fn unmap(&self, iova: IovaRange) -> bool {
        let mut unmap =
            UnmapDma { argsz: UnmapDma::BYTES as u32, flags: 0, iova: iova.iova, size: iova.bytes };
        self.unmap_calls.add(1);
        let result = ioctl_struct(self.container.descriptor(), IOMMU_UNMAP_DMA, &mut unmap);
        result == Ok(0) && unmap.size == iova.bytes
    }
}

// The kernel pins what is mapped into the container, and the pushed addresses are those it was mapped at.
impl_kernel_pin!(VfioType1);

impl fmt::Debug for VfioType1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioType1")
            .field("container", &self.container)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
