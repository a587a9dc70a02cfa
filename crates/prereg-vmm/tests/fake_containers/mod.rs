//! Fakes of the kernel's IOMMU containers: VFIO type1 v2, an iommufd address space, VFIO SPAPR TCE v2.
//!
//! Each follows its kernel source in accepted arguments, errors, cut mappings, and the state after the last device. The memory that a
//! device reaches is recorded by page. Memory is that of a `SimHost`.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use prereg::{Access, Errno, Iova, UserAddr};
use prereg_sim::SimHost;
use prereg_vmm::DmaContainer;

pub(crate) const PAGE: u64 = 4096;
/// The end of a SPAPR container's window.
pub(crate) const WINDOW: u64 = 48 * PAGE;

/// The address of read-only memory in tests.
pub(crate) const READ_ONLY: Range<u64> = 0x7100_0000..0x7200_0000;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// drivers/vfio/vfio_iommu_type1.c, version 2.
    Type1,
    /// drivers/iommu/iommufd/io_pagetable.c.
    Iommufd,
    /// drivers/vfio/vfio_iommu_spapr_tce.c, version 2.
    Spapr,
}

/// The memory of a page that a device reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Page {
    Memory(u64),
    File(u64),
}

/// The pages that a device reaches.
pub(crate) type Reach = BTreeMap<u64, (Page, Access)>;

pub(crate) struct FakeContainer {
    kind: Kind,
    host: SimHost,
    state: Mutex<State>,
    this: Weak<Self>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Lengths by first address. SPAPR containers have pages only.
    areas: BTreeMap<u64, u64>,
    pages: Reach,
    devices: u32,
    /// Mappings that a type1 container still accepts.
    available: usize,
    limit: usize,
    /// Calls until one fails, and its errno; 0 for none.
    refuse: (u32, Option<Errno>),
    /// Calls that failed on purpose.
    refusals: u32,
}

impl FakeContainer {
    pub(crate) fn new(kind: Kind, host: &SimHost) -> Arc<Self> {
        Self::with_limit(kind, host, 65_535)
    }

    /// `limit` is type1's `dma_entry_limit`.
    pub(crate) fn with_limit(kind: Kind, host: &SimHost, limit: usize) -> Arc<Self> {
        let state = State { available: limit, limit, ..State::default() };
        Arc::new_cyclic(|this| Self {
            kind,
            host: host.clone(),
            state: Mutex::new(state),
            this: this.clone(),
        })
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn reach(&self) -> Reach {
        self.state().pages.clone()
    }

    pub(crate) fn devices(&self) -> u32 {
        self.state().devices
    }

    pub(crate) fn mappings(&self) -> usize {
        self.state().areas.len()
    }

    /// Fails the `call`-th call from now, counted from 1, with `errno`.
    pub(crate) fn refuse(&self, call: u32, errno: Errno) {
        self.state().refuse = (call, Some(errno));
    }

    /// Ends failures; returns their number since the last call.
    pub(crate) fn stop_refusing(&self) -> u32 {
        let mut state = self.state();
        state.refuse = (0, None);
        std::mem::take(&mut state.refusals)
    }

    /// VFIO_GROUP_SET_CONTAINER with VFIO_SET_IOMMU, or attaching to the address space, which fills its domain.
    pub(crate) fn open(&self) -> Result<FakeDevice, Errno> {
        let mut state = self.state();
        if self.kind == Kind::Iommufd && state.devices == 0 {
            for (page, access) in state.pages.values() {
                self.pin(*page, *access)?;
            }
        }
        state.devices += 1;
        Ok(FakeDevice(self.this.upgrade().unwrap()))
    }

    /// Whether the kernel can pin a page, or map a device's.
    fn pin(&self, page: Page, access: Access) -> Result<(), Errno> {
        match page {
            Page::File(_) => Ok(()),
            Page::Memory(ua) if !self.host.is_mapped(ua, PAGE) => Err(Errno::EFAULT),
            Page::Memory(ua) if access.writes() && READ_ONLY.contains(&ua) => Err(Errno::EFAULT),
            Page::Memory(_) => Ok(()),
        }
    }

    fn map_pages(&self, iova: u64, first: Page, bytes: u64, access: Access) -> Result<(), Errno> {
        let mut state = self.state();
        state.refused()?;
        if self.kind != Kind::Iommufd && state.devices == 0 {
            // The container has no IOMMU driver.
            return Err(Errno::EINVAL);
        }
        let (Page::Memory(start) | Page::File(start)) = first;
        if bytes == 0 || (iova | start | bytes) % PAGE != 0 {
            return Err(Errno::EINVAL);
        }
        if iova.checked_add(bytes - 1).is_none() || start.checked_add(bytes - 1).is_none() {
            return Err(if self.kind == Kind::Iommufd { Errno::EOVERFLOW } else { Errno::EINVAL });
        }
        if self.kind == Kind::Spapr {
            if iova + bytes > WINDOW {
                return Err(Errno::ENXIO);
            }
        } else if state.area_meeting(iova, bytes).is_some() {
            return Err(Errno::EEXIST);
        } else if self.kind == Kind::Type1 && state.available == 0 {
            return Err(Errno::ENOSPC);
        }
        let pages: Vec<_> = (0..bytes / PAGE).map(|page| first.after(page * PAGE)).collect();
        if self.kind != Kind::Iommufd || state.devices > 0 {
            let faults = pages.iter().any(|page| self.pin(*page, access).is_err());
            if faults && self.kind == Kind::Spapr {
                // Memory that is not preregistered; the entries set before are cleared.
                for page in 0..bytes / PAGE {
                    state.pages.remove(&(iova + page * PAGE));
                }
                return Err(Errno::EINVAL);
            }
            if faults {
                return Err(Errno::EFAULT);
            }
        }
        if self.kind == Kind::Type1 {
            state.available -= 1;
        }
        if self.kind != Kind::Spapr {
            state.areas.insert(iova, bytes);
        }
        for (at, page) in pages.into_iter().enumerate() {
            state.pages.insert(iova + at as u64 * PAGE, (page, access));
        }
        Ok(())
    }

    /// Returns the number of bytes unmapped.
    pub(crate) fn unmap_pages(&self, iova: u64, bytes: u64) -> Result<u64, Errno> {
        let mut state = self.state();
        state.refused()?;
        match self.kind {
            Kind::Type1 => {
                if state.devices == 0 || bytes == 0 || (iova | bytes) % PAGE != 0 {
                    return Err(Errno::EINVAL);
                }
                let last = iova.checked_add(bytes - 1).ok_or(Errno::EINVAL)?;
                let cut = |area: Option<(u64, u64)>| {
                    area.is_some_and(|(start, length)| start < iova || start + (length - 1) > last)
                };
                if cut(state.area_meeting(iova, 1)) || cut(state.area_meeting(last, 1)) {
                    return Err(Errno::EINVAL);
                }
                let mut unmapped = 0;
                while let Some((start, length)) = state.area_meeting(iova, bytes) {
                    state.drop_area(start, length);
                    state.available += 1;
                    unmapped += length;
                }
                Ok(unmapped)
            }
            Kind::Iommufd => {
                let more = bytes.checked_sub(1).ok_or(Errno::EINVAL)?;
                let last = iova.checked_add(more).ok_or(Errno::EOVERFLOW)?;
                let mut unmapped = 0;
                while let Some((start, length)) = state.area_meeting(iova, bytes) {
                    if start < iova || start + (length - 1) > last {
                        // The areas before are unmapped.
                        return Err(Errno::ENOENT);
                    }
                    state.drop_area(start, length);
                    unmapped += length;
                }
                if unmapped == 0 { Err(Errno::ENOENT) } else { Ok(unmapped) }
            }
            Kind::Spapr => {
                if state.devices == 0 || bytes % PAGE != 0 || iova % PAGE != 0 {
                    return Err(Errno::EINVAL);
                }
                if iova >= WINDOW || bytes > WINDOW - iova {
                    return Err(Errno::ENXIO);
                }
                for page in 0..bytes / PAGE {
                    state.pages.remove(&(iova + page * PAGE));
                }
                // The kernel reports the requested size.
                Ok(bytes)
            }
        }
    }
}

impl Page {
    fn after(self, bytes: u64) -> Self {
        match self {
            Self::Memory(ua) => Self::Memory(ua + bytes),
            Self::File(offset) => Self::File(offset + bytes),
        }
    }
}

impl State {
    fn refused(&mut self) -> Result<(), Errno> {
        let (calls, errno) = &mut self.refuse;
        if *calls == 0 {
            return Ok(());
        }
        *calls -= 1;
        match errno {
            Some(errno) if *calls == 0 => {
                self.refusals += 1;
                Err(*errno)
            }
            _ => Ok(()),
        }
    }

    /// The first area that has a byte of the range.
    fn area_meeting(&self, iova: u64, bytes: u64) -> Option<(u64, u64)> {
        let last = iova.saturating_add(bytes - 1);
        let before =
            self.areas.range(..=iova).next_back().filter(|(start, length)| *start + (*length - 1) >= iova);
        before.or_else(|| self.areas.range(iova..=last).next()).map(|(start, length)| (*start, *length))
    }

    fn drop_area(&mut self, start: u64, length: u64) {
        self.areas.remove(&start);
        for page in 0..length / PAGE {
            self.pages.remove(&(start + page * PAGE));
        }
    }
}

impl DmaContainer for FakeContainer {
    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno> {
        self.map_pages(iova.raw(), Page::Memory(ua.raw()), bytes, access)
    }

    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn map_file(
        &self,
        iova: Iova,
        _file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<(), Errno> {
        if self.kind != Kind::Iommufd {
            return Err(Errno::EOPNOTSUPP);
        }
        self.map_pages(iova.raw(), Page::File(offset), bytes, access)
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno> {
        match self.unmap_pages(iova.raw(), bytes)? {
            0 => Err(Errno::ENOENT),
            _ => Ok(()),
        }
    }

    fn forgets(&self) -> bool {
        self.kind != Kind::Iommufd
    }
}

/// A device in the container; dropping it removes it.
pub(crate) struct FakeDevice(Arc<FakeContainer>);

impl std::fmt::Debug for FakeDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeDevice").field("container", &self.0.kind).finish_non_exhaustive()
    }
}

impl FakeDevice {
    pub(crate) fn reach(&self) -> Reach {
        self.0.reach()
    }
}

impl Drop for FakeDevice {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.devices -= 1;
        if state.devices == 0 && self.0.kind != Kind::Iommufd {
            // The IOMMU driver is released with the last group.
            state.areas.clear();
            state.pages.clear();
            state.available = state.limit;
        }
    }
}

#[cfg(feature = "vfio-ioctls")]
mod ops {
    use std::any::Any;

    use prereg::Errno;
    use vfio_ioctls::{VfioError, VfioOps};
    use vmm_sys_util::errno::Error as SysError;

    use super::{FakeContainer, Page};
    use prereg::Access;

    impl VfioOps for FakeContainer {
        #[expect(unsafe_code, reason = "the trait's")]
        unsafe fn vfio_dma_map(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<(), VfioError> {
            self.map_pages(iova, Page::Memory(user_addr.addr() as u64), size as u64, Access::ReadWrite)
                .map_err(|errno| VfioError::IommuDmaMap(system(errno)))
        }

        fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
            match self.unmap_pages(iova, size as u64) {
                Ok(unmapped) if unmapped == size as u64 => Ok(()),
                Ok(_) => Err(VfioError::InvalidDmaUnmapSize),
                Err(errno) => Err(VfioError::IommuDmaUnmap(system(errno))),
            }
        }

        fn as_any(&self) -> &dyn Any {
            self
        }
    }

    fn system(errno: Errno) -> SysError {
        SysError::new(errno.raw())
    }
}
