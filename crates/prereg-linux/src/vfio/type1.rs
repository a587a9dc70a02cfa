//! The pin back end on a VFIO type1 container: a region is mapped once, at I/O addresses chosen here, and pinned by that.
//!
//! A region takes one `VFIO_IOMMU_MAP_DMA`, or one for each contiguous allowed range when no range has room for it all;
//! never one a page or one a huge page. From then on its host addresses are I/O addresses, and mapping is a lookup and a
//! count without any system call. An unmap is believed only if the kernel says that all of it went.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{
    AddressKind, Barrier, Charge, ChargeError, DirtyPages, Errno, Granule, HostAddr, PageSink, Pin, PinError,
    PinId, UserAddr, UserRange,
};

use super::container::{Container, TYPE1_V2};
use super::device::VfioDevice;
use super::error::VfioError;
use super::host::VfioHost;
use super::iova::{IovaAllocator, IovaRange};
use super::kernel::{Descriptor, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, Kernel, ioctl_struct};
use super::sys::wrap_fd;
use super::type1_limits::Type1Limits;
use super::uapi::{DMA_READ, DMA_WRITE, MapDma, UapiStruct, UnmapDma};
use crate::account::MemlockAccount;
use crate::barrier::Membarrier;
use crate::pagemap::system_granule;
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
/// let registration = space.register(&ram)?;           // one ioctl; pinned
/// let device = vfio.device("0000:00:04.0")?;
/// let mut translator = space.translator();
/// let mapping = translator.map(registration.ua(), PageShift::K4)?;  // none
/// println!("{} finds it at {}", device.name(), mapping.hpa());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VfioType1 {
    container: Hold,
    kernel: Arc<dyn Kernel>,
    granule: Granule,
    /// Pins end with the process that made them: a child of `fork` has its own memory, and no say.
    process: u32,
    account: MemlockAccount,
    books: Mutex<Books>,
    counts: Counts,
}

/// How the container is held.
#[derive(Debug)]
enum Hold {
    Own(Container),
    /// Somebody else's, who minds its groups and devices.
    Shared(Arc<dyn Descriptor>),
}

#[derive(Debug)]
struct Books {
    limits: Type1Limits,
    space: IovaAllocator,
    pins: BTreeMap<u64, Vec<IovaRange>>,
    next: u64,
}

#[derive(Debug, Default)]
struct Counts {
    map_calls: AtomicU64,
    unmap_calls: AtomicU64,
    mappings: AtomicU64,
    pinned: AtomicU64,
    stray: AtomicU64,
    stuck: AtomicU64,
}

/// What a [`VfioType1`] has in use, as plain numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Type1State {
    /// Mappings in the container: one a region, or one a piece where a region was split.
    pub mappings: u64,
    /// Bytes pinned now.
    pub pinned_bytes: u64,
    /// Times that the kernel was asked to map.
    pub map_calls: u64,
    /// Times that the kernel was asked to unmap.
    pub unmap_calls: u64,
    /// I/O addresses free, in bytes.
    pub free_bytes: u64,
    /// Releases of pins that were not held: a caller's defect, ignored.
    pub stray_unpins: u64,
    /// Bytes that the kernel would not unmap; their I/O addresses are never used again.
    pub stuck_bytes: u64,
}

const OTHERS_MAP: &str = "VFIO_IOMMU_MAP_DMA (somebody else maps in the same container at addresses that were taken for free; \
                          give this back end a container of its own)";
const NO_ROOM: &str =
    "finding I/O addresses (the container's ranges have no room for the region; unregister something)";
const OUTSIDE: &str =
    "VFIO_IOMMU_MAP_DMA (the IOMMU does not take these addresses; was a device added that takes less?)";
const COARSE: &str =
    "the IOMMU's smallest page is larger than the system's; align the region's start and length to that";
const CHILD: &str = "pinning in a child of the process that made the back end";

impl VfioType1 {
    /// A container of its own with the IOMMU group of `device` (`0000:00:04.0`) in it.
    ///
    /// # Errors
    /// [`VfioError`]; nothing stays open.
    pub fn open(device: &str) -> Result<Self, VfioError> {
        Self::open_on(&VfioHost::system(), device)
    }

    /// [`open`](Self::open) on a host of one's choice.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_on(host: &VfioHost, device: &str) -> Result<Self, VfioError> {
        let container = Container::open(host, device, TYPE1_V2)?;
        Self::with(Hold::Own(container), Arc::clone(&host.kernel))
    }

    /// On a container that its caller opened, gave a group to and set to type1 version 2. Its caller keeps a group in it:
    /// the kernel drops all mappings with the last one.
    ///
    /// # Errors
    /// [`VfioError::Os`] when it is no such container.
    pub fn on_container(container: OwnedFd) -> Result<Self, VfioError> {
        Self::with(Hold::Shared(wrap_fd(container)), VfioHost::system().kernel)
    }

    fn with(container: Hold, kernel: Arc<dyn Kernel>) -> Result<Self, VfioError> {
        let granule = system_granule().map_err(|error| VfioError::Os {
            during: "asking for the system page",
            on: "this host".into(),
            errno: error.errno(),
        })?;
        let limits = Type1Limits::query(container.descriptor())?;
        let unit = limits.smallest_page(granule.bytes()).max(granule.bytes());
        let space = IovaAllocator::new(&limits.raw_ranges(), unit);
        Ok(Self {
            container,
            kernel,
            granule,
            process: std::process::id(),
            account: MemlockAccount::new(granule),
            books: Mutex::new(Books { limits, space, pins: BTreeMap::new(), next: 1 }),
            counts: Counts::default(),
        })
    }

    /// Opens a device of a group of this container. `None` on a container that is somebody else's.
    ///
    /// # Errors
    /// [`VfioError`].
    pub fn device(&self, device: &str) -> Result<VfioDevice, VfioError> {
        self.own()?.device(device)
    }

    /// Takes the group of another device into the container. What is registered is then mapped for its devices too, and
    /// pinned no second time.
    ///
    /// # Errors
    /// [`VfioError`]; the container is as it was.
    pub fn add_group_of(&self, device: &str) -> Result<(), VfioError> {
        let own = self.own()?;
        own.join_group_of(device)?;
        let limits = Type1Limits::query(own.descriptor())?;
        let mut books = self.books();
        books.space.restrict(&limits.raw_ranges());
        books.limits = limits;
        Ok(())
    }

    /// Lets the group of a device go, unless it is the last one and memory is registered.
    ///
    /// # Errors
    /// [`VfioError::MemoryRegistered`] (EBUSY), [`VfioError::DeviceBusy`] while its device is open.
    pub fn remove_group_of(&self, device: &str) -> Result<(), VfioError> {
        // Relaxed: a caller who registers at the same time takes his chance either way.
        self.own()?.leave_group_of(device, self.counts.pinned.load(Ordering::Relaxed))
    }

    fn own(&self) -> Result<&Container, VfioError> {
        match &self.container {
            Hold::Own(container) => Ok(container),
            Hold::Shared(_) => Err(VfioError::Os {
                during: "looking for a group",
                on: "a container that somebody else opened".into(),
                errno: Errno::EOPNOTSUPP,
            }),
        }
    }

    /// What the container can map, and where, as the kernel said last.
    #[must_use]
    pub fn limits(&self) -> Type1Limits {
        self.books().limits.clone()
    }

    /// The account that charges go to.
    #[must_use]
    pub const fn account(&self) -> &MemlockAccount {
        &self.account
    }

    /// What is in use now.
    #[must_use]
    pub fn state(&self) -> Type1State {
        let free_bytes = self.books().space.free_bytes();
        // Relaxed, all: numbers for reports.
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Type1State {
            mappings: read(&self.counts.mappings),
            pinned_bytes: read(&self.counts.pinned),
            map_calls: read(&self.counts.map_calls),
            unmap_calls: read(&self.counts.unmap_calls),
            free_bytes,
            stray_unpins: read(&self.counts.stray),
            stuck_bytes: read(&self.counts.stuck),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps one piece.
    fn map(&self, ua: u64, piece: IovaRange) -> Result<(), Errno> {
        let mut map = MapDma {
            argsz: MapDma::BYTES as u32,
            flags: DMA_READ | DMA_WRITE,
            vaddr: ua,
            iova: piece.iova,
            size: piece.bytes,
        };
        add(&self.counts.map_calls, 1);
        match ioctl_struct(self.container.descriptor(), IOMMU_MAP_DMA, &mut map)? {
            0 => Ok(()),
            // No kernel answers that; if one did, it would say that less was mapped than asked.
            _ => Err(Errno::EFAULT),
        }
    }

    /// Unmaps one piece; `false` when the kernel does not say that all of it went.
    fn unmap(&self, piece: IovaRange) -> bool {
        let mut unmap =
            UnmapDma { argsz: UnmapDma::BYTES as u32, flags: 0, iova: piece.iova, size: piece.bytes };
        add(&self.counts.unmap_calls, 1);
        let result = ioctl_struct(self.container.descriptor(), IOMMU_UNMAP_DMA, &mut unmap);
        result == Ok(0) && unmap.size == piece.bytes
    }

    /// Unmaps what was mapped and gives its I/O addresses back, but for what the kernel would not unmap.
    fn release(&self, pieces: &[IovaRange], mapped: usize) {
        for (index, &piece) in pieces.iter().enumerate() {
            if index >= mapped || self.unmap(piece) {
                self.books().space.free(piece);
            } else {
                add(&self.counts.stuck, piece.bytes);
            }
        }
    }

    /// What a refusal of the piece at `part` means.
    fn judge(&self, errno: Errno, range: UserRange, part: UserRange, left: usize) -> PinError {
        match errno {
            Errno::ENOMEM => match self.limit_bytes() {
                Some(limit) => {
                    let used = KernelCount::now().map_or(0, |count| count.locked);
                    PinError::Limit { need: range.bytes(), used, limit }
                }
                None => PinError::OutOfMemory,
            },
            // The container's budget of mappings is used up; what the IOMMU driver says has no such number.
            Errno::ENOSPC => PinError::NoSlot { need: u32::try_from(left).unwrap_or(u32::MAX), free: 0 },
            Errno::EFAULT => self.kernel.unpinnable_reason(part),
            errno => {
                let during = match errno {
                    Errno::EEXIST => OTHERS_MAP,
                    Errno::EINVAL | Errno::EOVERFLOW => OUTSIDE,
                    _ => IOMMU_MAP_DMA.name,
                };
                PinError::Os { ua: part.first(), errno, during }
            }
        }
    }

    fn limit_bytes(&self) -> Option<u64> {
        self.account.limit().map(|pages| pages << self.granule.shift().get())
    }

    /// Maps all pieces, or none.
    fn fill(&self, range: UserRange, pieces: &[IovaRange]) -> Result<(), PinError> {
        let mut ua = range.first().raw();
        for (done, &piece) in pieces.iter().enumerate() {
            if let Err(errno) = self.map(ua, piece) {
                self.release(pieces, done);
                let part = UserRange::new(UserAddr::new(ua), piece.bytes, self.granule).unwrap_or(range);
                return Err(self.judge(errno, range, part, pieces.len() - done));
            }
            ua = ua.wrapping_add(piece.bytes);
        }
        Ok(())
    }
}

impl Hold {
    fn descriptor(&self) -> &dyn Descriptor {
        match self {
            Self::Own(container) => container.descriptor(),
            Self::Shared(descriptor) => &**descriptor,
        }
    }
}

fn add(count: &AtomicU64, by: u64) {
    // Relaxed: numbers for reports.
    count.fetch_add(by, Ordering::Relaxed);
}

fn subtract(count: &AtomicU64, by: u64) {
    // Relaxed: as in `add`.
    count.fetch_sub(by, Ordering::Relaxed);
}

// SAFETY: the kernel pins what is mapped, and the IOVAs are those it was mapped at.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for VfioType1 {
    fn name(&self) -> &'static str {
        "vfio-type1"
    }

    fn granule(&self) -> Granule {
        self.granule
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Iova
    }

    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        Membarrier::shared()
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        if self.process != std::process::id() {
            return Err(PinError::Os { ua: range.first(), errno: Errno::EPERM, during: CHILD });
        }
        let unit = self.books().limits.smallest_page(self.granule.bytes());
        if (range.first().raw() | range.bytes()) & (unit - 1) != 0 {
            return Err(PinError::Unsupported { ua: range.first(), why: COARSE });
        }
        self.kernel.prefault(range)?;
        let pieces = {
            let mut books = self.books();
            let sizes = books.limits.page_sizes;
            books.space.alloc(range.first().raw(), range.bytes(), sizes)
        };
        let no_room = PinError::Os { ua: range.first(), errno: Errno::ENOSPC, during: NO_ROOM };
        let pieces = pieces.ok_or(no_room)?;
        self.fill(range, &pieces)?;
        for piece in &pieces {
            let pushed = pages.push(HostAddr::new(piece.iova), piece.bytes >> self.granule.shift().get());
            if let Err(error) = pushed {
                self.release(&pieces, pieces.len());
                return Err(error.into());
            }
        }
        add(&self.counts.mappings, pieces.len() as u64);
        add(&self.counts.pinned, range.bytes());
        let mut books = self.books();
        let id = books.next;
        books.next += 1;
        books.pins.insert(id, pieces);
        Ok(PinId(id))
    }

    /// The pages need no mark for `dirty`: what a device may write the kernel marks as written when it unpins it.
    fn unpin(&self, pin: PinId, range: UserRange, _dirty: DirtyPages<'_>) {
        if self.process != std::process::id() {
            return;
        }
        let Some(pieces) = self.books().pins.remove(&pin.0) else {
            add(&self.counts.stray, 1);
            return;
        };
        self.release(&pieces, pieces.len());
        subtract(&self.counts.mappings, pieces.len() as u64);
        subtract(&self.counts.pinned, range.bytes());
    }
}

impl Charge for VfioType1 {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.account.charge(pages)
    }

    fn uncharge(&self, pages: u64) {
        self.account.uncharge(pages);
    }
}

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
