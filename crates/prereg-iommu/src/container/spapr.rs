//! The IOMMU of a container: its owner, registrations and windows.
//!
//! Requests check in the kernel's order and change nothing when they fail, with two exceptions that the kernel has too: the
//! first process that registers, creates or removes owns the container even if that request fails, and the first request that
//! needs the default window creates it.
//!
//! A map finds memory in the whole address space, including what other containers of the process registered. A dropped
//! container releases everything; memory that others still map is released with their last mapping.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::fmt;

use prereg::{
    Access, AddressSpace, AddressSpaceBuilder, BusAddr, Errno, Holder, HolderKind, PageShift, Refusal,
    Registration, Translator, UserAddr, UserRange,
};

use super::error::ContainerError;
use super::group::Group;
use super::layout::{DynamicWindows, Info};
use super::owner::{Charged, NoCharge, Owner};
use super::platform::Platform;
use super::windows::{SLOTS, Shape, Window};
use crate::hw_table::HwTable;

/// Version of the container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    /// Every map pins its pages; the whole window is charged when the container is enabled.
    V1,
    /// Memory is registered first; maps look it up.
    V2,
}

/// The owner of the container, and the translator that maps for it.
struct Bound {
    owner: Owner,
    /// The space that entries map from: the owner's, or for version 1 one of the container's own, with regions of single
    /// pages that live as long as an entry maps them.
    space: Arc<AddressSpace>,
    translator: Translator,
}

/// A container's IOMMU.
pub(super) struct Spapr {
    number: u64,
    version: Version,
    platform: Platform,
    /// The first request that needs the default window creates it.
    default_pending: bool,
    enabled: bool,
    windows: [Option<Window>; SLOTS],
    registrations: BTreeMap<(UserAddr, u64), Registration>,
    /// The charge of an enabled version 1 container.
    enable_charge: Option<Charged>,
    bound: Option<Bound>,
}

impl Spapr {
    pub(super) fn new(number: u64, version: Version, platform: Platform) -> Self {
        Self {
            number,
            version,
            platform,
            default_pending: true,
            enabled: false,
            windows: [None, None],
            registrations: BTreeMap::new(),
            enable_charge: None,
            bound: None,
        }
    }

    pub(super) const fn version(&self) -> Version {
        self.version
    }

    /// The windows that exist, by slot.
    pub(super) fn windows(&self) -> impl Iterator<Item = (usize, &Arc<HwTable>)> {
        self.windows.iter().enumerate().filter_map(|(slot, window)| Some((slot, window.as_ref()?.table())))
    }

    // ---- owner -----------------------------------------------------------------------------------------------------

    /// Refuses a process that is not the owner.
    pub(super) fn check_owner(&self, caller: &Owner) -> Result<(), ContainerError> {
        match &self.bound {
            Some(bound) if !bound.owner.is(caller) => Err(ContainerError::OtherOwner),
            _ => Ok(()),
        }
    }

    /// Makes `caller` the owner if there is none.
    pub(super) fn bind(&mut self, caller: &Owner) -> Result<(), ContainerError> {
        self.check_owner(caller)?;
        if self.bound.is_some() {
            return Ok(());
        }
        let space = match self.version {
            Version::V1 => Arc::new(AddressSpaceBuilder::new(caller.pins().clone(), NoCharge).build()?),
            Version::V2 => caller.space().clone(),
        };
        let holder = self.holder(HolderKind::TableEntry);
        let translator = space.try_translator(holder)?;
        self.bound = Some(Bound { owner: caller.clone(), space, translator });
        Ok(())
    }

    const fn holder(&self, kind: HolderKind) -> Holder {
        Holder { container: self.number, kind }
    }

    fn bound(&self) -> Result<&Bound, ContainerError> {
        self.bound.as_ref().ok_or(ContainerError::NotBound)
    }

    /// Refuses if there is no owner.
    pub(super) fn check_bound(&self) -> Result<(), ContainerError> {
        self.bound().map(drop)
    }

    // ---- registrations --------------------------------------------------------------------------------------------

    /// The range as REGISTER checks it.
    fn range(space: &AddressSpace, ua: UserAddr, bytes: u64) -> Result<UserRange, ContainerError> {
        Ok(UserRange::new(ua, bytes, space.granule())?)
    }

    pub(super) fn register(&mut self, ua: UserAddr, bytes: u64) -> Result<(), ContainerError> {
        let bound = self.bound()?;
        let range = Self::range(&bound.space, ua, bytes)?;
        if self.registrations.contains_key(&(ua, bytes)) {
            return Err(ContainerError::Registered { ua, bytes });
        }
        let holder = self.holder(HolderKind::Other);
        let registration = match bound.space.share_for(ua, bytes, holder) {
            Some(registration) => registration,
            None => {
                let memory = bound.owner.memory_at(range).ok_or(ContainerError::NoMemory { ua })?;
                bound.space.register_for(&*memory, holder)?
            }
        };
        self.registrations.insert((ua, bytes), registration);
        self.enabled = true;
        Ok(())
    }

    pub(super) fn unregister(&mut self, ua: UserAddr, bytes: u64) -> Result<(), ContainerError> {
        let granule = self.bound()?.space.granule().shift();
        if !ua.is_aligned(granule) || bytes & granule.mask() != 0 {
            return Err(prereg::RangeError::Misaligned { ua, bytes, granule }.into());
        }
        let missing = ContainerError::Unregistered { ua, bytes };
        let registration = self.registrations.remove(&(ua, bytes)).ok_or(missing)?;
        let Err(kept) = registration.unregister() else { return Ok(()) };
        match kept.refusal() {
            Refusal::Busy { mapped, .. } => {
                let refused = ContainerError::Mapped { ua, bytes, mapped: *mapped };
                self.registrations.insert((ua, bytes), kept.into_inner());
                Err(refused)
            }
            _ => Err(missing),
        }
    }

    // ---- mappings -------------------------------------------------------------------------------------------------

    pub(super) fn check_enabled(&self) -> Result<(), ContainerError> {
        if self.enabled { Ok(()) } else { Err(ContainerError::NotEnabled) }
    }

    fn window_at(&self, ioba: BusAddr) -> Result<&Window, ContainerError> {
        let holds = |window: &&Window| window.table().geometry().index(ioba).is_some();
        self.windows.iter().flatten().find(holds).ok_or(ContainerError::NoWindow { ioba })
    }

    /// Checks that `what` is a multiple of the window's page size.
    fn whole_pages(window: &Window, what: u64) -> Result<(), ContainerError> {
        let shift = window.table().geometry().shift();
        if what & shift.mask() == 0 {
            Ok(())
        } else {
            Err(ContainerError::Misaligned { what, page: shift.bytes() })
        }
    }

    pub(super) fn map(
        &mut self,
        groups: &[Arc<dyn Group>],
        access: Option<Access>,
        ua: UserAddr,
        ioba: BusAddr,
        bytes: u64,
    ) -> Result<(), ContainerError> {
        self.check_enabled()?;
        self.make_default(groups)?;
        let window = self.window_at(ioba)?;
        Self::whole_pages(window, bytes)?;
        Self::whole_pages(window, ua.raw())?;
        let access = access.ok_or(ContainerError::NoPermission)?;
        let entries = window.entries(ioba, bytes)?;
        let slot = self.slot_of(ioba);
        let (Some(window), Some(bound)) = (&self.windows[slot], &mut self.bound) else {
            return Err(ContainerError::NoWindow { ioba });
        };
        match self.version {
            Version::V2 => window.map(&mut bound.translator, entries, ua, access),
            Version::V1 => Self::map_pinning(window, bound, entries, ua, access),
        }
    }

    fn slot_of(&self, ioba: BusAddr) -> usize {
        self.windows().find(|(_, table)| table.geometry().index(ioba).is_some()).map_or(0, |(slot, _)| slot)
    }

    /// Pins every page for its entry alone: the page's region loses its only registration at once, so it is unpinned with
    /// its last entry.
    fn map_pinning(
        window: &Window,
        bound: &mut Bound,
        (first, count): (u64, u64),
        ua: UserAddr,
        access: Access,
    ) -> Result<(), ContainerError> {
        let shift = window.table().geometry().shift();
        let granule = bound.space.granule();
        let map_one = |bound: &mut Bound, step: u64| {
            let page = ua.checked_add(step << shift.get()).ok_or(ContainerError::NoMemory { ua })?;
            let range = UserRange::new(page.align_down(granule.shift()), granule.bytes(), granule)?;
            let memory = bound.owner.memory_at(range).ok_or(ContainerError::NoMemory { ua: page })?;
            let pinned = bound.space.register(&*memory)?;
            let mapped = window.map(&mut bound.translator, (first + step, 1), page, access);
            drop(pinned);
            mapped
        };
        for step in 0..count {
            if let Err(refused) = map_one(bound, step) {
                window.clear(&mut bound.translator, first, step);
                bound.space.reap();
                return Err(refused);
            }
        }
        bound.space.reap();
        Ok(())
    }

    pub(super) fn unmap(
        &mut self,
        groups: &[Arc<dyn Group>],
        ioba: BusAddr,
        bytes: u64,
    ) -> Result<(), ContainerError> {
        self.check_enabled()?;
        self.make_default(groups)?;
        let window = self.window_at(ioba)?;
        Self::whole_pages(window, bytes)?;
        let (first, count) = window.entries(ioba, bytes)?;
        let slot = self.slot_of(ioba);
        if let (Some(window), Some(bound)) = (&self.windows[slot], &mut self.bound) {
            window.clear(&mut bound.translator, first, count);
            bound.space.reap();
        }
        Ok(())
    }

    // ---- windows --------------------------------------------------------------------------------------------------

    pub(super) fn info(&self) -> Info {
        let platform = &self.platform;
        let dynamic = DynamicWindows {
            page_sizes: platform.page_sizes,
            max_windows: platform.max_windows,
            max_levels: platform.max_levels,
        };
        Info {
            // The default window starts below 4 GiB.
            dma32_start: platform.dma32_start.raw() as u32,
            dma32_bytes: platform.dma32_bytes,
            dynamic: (self.version == Version::V2 && platform.max_windows > 0).then_some(dynamic),
        }
    }

    /// Creates the default window if it is pending.
    fn make_default(&mut self, groups: &[Arc<dyn Group>]) -> Result<(), ContainerError> {
        if !self.default_pending {
            return Ok(());
        }
        if groups.is_empty() {
            return Err(ContainerError::NoGroup { errno: Errno::ENODEV });
        }
        self.make_window(groups, 0, Shape::default_window(&self.platform))?;
        self.default_pending = false;
        Ok(())
    }

    /// Creates a window in `slot` and programs it into every group.
    fn make_window(
        &mut self,
        groups: &[Arc<dyn Group>],
        slot: usize,
        shape: Shape,
    ) -> Result<BusAddr, ContainerError> {
        let bound = self.bound()?;
        let window = Window::new(&self.platform, &bound.owner, &bound.space, self.number, slot, shape)?;
        let geometry = *window.table().geometry();
        for (done, group) in groups.iter().enumerate() {
            if let Err(errno) = group.set_window(slot, &geometry) {
                groups[..done].iter().for_each(|group| group.unset_window(slot));
                return Err(ContainerError::Hardware { number: group.number(), errno });
            }
        }
        self.windows[slot] = Some(window);
        Ok(geometry.start())
    }

    pub(super) fn create(
        &mut self,
        groups: &[Arc<dyn Group>],
        shift: u32,
        bytes: u64,
        levels: u32,
    ) -> Result<BusAddr, ContainerError> {
        self.make_default(groups)?;
        let slot = self.windows.iter().position(Option::is_none).ok_or(ContainerError::NoWindowLeft)?;
        let offered = PageShift::new(shift).filter(|shift| self.platform.offers(shift.get()));
        let shift = offered.ok_or(ContainerError::PageSize { shift })?;
        self.make_window(groups, slot, Shape { shift, bytes, levels })
    }

    pub(super) fn remove(&mut self, groups: &[Arc<dyn Group>], start: BusAddr) -> Result<(), ContainerError> {
        if self.default_pending && start == self.platform.dma32_start {
            self.default_pending = false;
            return Ok(());
        }
        let starts = |window: &Option<Window>| {
            window.as_ref().is_some_and(|window| window.table().geometry().start() == start)
        };
        let Some(slot) = self.windows.iter().position(starts) else {
            return Err(ContainerError::NotAWindow { start, inside: self.window_at(start).is_ok() });
        };
        self.drop_window(slot, groups);
        Ok(())
    }

    /// Clears a window, removes it from the groups and uncharges it.
    fn drop_window(&mut self, slot: usize, groups: &[Arc<dyn Group>]) {
        let Some(window) = self.windows[slot].take() else { return };
        if let Some(bound) = &mut self.bound {
            window.clear_all(&mut bound.translator);
            groups.iter().for_each(|group| group.unset_window(slot));
            drop(window);
            bound.space.reap();
        }
    }

    /// Programs every window into a joining group.
    pub(super) fn program(&self, group: &dyn Group) -> Result<(), ContainerError> {
        for (slot, table) in self.windows() {
            if let Err(errno) = group.set_window(slot, table.geometry()) {
                self.windows()
                    .take_while(|&(done, _)| done < slot)
                    .for_each(|(done, _)| group.unset_window(done));
                return Err(ContainerError::Hardware { number: group.number(), errno });
            }
        }
        Ok(())
    }

    /// Releases everything. Windows go first, so that this container's own entries keep no region busy.
    pub(super) fn release(&mut self, groups: &[Arc<dyn Group>]) {
        for slot in 0..SLOTS {
            self.drop_window(slot, groups);
        }
        while let Some((_, registration)) = self.registrations.pop_first() {
            // Dropped if refused: others map the memory, and it is released with their last mapping.
            if let Err(kept) = registration.unregister() {
                drop(kept.into_inner());
            }
        }
        self.enable_charge = None;
    }

    // ---- version 1 -------------------------------------------------------------------------------------------------

    pub(super) fn enable(&mut self, caller: &Owner, groups: &[Arc<dyn Group>]) -> Result<(), ContainerError> {
        if self.enabled {
            return Err(ContainerError::Enabled);
        }
        if groups.is_empty() {
            return Err(ContainerError::NoGroup { errno: Errno::ENODEV });
        }
        self.bind(caller)?;
        let bound = self.bound()?;
        let pages = u64::from(self.platform.dma32_bytes) >> bound.space.granule().shift().get();
        self.enable_charge = Some(bound.owner.charge(pages).map_err(ContainerError::Charge)?);
        self.enabled = true;
        Ok(())
    }

    pub(super) fn disable(&mut self) {
        self.enabled = false;
        self.enable_charge = None;
    }
}

impl fmt::Debug for Spapr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spapr")
            .field("version", &self.version)
            .field("enabled", &self.enabled)
            .field("windows", &self.windows)
            .field("registrations", &self.registrations.len())
            .finish_non_exhaustive()
    }
}
