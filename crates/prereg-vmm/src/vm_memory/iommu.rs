//! An `Iommu` for an `IommuMemory` over type1-like mappings: each is a counted use of its memory from the map to the unmap.
//!
//! For a guest whose driver maps and unmaps by the rules of VFIO type1 and virtio-iommu: no mapping over another one, no
//! cutting, all of it in registered memory. An IOTLB, which is updated and invalidated without rules, is `iotlb.rs`.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use prereg::{Access, AddressSpace, Errno, GuestAddr, Holder, Iova, OutOfMemory};
use prereg_iommu::iova::{
    Backing, HeldRange, IovaAccessError, IovaLimits, IovaMap, IovaMapError, LocalSegment, OnDrained,
    Unmapping, UserSegment,
};
use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Iommu, Iotlb, Permissions};

use super::ram::RegisteredRam;

/// A device's I/O virtual address space over a guest's registered memory.
///
/// Each translation holds what it translates: as long as the iterator that [`Iommu::translate`] returns lives, an
/// [`unmap`](Self::unmap) of it is not done and the memory stays pinned. The slices that `vm-memory` cuts from it are not
/// counted: a device model that keeps slices beyond the iterator, as virtio-queue's `Reader` and `Writer` do, gets them from
/// a [`HeldMemory`](super::HeldMemory), or takes a [`hold`](Self::hold) of its own.
pub struct PinnedIommu {
    map: IovaMap,
    ram: Arc<RegisteredRam>,
}

/// Errors of mapping guest memory. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IommuMapError {
    /// Some of the guest addresses are not registered RAM: a device's memory, or a hole. EFAULT.
    #[error(
        "{gpa} + {bytes:#x} bytes of guest addresses are not all in registered guest RAM; plug the memory in with \
         `RegisteredRam::extend`, or use `PinnedIotlb` for ranges with a device's memory or holes"
    )]
    NotRam {
        /// The first guest address asked for.
        gpa: GuestAddr,
        /// The length asked for.
        bytes: u64,
    },
    /// The mapping was refused. Its errno.
    #[error(transparent)]
    Iova(#[from] IovaMapError),
}

prereg::debug_as_display!(IommuMapError);

impl IommuMapError {
    /// EFAULT, or the mapping's errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NotRam { .. } => Errno::EFAULT,
            Self::Iova(error) => error.errno(),
        }
    }
}

/// Without a callback: the caller of an unmap polls its [`Unmapping`].
pub(super) struct NoCallback;

impl OnDrained for NoCallback {
    fn on_drained(&self) {}
}

/// A translation under way: the addresses, and the memory held at them.
pub struct Translated {
    iotlb: Iotlb,
    /// Releases the memory when dropped.
    held: Option<HeldRange>,
}

impl PinnedIommu {
    /// Nothing is mapped.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: &AddressSpace,
        ram: Arc<RegisteredRam>,
        limits: IovaLimits,
        holder: Holder,
    ) -> Result<Self, OutOfMemory> {
        Self::with_drained(space, ram, limits, holder, Arc::new(NoCallback))
    }

    /// Like [`new`](Self::new), with a callback for when the last access of an unmapped mapping has left.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn with_drained(
        space: &AddressSpace,
        ram: Arc<RegisteredRam>,
        limits: IovaLimits,
        holder: Holder,
        drained: Arc<dyn OnDrained>,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self { map: IovaMap::new(space, limits, holder, drained)?, ram })
    }

    /// Maps `bytes` bytes of guest memory at `to`, all of it registered RAM, to `iova`.
    ///
    /// # Errors
    /// [`IommuMapError`]; nothing is mapped then.
    pub fn map(
        &self,
        iova: GuestAddress,
        bytes: u64,
        to: GuestAddress,
        access: Access,
    ) -> Result<(), IommuMapError> {
        let backing = match self.ram.user(to, bytes) {
            Some(ua) => Backing::Local(ua),
            None => self.pieces(to, bytes)?,
        };
        Ok(self.map.map(Iova::new(iova.0), bytes, backing, access)?)
    }

    /// Memory that lies in several regions, which touch.
    #[cold]
    fn pieces(&self, to: GuestAddress, bytes: u64) -> Result<Backing, IommuMapError> {
        let not_ram = IommuMapError::NotRam { gpa: GuestAddr::new(to.0), bytes };
        if to.0.checked_add(bytes).is_none() {
            return Err(not_ram);
        }
        let piece = |(bytes, ua): (u64, Option<_>)| Some(LocalSegment { ua: ua?, bytes, owner: None });
        let pieces: Option<Vec<_>> = self.ram.parts(to, bytes).into_iter().map(piece).collect();
        Ok(Backing::Segments(pieces.ok_or(not_ram)?))
    }

    /// Unmaps every mapping in the range. They are gone when this returns; the returned value reports when the accesses under way
    /// have ended.
    ///
    /// # Errors
    /// [`IovaMapError`]; nothing is unmapped then.
    pub fn unmap(&self, iova: GuestAddress, bytes: u64) -> Result<Unmapping, IovaMapError> {
        self.map.unmap(Iova::new(iova.0), bytes)
    }

    /// Holds the memory behind `bytes` bytes at `iova`, for a device that keeps using it.
    ///
    /// # Errors
    /// [`IovaAccessError`]; nothing is held then.
    pub fn hold(&self, iova: GuestAddress, bytes: u64, access: Access) -> Result<HeldRange, IovaAccessError> {
        self.map.hold(Iova::new(iova.0), bytes, access)
    }

    /// The guest's memory, to plug memory in and out.
    #[must_use]
    pub fn ram(&self) -> &Arc<RegisteredRam> {
        &self.ram
    }

    /// The mappings themselves.
    #[must_use]
    pub fn mappings(&self) -> &IovaMap {
        &self.map
    }

    fn held(&self, iova: u64, bytes: u64, access: Permissions) -> Result<HeldRange, IovaAccessError> {
        let hold = |access| self.map.hold(Iova::new(iova), bytes, access);
        match access {
            Permissions::Read => hold(Access::Read),
            Permissions::Write => hold(Access::Write),
            Permissions::ReadWrite => hold(Access::ReadWrite),
            // Any permission will do.
            Permissions::No => match hold(Access::Read) {
                Err(IovaAccessError::Protected { .. }) => hold(Access::Write),
                result => result,
            },
        }
    }

    /// The guest addresses behind a held access, entered into `iotlb`.
    fn enter(
        &self,
        iotlb: &mut Iotlb,
        iova: u64,
        held: &HeldRange,
        access: Permissions,
    ) -> Result<(), String> {
        let mut at = iova;
        for stretch in held.user_segments() {
            let UserSegment::Local { ua, bytes, .. } = stretch else {
                return Err("the mapping leads to memory that is not the guest's".to_owned());
            };
            let gpa = self.ram.guest(ua, bytes).ok_or("the mapping leads out of the guest's memory")?;
            enter(iotlb, at, gpa, bytes, access)?;
            // The pieces add up to the access, which does not pass 2^64.
            at = at.wrapping_add(bytes);
        }
        Ok(())
    }
}

/// Enters one translation into `iotlb`.
pub(super) fn enter(
    iotlb: &mut Iotlb,
    iova: u64,
    gpa: GuestAddress,
    bytes: u64,
    access: Permissions,
) -> Result<(), String> {
    let length = usize::try_from(bytes).map_err(|error| error.to_string())?;
    iotlb.set_mapping(GuestAddress(iova), gpa, length, access).map_err(|error| error.to_string())
}

impl Iommu for PinnedIommu {
    type IotlbGuard<'a> = Translated;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Translated>, Error> {
        let refused = |reason: String| {
            let iova_range = IovaRange { base: iova, length };
            Error::CannotResolve { iova_range, reason }
        };
        if iova.0.checked_add(length as u64).is_none() {
            // An `Iotlb` cannot name the last byte of all.
            return Err(refused("the range reaches 2^64".to_owned()));
        }
        let mut translated = Translated { iotlb: Iotlb::new(), held: None };
        if length > 0 {
            let held =
                self.held(iova.0, length as u64, access).map_err(|error| refused(error.to_string()))?;
            self.enter(&mut translated.iotlb, iova.0, &held, access).map_err(refused)?;
            translated.held = Some(held);
        }
        Iotlb::lookup(translated, iova, length, access)
            .map_err(|_| refused("a translation has a hole".to_owned()))
    }
}

impl Deref for Translated {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.iotlb
    }
}

impl fmt::Debug for PinnedIommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedIommu").field("map", &self.map).field("ram", &self.ram).finish()
    }
}

impl fmt::Debug for Translated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Translated").field("held", &self.held).finish_non_exhaustive()
    }
}
