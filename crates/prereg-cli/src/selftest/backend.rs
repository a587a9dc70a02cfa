//! The back end under test with its device. This file has all differences between back ends.

use std::sync::Arc;

use clap::ValueEnum;
use prereg::{
    Access, AddressSpace, AddressSpaceBuilder, BusAddr, Granule, HostAddr, OutOfMemory, PageShift, Pin,
    RangeMapping, Translator, UserAddr,
};
use prereg_linux::{
    HostReport, IoUring, IoctlTrace, Iommufd, MemlockAccount, Placement, SpaprTable, VfioDevice, VfioHost,
    VfioSpaprV2, VfioType1, WindowPlace,
};

/// The choice of a back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendChoice {
    /// A VFIO type1 container
    VfioType1,
    /// A VFIO SPAPR TCE v2 container (POWER)
    VfioSpaprV2,
    /// iommufd, with the device's own VFIO node
    Iommufd,
    /// io_uring's registered buffers; no device, so no DMA
    IoUring,
}

impl BackendChoice {
    /// Its name in reports.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::VfioType1 => "vfio-type1",
            Self::VfioSpaprV2 => "vfio-spapr-v2",
            Self::Iommufd => "iommufd",
            Self::IoUring => "io-uring",
        }
    }
}

/// A back end.
#[derive(Clone, Debug)]
pub(super) enum Backend {
    Type1(Arc<VfioType1>),
    Spapr(Arc<VfioSpaprV2>),
    Iommufd(Arc<Iommufd>),
    IoUring(Arc<IoUring>),
}

/// A back end, an address space on it, and the device.
#[derive(Debug)]
pub(super) struct BackendUnderTest {
    // Dropped before the address space.
    table: Option<SpaprTable>,
    pub(super) space: AddressSpace,
    pub(super) device: Option<Arc<VfioDevice>>,
    pub(super) backend: Backend,
    pub(super) log: IoctlTrace,
}

/// Memory mapped for the device.
#[derive(Debug)]
pub(super) enum Exposed {
    /// A counted mapping, whose host address is the bus address.
    Mapped(RangeMapping),
    /// Counted mappings in the entries of a table.
    Entries { first: BusAddr, pages: u64 },
}

/// Offset of the memory in a window.
const IN_WINDOW: u64 = 1 << 20;

impl BackendUnderTest {
    /// Opens the back end.
    pub(super) fn open(choice: BackendChoice, device: Option<&str>) -> Result<Self, String> {
        let log = IoctlTrace::new();
        let host = VfioHost::system().traced(&log);
        let failure = |error: prereg_linux::VfioError| error.to_string();
        let name = || device.ok_or("it needs a device: --device 0000:00:04.0");
        let (backend, opened) = match choice {
            BackendChoice::VfioType1 => {
                let vfio = Arc::new(VfioType1::open_on(&host, name()?).map_err(failure)?);
                let opened = vfio.device(name()?).map_err(failure)?;
                (Backend::Type1(vfio), Some(Arc::new(opened)))
            }
            BackendChoice::VfioSpaprV2 => {
                let vfio = Arc::new(VfioSpaprV2::open_on(&host, name()?).map_err(failure)?);
                let opened = vfio.device(name()?).map_err(failure)?;
                (Backend::Spapr(vfio), Some(Arc::new(opened)))
            }
            BackendChoice::Iommufd => {
                let iommufd =
                    Arc::new(Iommufd::open_on(&host, name()?, Placement::DeviceIoas).map_err(failure)?);
                let opened = iommufd.device(name()?).map_err(failure)?;
                (Backend::Iommufd(iommufd), Some(opened))
            }
            BackendChoice::IoUring => {
                let uring = IoUring::new().map_err(|error| error.to_string())?;
                (Backend::IoUring(Arc::new(uring)), None)
            }
        };
        let table = match &backend {
            Backend::Spapr(vfio) => Some(table_for(vfio)?),
            _ => None,
        };
        let space = backend.space(None).map_err(|error| error.to_string())?;
        Ok(Self { table, space, device: opened, backend, log })
    }

    pub(super) fn granule(&self) -> Granule {
        self.space.granule()
    }

    /// The table of a SPAPR container's window.
    pub(super) const fn table(&self) -> Option<&SpaprTable> {
        self.table.as_ref()
    }

    /// Maps `bytes` bytes from `ua` for the device.
    pub(super) fn expose(
        &self,
        translator: &mut Translator,
        ua: UserAddr,
        bytes: u64,
    ) -> Result<Exposed, String> {
        match &self.table {
            None => translator.map_range(ua, bytes).map(Exposed::Mapped).map_err(|error| error.to_string()),
            Some(table) => {
                let first = BusAddr::new(table.start().raw() + IN_WINDOW);
                let pages = bytes >> table.shift().get();
                table
                    .put_run(translator, first, ua, pages, Access::ReadWrite)
                    .map_err(|error| error.to_string())?;
                Ok(Exposed::Entries { first, pages })
            }
        }
    }

    /// Unmaps it.
    pub(super) fn withdraw(&self, translator: &mut Translator, exposed: Exposed) -> Result<(), String> {
        match (exposed, &self.table) {
            (Exposed::Mapped(mapping), _) => {
                translator.unmap_range(mapping);
                Ok(())
            }
            (Exposed::Entries { first, pages }, Some(table)) => {
                let cleared = table.stuff(translator, first, pages).map_err(|error| error.to_string())?;
                if cleared == pages { Ok(()) } else { Err(format!("{cleared} of {pages} entries were live")) }
            }
            (Exposed::Entries { .. }, None) => Err("entries without a table".to_owned()),
        }
    }

    /// Closes table, address space, device and back end; returns the log.
    pub(super) fn close(self) -> IoctlTrace {
        self.log
    }
}

/// The table of the default window, or of a smaller one under a low limit on locked memory.
fn table_for(vfio: &Arc<VfioSpaprV2>) -> Result<SpaprTable, String> {
    /// The tables of the default window are charged with 8 MiB.
    const ENOUGH: u64 = 32 << 20;
    /// The reach of the device.
    const SMALL: u64 = super::edu::REACH;
    let allowance = HostReport::probe().memlock.allowance();
    let table = if allowance.is_none_or(|bytes| bytes >= ENOUGH) {
        vfio.default_window()
    } else {
        vfio.create_window(PageShift::K4, SMALL, WindowPlace::InsteadOfDefault)
    };
    table.map_err(|error| error.to_string())
}

impl Exposed {
    /// The bus address, if the memory is contiguous there.
    pub(super) fn bus(&self) -> Option<u64> {
        match self {
            Self::Mapped(mapping) => {
                let mut runs = mapping.runs();
                let first = runs.next()?;
                runs.next().is_none().then_some(first.host.raw())
            }
            Self::Entries { first, .. } => Some(first.raw()),
        }
    }

    /// The number of its counted mappings.
    pub(super) const fn units(&self) -> u64 {
        match self {
            Self::Mapped(_) => 1,
            Self::Entries { pages, .. } => *pages,
        }
    }
}

impl Backend {
    /// Whether the kernel may leave pins out of its counts: Linux 7.3 counts io_uring's only without CAP_IPC_LOCK.
    pub(super) fn may_be_uncounted(&self) -> bool {
        matches!(self, Self::IoUring(_)) && HostReport::probe().memlock.privileged
    }

    /// A new address space, charged to `account` if one is given.
    pub(super) fn space(&self, account: Option<MemlockAccount>) -> Result<AddressSpace, OutOfMemory> {
        fn on<T: Pin + prereg::Charge + 'static>(
            pins: &Arc<T>,
            account: Option<MemlockAccount>,
        ) -> Result<AddressSpace, OutOfMemory> {
            match account {
                Some(account) => AddressSpaceBuilder::new(Arc::clone(pins), account).build(),
                None => AddressSpace::builder(Arc::clone(pins)).build(),
            }
        }
        match self {
            Self::Type1(pins) => on(pins, account),
            Self::Spapr(pins) => on(pins, account),
            Self::Iommufd(pins) => on(pins, account),
            Self::IoUring(pins) => on(pins, account),
        }
    }

    /// Pin calls to the kernel.
    pub(super) fn pin_calls(&self) -> u64 {
        match self {
            Self::Type1(pins) => pins.state().map_calls,
            Self::Spapr(pins) => pins.state().register_calls,
            Self::Iommufd(pins) => pins.state().map_calls,
            Self::IoUring(pins) => pins.state().pin_calls,
        }
    }

    /// Bytes pinned, and bytes that the kernel did not release.
    pub(super) fn pinned(&self) -> (u64, u64) {
        match self {
            Self::Type1(pins) => (pins.state().pinned_bytes, pins.state().stuck_bytes),
            Self::Spapr(pins) => (pins.state().pinned_bytes, pins.state().stuck_bytes),
            Self::Iommufd(pins) => (pins.state().pinned_bytes, pins.state().stuck_bytes),
            Self::IoUring(pins) => (pins.state().pinned_bytes, pins.state().stuck_slots),
        }
    }

    /// Its limits, in a sentence.
    pub(super) fn limits(&self) -> String {
        let ranges = |ranges: &[(prereg::Iova, prereg::Iova)]| {
            let list: Vec<_> =
                ranges.iter().map(|(first, last)| format!("{:#x}-{:#x}", first.raw(), last.raw())).collect();
            list.join(", ")
        };
        match self {
            Self::Type1(pins) => {
                let limits = pins.limits();
                let left = limits.mappings_left.map_or("unknown".to_owned(), |left| left.to_string());
                format!(
                    "I/O addresses {}; page sizes {:#x}; {left} mappings left",
                    ranges(&limits.ranges),
                    limits.page_sizes
                )
            }
            Self::Spapr(pins) => {
                let limits = pins.limits();
                format!(
                    "default window of {:#x} bytes at {:#x}; windows {}, levels {}, page sizes {:#x}",
                    limits.default_bytes,
                    limits.default_start.raw(),
                    limits.windows,
                    limits.levels,
                    limits.page_sizes
                )
            }
            Self::Iommufd(pins) => {
                let limits = pins.limits();
                let anchored = if pins.state().pins_without_device {
                    "memory stays pinned without a device"
                } else {
                    "memory stays pinned while a device is attached"
                };
                format!(
                    "I/O addresses {}; units of {} bytes; {anchored}",
                    ranges(&limits.ranges),
                    limits.alignment
                )
            }
            Self::IoUring(pins) => {
                format!("{} bytes a slot; {}", pins.slot_limit(), pins.address_note())
            }
        }
    }
}

/// The last address of `bytes` bytes.
pub(super) const fn last(bus: u64, bytes: u64) -> HostAddr {
    HostAddr::new(bus.saturating_add(bytes - 1))
}
