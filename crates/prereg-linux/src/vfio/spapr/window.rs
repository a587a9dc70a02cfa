//! The windows of a SPAPR container: limits, creation and removal, and the system calls on their entries.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, BusAddr, Errno, PageShift};

use crate::counter::Counter;
use crate::vfio::container::{Container, SPAPR_TCE_V2};
use crate::vfio::error::VfioError;
use crate::vfio::host::VfioHost;
use crate::vfio::kernel::{
    IOMMU_MAP_DMA, IOMMU_UNMAP_DMA, SPAPR_TCE_CREATE, SPAPR_TCE_GET_INFO, SPAPR_TCE_REMOVE, ioctl_struct,
    ioctl_zero,
};
use crate::vfio::uapi::{MapDma, SPAPR_DDW, SpaprInfo, TceCreate, TceRemove, UapiStruct, UnmapDma};

/// Limits on the windows of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SpaprLimits {
    /// The start of the default window.
    pub default_start: BusAddr,
    /// Bytes of the default window, in pages of 4 KiB.
    pub default_bytes: u64,
    /// A bit for every page size of a created window; 0 where none can be created.
    pub page_sizes: u64,
    /// The most windows, including the default one.
    pub windows: u32,
    /// The most levels of a table.
    pub levels: u32,
}

/// The place of a created window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WindowPlace {
    /// In addition to the default window, at a high bus address.
    Beside,
    /// At the bus address of the default window, which is removed: for devices that cannot reach higher addresses.
    InsteadOfDefault,
}

/// State of the default window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DefaultWindow {
    Free,
    Taken,
    Removed,
}

#[derive(Debug)]
struct State {
    default: DefaultWindow,
    made: u32,
}

/// A container's windows.
pub(super) struct WindowSet {
    container: Container,
    limits: SpaprLimits,
    state: Mutex<State>,
    entry_calls: Counter,
}

/// A window with one owner. Dropping it removes it if it was created.
pub(super) struct Window {
    windows: Arc<WindowSet>,
    start: u64,
    bytes: u64,
    shift: PageShift,
    made: bool,
}

/// The largest level of a table: small enough to be physically contiguous.
const LEVEL_BYTES: u64 = 1 << 20;
/// Size of a table entry.
const ENTRY_BYTES: u64 = 8;
const DEFAULT_PAGE: PageShift = PageShift::K4;

impl WindowSet {
    pub(super) fn new(container: Container) -> Result<Self, VfioError> {
        let mut info = SpaprInfo { argsz: SpaprInfo::BYTES as u32, ..SpaprInfo::default() };
        ioctl_struct(container.descriptor(), SPAPR_TCE_GET_INFO, &mut info)
            .map_err(os(SPAPR_TCE_GET_INFO.name))?;
        let dynamic = info.flags & SPAPR_DDW != 0;
        let limits = SpaprLimits {
            default_start: BusAddr::new(u64::from(info.dma32_window_start)),
            default_bytes: u64::from(info.dma32_window_size),
            page_sizes: if dynamic { info.pgsizes } else { 0 },
            windows: if dynamic { info.windows } else { 1 },
            levels: if dynamic { info.levels } else { 1 },
        };
        let state = Mutex::new(State { default: DefaultWindow::Free, made: 0 });
        Ok(Self { container, limits, state, entry_calls: Counter::default() })
    }

    pub(super) const fn container(&self) -> &Container {
        &self.container
    }

    pub(super) const fn limits(&self) -> SpaprLimits {
        self.limits
    }

    pub(super) fn entry_calls(&self) -> u64 {
        self.entry_calls.get()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open_default(this: &Arc<Self>) -> Result<Window, VfioError> {
        let (start, bytes) = (this.limits.default_start.raw(), this.limits.default_bytes);
        let refuse = |why| VfioError::Window { bytes, shift: DEFAULT_PAGE.get(), why };
        let mut state = this.state();
        match state.default {
            DefaultWindow::Free if bytes == 0 => return Err(refuse("the platform has no default window")),
            DefaultWindow::Free => state.default = DefaultWindow::Taken,
            DefaultWindow::Taken => return Err(refuse("the default window has a table already")),
            DefaultWindow::Removed => return Err(refuse("the default window was replaced by another one")),
        }
        Ok(Window { windows: Arc::clone(this), start, bytes, shift: DEFAULT_PAGE, made: false })
    }

    pub(super) fn create(
        this: &Arc<Self>,
        shift: PageShift,
        bytes: u64,
        place: WindowPlace,
    ) -> Result<Window, VfioError> {
        let refuse = |why| VfioError::Window { bytes, shift: shift.get(), why };
        let levels = this.limits.check(shift, bytes).map_err(refuse)?;
        let mut state = this.state();
        match (place, state.default) {
            (WindowPlace::InsteadOfDefault, DefaultWindow::Taken) => {
                return Err(refuse("the default window has a table; drop that first"));
            }
            (WindowPlace::InsteadOfDefault, DefaultWindow::Removed) | (WindowPlace::Beside, _) => {
                let default = u32::from(state.default != DefaultWindow::Removed);
                if state.made + default >= this.limits.windows {
                    return Err(refuse("the container has all the windows it can have; drop a table first"));
                }
            }
            (WindowPlace::InsteadOfDefault, DefaultWindow::Free) => {
                this.remove(this.limits.default_start.raw()).map_err(os(SPAPR_TCE_REMOVE.name))?;
                state.default = DefaultWindow::Removed;
            }
        }
        match this.make(shift, bytes, levels) {
            Ok(start) => {
                state.made += 1;
                Ok(Window { windows: Arc::clone(this), start, bytes, shift, made: true })
            }
            Err(errno) => Err(os(SPAPR_TCE_CREATE.name)(errno)),
        }
    }

    fn make(&self, shift: PageShift, bytes: u64, levels: u32) -> Result<u64, Errno> {
        let mut create = TceCreate {
            argsz: TceCreate::BYTES as u32,
            page_shift: shift.get(),
            window_size: bytes,
            levels,
            ..TceCreate::default()
        };
        ioctl_zero(self.container.descriptor(), SPAPR_TCE_CREATE, &mut create)?;
        // A window that wraps is unusable, as ranges could not be checked against it.
        if create.start_addr.checked_add(bytes - 1).is_none() {
            self.remove(create.start_addr)?;
            return Err(Errno::EOVERFLOW);
        }
        Ok(create.start_addr)
    }

    fn remove(&self, start: u64) -> Result<(), Errno> {
        let mut remove = TceRemove { argsz: TceRemove::BYTES as u32, flags: 0, start_addr: start };
        ioctl_zero(self.container.descriptor(), SPAPR_TCE_REMOVE, &mut remove)
    }
}

fn os(during: &'static str) -> impl FnOnce(Errno) -> VfioError {
    move |errno| VfioError::Os { during, on: "the container".into(), errno }
}

impl SpaprLimits {
    /// Opens a container over the group of `device` to query its limits.
    pub(crate) fn query(host: &VfioHost, device: &str) -> Result<Self, VfioError> {
        Ok(WindowSet::new(Container::open(host, device, SPAPR_TCE_V2)?)?.limits())
    }

    /// The number of levels for a table, or the reason why the kernel would refuse the window (and leak its charge).
    fn check(&self, shift: PageShift, bytes: u64) -> Result<u32, &'static str> {
        if self.page_sizes == 0 {
            return Err("the platform makes no windows");
        }
        if self.page_sizes & shift.bytes() == 0 {
            return Err("the platform has no windows with pages of that size");
        }
        if !bytes.is_power_of_two() || bytes < shift.bytes() {
            return Err("its size must be a power of two and at least a page");
        }
        let bits = bytes.trailing_zeros() - shift.get();
        let levels = (1..=self.levels.clamp(1, 5))
            .find(|levels| ENTRY_BYTES << bits.div_ceil(*levels).min(40) <= LEVEL_BYTES);
        let levels = levels.ok_or("its table would need more levels than the platform has")?;
        if bits.div_ceil(levels) * levels + shift.get() >= 55 {
            return Err("it reaches past the addresses of the platform");
        }
        Ok(levels)
    }
}

impl Window {
    pub(super) const fn start(&self) -> u64 {
        self.start
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) const fn shift(&self) -> PageShift {
        self.shift
    }

    /// The index of the entry at `ioba`, if it and the `pages - 1` entries after it are in the window.
    pub(super) fn index(&self, ioba: BusAddr, pages: u64) -> Option<u64> {
        let offset = ioba.raw().checked_sub(self.start)?;
        let index = offset >> self.shift.get();
        let entries = self.bytes >> self.shift.get();
        let inside = offset & self.shift.mask() == 0 && pages <= entries && index <= entries - pages;
        inside.then_some(index)
    }

    /// Maps `pages` pages at `ua` from entry `index` on: one system call. The entries must be in the window.
    pub(super) fn map(&self, index: u64, pages: u64, ua: u64, access: Access) -> Result<(), Errno> {
        self.count();
        let mut map = MapDma {
            argsz: MapDma::BYTES as u32,
            flags: access.bits() as u32,
            vaddr: ua,
            iova: self.start + (index << self.shift.get()),
            size: pages << self.shift.get(),
        };
        ioctl_zero(self.windows.container.descriptor(), IOMMU_MAP_DMA, &mut map)
    }

    /// Empties `pages` entries from `index` on: one system call. The entries must be in the window.
    pub(super) fn unmap(&self, index: u64, pages: u64) -> Result<(), Errno> {
        self.count();
        let mut unmap = UnmapDma {
            argsz: UnmapDma::BYTES as u32,
            flags: 0,
            iova: self.start + (index << self.shift.get()),
            size: pages << self.shift.get(),
        };
        ioctl_zero(self.windows.container.descriptor(), IOMMU_UNMAP_DMA, &mut unmap)
    }

    fn count(&self) {
        self.windows.entry_calls.add(1);
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let mut state = self.windows.state();
        if self.made {
            // A window that cannot be removed occupies its place until the container is closed.
            if self.windows.remove(self.start).is_ok() {
                state.made -= 1;
            }
        } else {
            state.default = DefaultWindow::Free;
        }
    }
}

impl fmt::Debug for WindowSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowSet").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window")
            .field("start", &format_args!("{:#x}", self.start))
            .field("bytes", &self.bytes)
            .field("shift", &self.shift)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POWERNV: SpaprLimits = SpaprLimits {
        default_start: BusAddr::new(0),
        default_bytes: 0x8000_0000,
        page_sizes: 0x0101_1000,
        windows: 2,
        levels: 5,
    };

    #[test]
    fn windows_that_the_kernel_would_refuse_are_refused_before() {
        for (shift, bytes, levels) in
            [(12, 1 << 31, Some(2)), (16, 1 << 31, Some(1)), (16, 1 << 36, Some(2)), (24, 1 << 45, Some(2))]
        {
            assert_eq!(
                POWERNV.check(PageShift::new(shift).unwrap(), bytes).ok(),
                levels,
                "{shift} {bytes:#x}"
            );
        }
        for (shift, bytes) in [(13, 1 << 31), (16, 0), (16, 3 << 30), (16, 1 << 15), (16, 1 << 62)] {
            assert!(POWERNV.check(PageShift::new(shift).unwrap(), bytes).is_err(), "{shift} {bytes:#x}");
        }
        let fixed = SpaprLimits { page_sizes: 0, ..POWERNV };
        assert!(fixed.check(PageShift::K64, 1 << 31).is_err());
    }
}
