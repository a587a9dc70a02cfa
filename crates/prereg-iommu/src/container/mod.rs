//! VFIO containers for POWER: the ioctls on `/dev/vfio/vfio` over pre-registered memory.
//!
//! A [`Container`] owns its group handles, windows and registrations. It decides and returns; it does no I/O. Requests are
//! bytes ([`Container::ioctl`]: structs of `linux/vfio.h`, checked in the kernel's order) or typed methods. Every request names
//! its caller: the first process that uses a container owns it and is charged for it.
//!
//! This differs from Linux where Linux breaks its own contract (docs/specification.md, section 4): mapped memory cannot be
//! unregistered, ranges are checked to their end, a failing request charges nothing, no request returns a positive number for
//! an error, and memory that another container maps is released with its last mapping.

mod error;
mod group;
mod layout;
mod owner;
mod platform;
mod spapr;
mod windows;

use alloc::sync::Arc;
use alloc::vec::Vec;

use prereg::{Access, BusAddr, Errno, UserAddr};

pub use error::ContainerError;
pub use group::{Group, SoftwareGroup};
pub use layout::{Argument, Command, DynamicWindows, Info};
pub use owner::{Owner, UserMemory};
pub use platform::{Platform, TableLayout};
pub use spapr::Version;

use crate::hw_table::HwTable;
use layout::{MapDma, RegisterMemory, TceCreate, TceRemove, UnmapDma};
use spapr::Spapr;

type Parts<'a> = (&'a mut Spapr, &'a [Arc<dyn Group>]);

/// A VFIO container.
///
/// One caller at a time (`&mut self`), as the kernel's own lock has it; guest tables share the windows' tables and
/// map through them without it ([`Container::windows`]).
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use prereg::{AddressSpace, Errno, Granule, Memory, UserAddr, UserRange};
/// use prereg_iommu::container::{Container, Owner, Platform, SoftwareGroup, UserMemory, Version};
/// use prereg::{Access, BusAddr};
/// use prereg_sim::SimHost;
///
/// struct Ram(SimHost);
/// impl UserMemory for Ram {
///     fn at(&self, range: UserRange) -> Option<Box<dyn Memory>> {
///         Some(Box::new(self.0.range(range.first().raw(), range.bytes())))
///     }
/// }
///
/// let host = SimHost::new(Granule::K4);
/// host.memory(0x10_0000, 0x4000);
/// let space = Arc::new(AddressSpace::builder(host.clone()).build()?);
/// let vmm = Owner::new(space, Arc::new(host.clone()), Arc::new(host.clone()), Arc::new(Ram(host.clone())));
///
/// let mut container = Container::new(1);
/// container.attach(Arc::new(SoftwareGroup::new(0, Platform::POWERNV)))?;
/// container.set_iommu(Version::V2)?;
/// let (ua, bytes) = (UserAddr::new(0x10_0000), 0x4000);
/// container.register_memory(&vmm, ua, bytes)?;
/// container.map_dma(&vmm, Some(Access::ReadWrite), ua, BusAddr::new(0), bytes)?;
/// assert_eq!(container.unregister_memory(&vmm, ua, bytes).unwrap_err().errno(), Errno::EBUSY);
/// container.unmap_dma(&vmm, BusAddr::new(0), bytes)?;
/// container.unregister_memory(&vmm, ua, bytes)?;
///
/// drop(container);
/// host.assert_clean();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Container {
    number: u64,
    groups: Vec<Arc<dyn Group>>,
    iommu: Option<Spapr>,
}

impl Container {
    const VERSION_1: u64 = 2;
    const ERROR_HANDLING: u64 = 5;
    const VERSION_2: u64 = 7;

    /// An empty container. `number` names it as a holder of mappings in reports; 0 means none.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self { number, groups: Vec::new(), iommu: None }
    }

    /// The groups, in the order they were attached.
    #[must_use]
    pub fn groups(&self) -> &[Arc<dyn Group>] {
        &self.groups
    }

    /// The version that was set.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.iommu.as_ref().map(Spapr::version)
    }

    /// The tables of the existing windows, by slot, for attaching them to guest tables.
    pub fn windows(&self) -> impl Iterator<Item = (usize, &Arc<HwTable>)> {
        self.iommu.iter().flat_map(Spapr::windows)
    }

    // ---- groups ---------------------------------------------------------------------------------------------------

    /// Adds a group, programmed with the existing windows if the IOMMU is set.
    ///
    /// # Errors
    /// EBUSY if it is here already or (version 1) another is; EPERM if its platform differs; EINVAL if the platform has no
    /// windows for version 2; the hardware's own. Nothing has changed then.
    pub fn attach(&mut self, group: Arc<dyn Group>) -> Result<(), ContainerError> {
        if let Some(iommu) = &self.iommu {
            Self::admit_group(&group, &self.groups, iommu.version())?;
            iommu.program(&*group)?;
        } else if self.groups.iter().any(|other| other.number() == group.number()) {
            return Err(ContainerError::GroupTaken { number: group.number() });
        }
        self.groups.push(group);
        Ok(())
    }

    fn admit_group(
        group: &Arc<dyn Group>,
        others: &[Arc<dyn Group>],
        version: Version,
    ) -> Result<(), ContainerError> {
        let number = group.number();
        if version == Version::V2 && group.platform().max_windows == 0 {
            return Err(ContainerError::UnfitIommu { kind: Self::VERSION_2 });
        }
        if version == Version::V1 && !others.is_empty() || others.iter().any(|other| other.number() == number)
        {
            return Err(ContainerError::GroupTaken { number });
        }
        if others.iter().any(|other| other.platform() != group.platform()) {
            return Err(ContainerError::OtherPlatform { number });
        }
        Ok(())
    }

    /// Removes group `number`; `false` if it is not here. The other groups keep every mapping. Removing the last group
    /// drops the IOMMU: every entry is cleared, every window removed, every registration released.
    pub fn detach(&mut self, number: u32) -> bool {
        let Some(at) = self.groups.iter().position(|group| group.number() == number) else { return false };
        if self.groups.len() == 1 {
            self.release();
        }
        let group = self.groups.remove(at);
        for (slot, _) in self.windows() {
            group.unset_window(slot);
        }
        true
    }

    fn release(&mut self) {
        if let Some(mut iommu) = self.iommu.take() {
            iommu.release(&self.groups);
        }
    }

    // ---- requests -------------------------------------------------------------------------------------------------

    /// Whether extension `kind` is supported: 1 or 0.
    #[must_use]
    pub fn check_extension(&self, kind: u64) -> u64 {
        u64::from(match kind {
            Self::VERSION_1 | Self::VERSION_2 => true,
            Self::ERROR_HANDLING => self.groups.iter().any(|group| group.platform().eeh),
            _ => false,
        })
    }

    /// Sets the IOMMU.
    ///
    /// # Errors
    /// EINVAL without a group or if one is set; as [`attach`](Self::attach) if the groups do not fit together.
    pub fn set_iommu(&mut self, version: Version) -> Result<(), ContainerError> {
        let Some(first) = self.groups.first() else { return Err(ContainerError::NoIommu) };
        if self.iommu.is_some() {
            return Err(ContainerError::IommuSet);
        }
        for (at, group) in self.groups.iter().enumerate() {
            Self::admit_group(group, &self.groups[..at], version)?;
        }
        self.iommu = Some(Spapr::new(self.number, version, *first.platform()));
        Ok(())
    }

    fn set_iommu_kind(&mut self, kind: u64) -> Result<(), ContainerError> {
        if self.groups.is_empty() || self.iommu.is_some() {
            return self.set_iommu(Version::V2);
        }
        match kind {
            Self::VERSION_1 => self.set_iommu(Version::V1),
            Self::VERSION_2 => self.set_iommu(Version::V2),
            _ if self.check_extension(kind) != 0 => Err(ContainerError::UnfitIommu { kind }),
            _ => Err(ContainerError::UnknownIommu { kind }),
        }
    }

    /// The IOMMU, if `caller` may use it.
    fn iommu(&self, caller: &Owner) -> Result<&Spapr, ContainerError> {
        let iommu = self.iommu.as_ref().ok_or(ContainerError::NoIommu)?;
        iommu.check_owner(caller)?;
        Ok(iommu)
    }

    /// IOMMU and groups, if `caller` may use them and the version is `version`.
    fn versioned(
        &mut self,
        caller: &Owner,
        version: Version,
        command: Command,
    ) -> Result<Parts<'_>, ContainerError> {
        self.iommu(caller)?;
        let iommu = self.iommu.as_mut().ok_or(ContainerError::NoIommu)?;
        if iommu.version() != version {
            return Err(ContainerError::NotARequest { command: command.raw() });
        }
        Ok((iommu, &self.groups))
    }

    /// IOMMU and groups, if `caller` may use them and the container is enabled.
    fn enabled(&mut self, caller: &Owner) -> Result<Parts<'_>, ContainerError> {
        self.iommu(caller)?;
        let iommu = self.iommu.as_mut().ok_or(ContainerError::NoIommu)?;
        iommu.check_enabled()?;
        Ok((iommu, &self.groups))
    }

    /// The default window and the limits of created ones.
    ///
    /// # Errors
    /// EINVAL without an IOMMU, EPERM for another process.
    pub fn info(&self, caller: &Owner) -> Result<Info, ContainerError> {
        Ok(self.iommu(caller)?.info())
    }

    /// Registers `bytes` at `ua`: pins and charges them, or shares the region of exactly this range.
    ///
    /// # Errors
    /// In this order: ENOTTY (version 1), EPERM, EINVAL (range), EBUSY (registered through this container), then the address
    /// space's: EINVAL (overlap), ENOMEM (limit), EFAULT (pin).
    pub fn register_memory(
        &mut self,
        caller: &Owner,
        ua: UserAddr,
        bytes: u64,
    ) -> Result<(), ContainerError> {
        let (iommu, _) = self.versioned(caller, Version::V2, Command::SpaprRegisterMemory)?;
        iommu.bind(caller)?;
        iommu.register(ua, bytes)
    }

    /// Releases a registration of this container.
    ///
    /// # Errors
    /// ENOTTY, EPERM (no owner yet, or another one), EINVAL (misaligned), ENOENT (this container did not register exactly this
    /// range), EBUSY (the last registration of mapped memory; nothing has changed).
    pub fn unregister_memory(
        &mut self,
        caller: &Owner,
        ua: UserAddr,
        bytes: u64,
    ) -> Result<(), ContainerError> {
        let (iommu, _) = self.versioned(caller, Version::V2, Command::SpaprUnregisterMemory)?;
        iommu.unregister(ua, bytes)
    }

    /// Maps `bytes` of memory at `ua` to bus address `ioba`, in pages of the window. Existing entries are replaced.
    ///
    /// # Errors
    /// EPERM (not enabled), the default window's, ENXIO (no window), EINVAL (misaligned, no permission, beyond the window,
    /// memory not registered or its pages smaller than the window's), ENXIO (memory is being released), ENOMEM. On a failure
    /// half way the entries that this call had written are cleared; later ones keep their mappings.
    pub fn map_dma(
        &mut self,
        caller: &Owner,
        access: Option<Access>,
        ua: UserAddr,
        ioba: BusAddr,
        bytes: u64,
    ) -> Result<(), ContainerError> {
        let (iommu, groups) = self.enabled(caller)?;
        iommu.map(groups, access, ua, ioba, bytes)
    }

    /// Clears the entries of `bytes` at `ioba`, skipping those that are not mapped.
    ///
    /// # Errors
    /// EPERM (not enabled), the default window's, ENXIO (no window), EINVAL (misaligned, beyond the window).
    pub fn unmap_dma(&mut self, caller: &Owner, ioba: BusAddr, bytes: u64) -> Result<(), ContainerError> {
        let (iommu, groups) = self.enabled(caller)?;
        iommu.unmap(groups, ioba, bytes)
    }

    /// Creates a window of `bytes` with pages of `2^shift` bytes and a table of `levels`, and returns its start. The window
    /// is as long as its table, which has at least one system page of entries.
    ///
    /// # Errors
    /// ENOTTY, EPERM, ENXIO (no group), the default window's, ENOSPC (both slots taken), EINVAL (page size or shape), ENOMEM
    /// (limit, or a level too large). Nothing is charged then.
    pub fn create_window(
        &mut self,
        caller: &Owner,
        shift: u32,
        bytes: u64,
        levels: u32,
    ) -> Result<BusAddr, ContainerError> {
        let (iommu, groups) = self.versioned(caller, Version::V2, Command::SpaprTceCreate)?;
        iommu.bind(caller)?;
        if groups.is_empty() {
            return Err(ContainerError::NoGroup { errno: Errno::ENXIO });
        }
        iommu.create(groups, shift, bytes, levels)
    }

    /// Removes the window that starts at `start`, with its mappings.
    ///
    /// # Errors
    /// ENOTTY, EPERM, ENXIO (no group), EINVAL (no window starts there).
    pub fn remove_window(&mut self, caller: &Owner, start: BusAddr) -> Result<(), ContainerError> {
        let (iommu, groups) = self.versioned(caller, Version::V2, Command::SpaprTceRemove)?;
        iommu.bind(caller)?;
        if groups.is_empty() {
            return Err(ContainerError::NoGroup { errno: Errno::ENXIO });
        }
        iommu.remove(groups, start)
    }

    /// Enables a version 1 container: charges the whole default window.
    ///
    /// # Errors
    /// ENOTTY (version 2), EBUSY (enabled), ENODEV (no group), EPERM, ENOMEM (limit).
    pub fn enable(&mut self, caller: &Owner) -> Result<(), ContainerError> {
        let (iommu, groups) = self.versioned(caller, Version::V1, Command::Enable)?;
        iommu.enable(caller, groups)
    }

    /// Disables a version 1 container: no more maps. Existing mappings stay.
    ///
    /// # Errors
    /// ENOTTY (version 2), EPERM.
    pub fn disable(&mut self, caller: &Owner) -> Result<(), ContainerError> {
        let (iommu, _) = self.versioned(caller, Version::V1, Command::Disable)?;
        iommu.disable();
        Ok(())
    }

    /// Performs a request: `command` is its number, `argument` the memory it points at. Returns 0, or 1 for a supported
    /// extension.
    ///
    /// # Errors
    /// As the typed methods, after the checks of the bytes: EFAULT if they are too few, EINVAL for `argsz` and flags. An
    /// unknown request is EINVAL without an IOMMU and ENOTTY with one.
    pub fn ioctl(
        &mut self,
        caller: &Owner,
        command: u32,
        mut argument: Argument<'_>,
    ) -> Result<u64, ContainerError> {
        let Some(request) = Command::from_raw(command) else {
            return Err(self.iommu(caller).err().unwrap_or(ContainerError::NotARequest { command }));
        };
        match request {
            Command::GetApiVersion => return Ok(0),
            Command::CheckExtension => return Ok(self.check_extension(argument.value())),
            Command::SetIommu => self.set_iommu_kind(argument.value())?,
            Command::SpaprTceGetInfo => self.info(caller)?.write(argument.bytes())?,
            Command::MapDma => {
                self.enabled(caller)?;
                let map = MapDma::read(argument.bytes())?;
                let access = Access::from_bits(map.permissions);
                self.map_dma(caller, access, map.ua, map.ioba, map.bytes)?;
            }
            Command::UnmapDma => {
                self.enabled(caller)?;
                let unmap = UnmapDma::read(argument.bytes())?;
                self.unmap_dma(caller, unmap.ioba, unmap.bytes)?;
            }
            Command::Enable => self.enable(caller)?,
            Command::Disable => self.disable(caller)?,
            Command::SpaprRegisterMemory => {
                self.versioned(caller, Version::V2, request)?.0.bind(caller)?;
                let memory = RegisterMemory::read(argument.bytes())?;
                self.register_memory(caller, memory.ua, memory.bytes)?;
            }
            Command::SpaprUnregisterMemory => {
                self.versioned(caller, Version::V2, request)?.0.check_bound()?;
                let memory = RegisterMemory::read(argument.bytes())?;
                self.unregister_memory(caller, memory.ua, memory.bytes)?;
            }
            Command::SpaprTceCreate => {
                self.versioned(caller, Version::V2, request)?.0.bind(caller)?;
                let create = TceCreate::read(argument.bytes())?;
                let start = self.create_window(caller, create.shift, create.bytes, create.levels)?;
                TceCreate::write(argument.bytes(), start);
            }
            Command::SpaprTceRemove => {
                self.versioned(caller, Version::V2, request)?.0.bind(caller)?;
                let remove = TceRemove::read(argument.bytes())?;
                self.remove_window(caller, remove.start)?;
            }
        }
        Ok(0)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.release();
    }
}
