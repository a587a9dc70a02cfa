//! The pin back end on iommufd: a holding address space that pins once, and the device's own that copies from it.
//!
//! iommufd pins lazily: memory mapped into an I/O address space that no page table stands behind is not pinned at all, and
//! attaching a device later may then fail. So the holding space gets a page table of its own, made for the device but
//! attached to none: what is mapped there is pinned and charged at once, once, and reached by nobody. The space that devices
//! are attached to takes its mappings from there by `IOMMU_IOAS_COPY`, which pins and charges nothing. So pins survive the
//! last device that leaves, and every device more costs no pin.
//!
//! [`Placement`] says what devices reach: all that is registered, at I/O addresses that are the host addresses of this back
//! end; or only what an [`IommufdTable`] maps for them, range by range.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{
    AddressKind, Barrier, Charge, ChargeError, DirtyPages, Errno, Granule, HostAddr, PageSink, Pin, PinError,
    PinId, UserAddr, UserRange,
};

use crate::account::MemlockAccount;
use crate::barrier::Membarrier;
use crate::pagemap::system_granule;
use crate::proc_status::KernelCount;
use crate::vfio::device::VfioDevice;
use crate::vfio::error::VfioError;
use crate::vfio::host::VfioHost;
use crate::vfio::iova::{IovaAllocator, IovaRange};
use crate::vfio::kernel::{IOAS_COPY, IOAS_MAP, Kernel};

mod ioas;
mod table;

pub use ioas::IommufdLimits;
pub use table::{IommufdTable, IommufdTableError};

use ioas::{Devices, IoasPair};

/// What devices reach of registered memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Placement {
    /// All of it, at the host addresses of its mappings.
    #[default]
    DeviceIoas,
    /// What a table maps, where the table says. Host addresses are those of the holding space: no device's.
    StagingIoas,
}

/// Pins by mapping into an I/O address space of iommufd.
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
    // Devices close before the descriptor that their mappings are made through.
    devices: Devices,
    ioas: Arc<IoasPair>,
    kernel: Arc<dyn Kernel>,
    placement: Placement,
    granule: Granule,
    process: u32,
    account: MemlockAccount,
    books: Mutex<Books>,
    counts: Counts,
}

#[derive(Debug)]
struct Books {
    limits: IommufdLimits,
    space: IovaAllocator,
    pins: BTreeMap<u64, Vec<IovaRange>>,
    next: u64,
}

#[derive(Debug, Default)]
struct Counts {
    map_calls: AtomicU64,
    copy_calls: AtomicU64,
    pinned: AtomicU64,
    stray: AtomicU64,
    stuck: AtomicU64,
}

/// What an [`Iommufd`] has in use, as plain numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct IommufdState {
    /// Bytes pinned now.
    pub pinned_bytes: u64,
    /// Times that the kernel was asked to map memory, which pins.
    pub map_calls: u64,
    /// Times that the kernel was asked to copy a mapping, which does not.
    pub copy_calls: u64,
    /// Devices attached.
    pub devices: u32,
    /// Whether memory stays pinned without any device: the kernel could make a page table for the holding space.
    pub pins_without_device: bool,
    /// Releases of pins that were not held: a caller's defect, ignored.
    pub stray_unpins: u64,
    /// Bytes that the kernel would not unmap; their I/O addresses are never used again.
    pub stuck_bytes: u64,
}

const OTHERS_MAP: &str = "IOMMU_IOAS_MAP (the I/O addresses are taken, and not by this back end)";
const NO_ROOM: &str =
    "finding I/O addresses (the allowed ranges have no room for the region; unregister something)";
const OUTSIDE: &str =
    "IOMMU_IOAS_MAP (the IOMMU does not take these addresses; was a device added that takes less?)";
const CHILD: &str = "pinning in a child of the process that made the back end";
const LAZY: &str = "pinning (no device is attached and this kernel's iommufd makes no page table without one, so it would pin \
                    nothing; attach a device first)";

/// Page sizes that are worth lying well in: those of most IOMMUs.
const LARGE_PAGES: u64 = 1 << 21 | 1 << 30;

impl Iommufd {
    /// Opens iommufd and attaches `device` (`0000:00:04.0`).
    ///
    /// # Errors
    /// [`VfioError`]; nothing stays open.
    pub fn open(device: &str, placement: Placement) -> Result<Self, VfioError> {
        Self::open_on(&VfioHost::system(), device, placement)
    }

    /// [`open`](Self::open) on a host of one's choice.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_on(host: &VfioHost, device: &str, placement: Placement) -> Result<Self, VfioError> {
        let granule = system_granule().map_err(|error| VfioError::Os {
            during: "asking for the system page",
            on: "this host".into(),
            errno: error.errno(),
        })?;
        let ioas = IoasPair::open(host)?;
        let devices = Devices::default();
        let first = ioas.open_device(host, device)?;
        ioas.alloc_staging_hwpt(first.id)?;
        devices.push(first);
        let limits = ioas.limits()?;
        let space = IovaAllocator::new(&limits.raw_ranges(), limits.alignment.max(granule.bytes()));
        Ok(Self {
            devices,
            ioas: Arc::new(ioas),
            kernel: Arc::clone(&host.kernel),
            placement,
            granule,
            process: std::process::id(),
            account: MemlockAccount::new(granule),
            books: Mutex::new(Books { limits, space, pins: BTreeMap::new(), next: 1 }),
            counts: Counts::default(),
        })
    }

    /// An attached device.
    ///
    /// # Errors
    /// [`VfioError::NoDevice`].
    pub fn device(&self, device: &str) -> Result<Arc<VfioDevice>, VfioError> {
        self.devices.find(device).ok_or_else(|| VfioError::NoDevice { device: device.to_owned() })
    }

    /// Attaches another device, which reaches what the first one reaches. Pins and charges nothing. A device that was removed
    /// and that somebody kept open is attached as it is.
    ///
    /// # Errors
    /// [`VfioError`]; nothing changed.
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
        let mut books = self.books();
        books.space.restrict(&limits.raw_ranges());
        books.limits = limits;
        Ok(shared)
    }

    /// Detaches a device. What is registered stays pinned, even after the last one.
    ///
    /// # Errors
    /// [`VfioError::MemoryRegistered`] (EBUSY) for the last one where this kernel pins nothing without a device.
    pub fn remove_device(&self, device: &str) -> Result<(), VfioError> {
        // Relaxed: a caller who registers at the same time takes his chance either way.
        let bytes = self.counts.pinned.load(Ordering::Relaxed);
        if bytes > 0 && !self.ioas.has_staging_hwpt() && self.devices.count() == 1 {
            return Err(VfioError::MemoryRegistered { what: format!("{device}, the last device,"), bytes });
        }
        self.devices.detach(device)
    }

    /// A table that decides what devices reach. `None` unless the placement is [`Placement::StagingIoas`].
    #[must_use]
    pub fn table(&self) -> Option<IommufdTable> {
        (self.placement == Placement::StagingIoas)
            .then(|| IommufdTable::new(Arc::clone(&self.ioas), self.limits()))
    }

    /// Where memory can be mapped for the devices attached now.
    #[must_use]
    pub fn limits(&self) -> IommufdLimits {
        self.books().limits.clone()
    }

    /// The account that charges go to.
    #[must_use]
    pub const fn account(&self) -> &MemlockAccount {
        &self.account
    }

    /// What is in use now.
    #[must_use]
    pub fn state(&self) -> IommufdState {
        // Relaxed, all: numbers for reports.
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        IommufdState {
            pinned_bytes: read(&self.counts.pinned),
            map_calls: read(&self.counts.map_calls),
            copy_calls: read(&self.counts.copy_calls),
            devices: self.devices.count(),
            pins_without_device: self.ioas.has_staging_hwpt(),
            stray_unpins: read(&self.counts.stray),
            stuck_bytes: read(&self.counts.stuck),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps one piece into the holding space, and for the devices if they reach all.
    fn map(&self, ua: u64, piece: IovaRange) -> Result<(), (&'static str, Errno)> {
        add(&self.counts.map_calls, 1);
        self.ioas.map_staging(ua, piece).map_err(|errno| (IOAS_MAP.name, errno))?;
        if self.placement == Placement::DeviceIoas {
            add(&self.counts.copy_calls, 1);
            if let Err(errno) = self.ioas.copy_to_device(piece.iova, piece) {
                if !self.ioas.unmap_staging(piece) {
                    add(&self.counts.stuck, piece.bytes);
                }
                return Err((IOAS_COPY.name, errno));
            }
        }
        Ok(())
    }

    /// Unmaps one piece; `false` when the kernel does not say that all of it went.
    fn unmap(&self, piece: IovaRange) -> bool {
        // A device must not reach what is not held any more.
        (self.placement == Placement::StagingIoas || self.ioas.unmap_device(piece))
            && self.ioas.unmap_staging(piece)
    }

    fn release(&self, pieces: &[IovaRange], mapped: usize) {
        for (index, &piece) in pieces.iter().enumerate() {
            if index >= mapped || self.unmap(piece) {
                self.books().space.free(piece);
            } else {
                add(&self.counts.stuck, piece.bytes);
            }
        }
    }

    fn fill(&self, range: UserRange, pieces: &[IovaRange]) -> Result<(), PinError> {
        let mut ua = range.first().raw();
        for (done, &piece) in pieces.iter().enumerate() {
            if let Err((during, errno)) = self.map(ua, piece) {
                self.release(pieces, done);
                let part = UserRange::new(UserAddr::new(ua), piece.bytes, self.granule).unwrap_or(range);
                return Err(self.judge(during, errno, range, part));
            }
            ua = ua.wrapping_add(piece.bytes);
        }
        Ok(())
    }

    fn judge(&self, during: &'static str, errno: Errno, range: UserRange, part: UserRange) -> PinError {
        match errno {
            Errno::ENOMEM => match self.account.limit() {
                Some(limit) => PinError::Limit {
                    need: range.bytes(),
                    used: KernelCount::now().map_or(0, |count| count.pinned),
                    limit: limit << self.granule.shift().get(),
                },
                None => PinError::OutOfMemory,
            },
            Errno::EFAULT => self.kernel.unpinnable_reason(part),
            Errno::EEXIST => PinError::Os { ua: part.first(), errno, during: OTHERS_MAP },
            Errno::EINVAL | Errno::EOVERFLOW => PinError::Os { ua: part.first(), errno, during: OUTSIDE },
            errno => PinError::Os { ua: part.first(), errno, during },
        }
    }
}

fn add(count: &AtomicU64, by: u64) {
    // Relaxed: numbers for reports.
    count.fetch_add(by, Ordering::Relaxed);
}

// SAFETY: the kernel pins what is mapped into the IOAS, and the IOVAs are those it was mapped at.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Iommufd {
    fn name(&self) -> &'static str {
        "iommufd"
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
        let refuse = |errno, during| PinError::Os { ua: range.first(), errno, during };
        if self.process != std::process::id() {
            return Err(refuse(Errno::EPERM, CHILD));
        }
        if !self.ioas.has_staging_hwpt()
            && (self.devices.count() == 0 || self.placement == Placement::StagingIoas)
        {
            return Err(refuse(Errno::EOPNOTSUPP, LAZY));
        }
        self.kernel.prefault(range)?;
        let taken = self.books().space.alloc(range.first().raw(), range.bytes(), LARGE_PAGES);
        let pieces = taken.ok_or_else(|| refuse(Errno::ENOSPC, NO_ROOM))?;
        self.fill(range, &pieces)?;
        for piece in &pieces {
            let pushed = pages.push(HostAddr::new(piece.iova), piece.bytes >> self.granule.shift().get());
            if let Err(error) = pushed {
                self.release(&pieces, pieces.len());
                return Err(error.into());
            }
        }
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
        // Relaxed: a number for reports.
        self.counts.pinned.fetch_sub(range.bytes(), Ordering::Relaxed);
    }
}

impl Charge for Iommufd {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.account.charge(pages)
    }

    fn uncharge(&self, pages: u64) {
        self.account.uncharge(pages);
    }
}

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
