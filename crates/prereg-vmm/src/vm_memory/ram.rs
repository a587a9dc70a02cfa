//! Guest memory of `vm-memory`, registered region by region; regions come and go by shared reference.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{AddressSpace, Errno, GuestAddr, Holder, Memory, RegisterError, Registration, UserAddr};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

use super::region_index::{RamRegion, RegionIndex, Regions};

/// Errors of registering and unregistering guest memory. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// A region has no address in this process. EFAULT.
    #[error("the memory at {gpa} has no address in this process")]
    NoAddress {
        /// Its guest address.
        gpa: GuestAddr,
    },
    /// A region's address is used by another one of the guest. EEXIST.
    #[error("the memory at {gpa} shares guest or user addresses with memory at {other}")]
    Overlaps {
        /// Its guest address.
        gpa: GuestAddr,
        /// The other's start.
        other: GuestAddr,
    },
    /// The address space refused a region. Its errno.
    #[error("the memory at {gpa} could not be registered: {error}")]
    Register {
        /// Its guest address.
        gpa: GuestAddr,
        /// The reason.
        error: RegisterError,
    },
    /// No memory of the guest begins there. ENOENT.
    #[error("no memory of the guest begins at {gpa}")]
    NotThere {
        /// The address asked for.
        gpa: GuestAddr,
    },
    /// A device uses it. EBUSY.
    #[error("the memory at {gpa} is mapped {mapped} times; unmap it first")]
    Mapped {
        /// Its guest address.
        gpa: GuestAddr,
        /// Live mappings.
        mapped: u64,
    },
}

prereg::debug_as_display!(RamError);

impl RamError {
    /// EFAULT, EEXIST, ENOENT, EBUSY, or the address space's, as said at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NoAddress { .. } => Errno::EFAULT,
            Self::Overlaps { .. } => Errno::EEXIST,
            Self::Register { error, .. } => error.errno(),
            Self::NotThere { .. } => Errno::ENOENT,
            Self::Mapped { .. } => Errno::EBUSY,
        }
    }
}

/// A guest's memory, pinned: every region of a `GuestMemoryMmap` is registered and stays mapped as long as it is.
///
/// Regions come and go by shared reference, so memory can be plugged and unplugged while a `PinnedIommu` translates to it.
/// Dropping it unregisters them; memory that is still mapped for a device stays pinned, and mapped in this process, until
/// that is unmapped.
pub struct RegisteredRam {
    /// By guest address. Locked by one change at a time, for as long as it pins or unpins.
    registrations: Mutex<BTreeMap<u64, Registration>>,
    /// The regions, for lookups.
    by_guest: RegionIndex,
    by_user: RegionIndex,
}

/// A region of a `GuestMemoryMmap`, kept by its `Arc`.
struct RegionMemory {
    ua: UserAddr,
    bytes: u64,
    keep: Arc<dyn Any + Send + Sync>,
}

#[expect(unsafe_code, reason = "a region vouches for its memory")]
// SAFETY: a region owns its mapping until it is dropped; one made of foreign memory comes with the promise to keep that.
unsafe impl Memory for RegionMemory {
    fn ua(&self) -> UserAddr {
        self.ua
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::clone(&self.keep))
    }
}

impl RegisteredRam {
    /// Registers every region of `memory` in `space`.
    ///
    /// # Errors
    /// [`RamError`]; nothing is registered then.
    pub fn register<B: Bitmap + Send + Sync + 'static>(
        space: &AddressSpace,
        memory: &GuestMemoryMmap<B>,
        holder: Holder,
    ) -> Result<Self, RamError> {
        let ram = Self {
            registrations: Mutex::default(),
            by_guest: RegionIndex::default(),
            by_user: RegionIndex::default(),
        };
        ram.extend(space, memory, holder)?;
        Ok(ram)
    }

    /// Registers the regions of `memory` that are not registered yet: memory was plugged in. Lookups go on meanwhile.
    ///
    /// # Errors
    /// [`RamError`]; nothing more is registered then.
    pub fn extend<B: Bitmap + Send + Sync + 'static>(
        &self,
        space: &AddressSpace,
        memory: &GuestMemoryMmap<B>,
        holder: Holder,
    ) -> Result<(), RamError> {
        let mut registrations = self.registrations();
        let mut more = Vec::new();
        for region in memory.iter() {
            let (gpa, bytes) = (GuestAddr::new(region.start_addr().0), region.len());
            let start =
                region.get_host_address(MemoryRegionAddress(0)).map_err(|_| RamError::NoAddress { gpa })?;
            let ua = UserAddr::new(start.expose_provenance() as u64);
            let new = RamRegion { gpa: region.start_addr(), ua, bytes };
            match self.by_guest.read(|regions| in_the_way(regions, new)) {
                Some(old) if old == new => continue,
                Some(old) => return Err(RamError::Overlaps { gpa, other: GuestAddr::new(old.gpa.0) }),
                None => {}
            }
            let keep = keep_of(memory, region).ok_or(RamError::NoAddress { gpa })?;
            let registration = space
                .register_for(&RegionMemory { ua, bytes, keep }, holder)
                .map_err(|error| RamError::Register { gpa, error })?;
            more.push((gpa.raw(), registration));
        }
        registrations.extend(more);
        self.replace_index(&registrations);
        Ok(())
    }

    /// Unregisters the region that begins at `start`: memory is to be unplugged. Lookups go on meanwhile.
    ///
    /// # Errors
    /// [`RamError::NotThere`], [`RamError::Mapped`]; nothing has changed.
    pub fn remove(&self, start: GuestAddress) -> Result<(), RamError> {
        let gpa = GuestAddr::new(start.0);
        let mut registrations = self.registrations();
        let registration = registrations.remove(&start.0).ok_or(RamError::NotThere { gpa })?;
        match registration.unregister() {
            Err(error) if error.errno() == Errno::EBUSY => {
                let mapped = error.mapped();
                registrations.insert(start.0, error.into_inner());
                return Err(RamError::Mapped { gpa, mapped });
            }
            // A lookup that still finds it gets an address that cannot be mapped any more.
            _ => self.replace_index(&registrations),
        }
        Ok(())
    }

    // A panic leaves both as they were: every change is made after the calls that could.
    fn registrations(&self) -> MutexGuard<'_, BTreeMap<u64, Registration>> {
        self.registrations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace_index(&self, registrations: &BTreeMap<u64, Registration>) {
        let region = |(&gpa, registration): (&u64, &Registration)| RamRegion {
            gpa: GuestAddress(gpa),
            ua: registration.ua(),
            bytes: registration.bytes(),
        };
        let mut regions: Vec<_> = registrations.iter().map(region).collect();
        self.by_guest.replace(&regions);
        regions.sort_unstable_by_key(|region| region.ua);
        self.by_user.replace(&regions);
    }

    /// The user address of `bytes` bytes at `gpa`, which lie in one region.
    #[must_use]
    #[inline]
    pub fn user(&self, gpa: GuestAddress, bytes: u64) -> Option<UserAddr> {
        let region = self.by_guest.read(|regions| region_at(regions, gpa))?;
        let offset = gpa.0 - region.gpa.0;
        let inside = bytes > 0 && bytes <= region.bytes - offset;
        inside.then(|| UserAddr::new(region.ua.raw() + offset))
    }

    /// The guest address of `bytes` bytes at `ua`, which lie in one region.
    #[must_use]
    #[inline]
    pub fn guest(&self, ua: UserAddr, bytes: u64) -> Option<GuestAddress> {
        let region = self
            .by_user
            .read(|regions| regions.get(regions.partition(|region| region.ua <= ua).checked_sub(1)?))?;
        let offset = ua.offset_from(region.ua)?;
        let inside = bytes > 0 && offset < region.bytes && bytes <= region.bytes - offset;
        inside.then(|| GuestAddress(region.gpa.0 + offset))
    }

    /// Takes `[gpa, gpa + bytes)`, which does not pass 2^64, apart by regions: the length of each part, and its user address
    /// if it lies in a region.
    pub(super) fn parts(&self, gpa: GuestAddress, bytes: u64) -> Vec<(u64, Option<UserAddr>)> {
        self.by_guest.read(|regions| {
            let (mut at, mut left) = (gpa, bytes);
            let mut parts = Vec::new();
            while left > 0 {
                let (length, ua) = match region_at(regions, at) {
                    Some(region) => {
                        let offset = at.0 - region.gpa.0;
                        (region.bytes - offset, Some(UserAddr::new(region.ua.raw().wrapping_add(offset))))
                    }
                    None => {
                        let next = regions.get(regions.partition(|region| region.gpa <= at));
                        (next.filter(|next| next.gpa > at).map_or(u64::MAX, |next| next.gpa.0 - at.0), None)
                    }
                };
                let length = length.min(left);
                parts.push((length, ua));
                // Past the last address only when nothing is left.
                (at, left) = (GuestAddress(at.0.wrapping_add(length)), left - length);
            }
            parts
        })
    }

    /// The regions by guest address.
    #[must_use]
    pub fn regions(&self) -> Vec<RamRegion> {
        self.by_guest.read(|regions| regions.iter().collect())
    }
}

/// The region that has the byte at `gpa`.
#[inline]
fn region_at(regions: &Regions<'_>, gpa: GuestAddress) -> Option<RamRegion> {
    let region = regions.get(regions.partition(|region| region.gpa <= gpa).checked_sub(1)?)?;
    (region.gpa <= gpa && gpa.0 - region.gpa.0 < region.bytes).then_some(region)
}

/// A region that shares guest or user addresses with `new`.
fn in_the_way(regions: &Regions<'_>, new: RamRegion) -> Option<RamRegion> {
    // Regions neither are empty nor pass 2^64.
    let meet = |one: u64, bytes: u64, other: u64, length: u64| {
        one <= other.wrapping_add(length.wrapping_sub(1)) && other <= one + (bytes - 1)
    };
    regions.iter().find(|old| {
        meet(new.gpa.0, new.bytes, old.gpa.0, old.bytes)
            || meet(new.ua.raw(), new.bytes, old.ua.raw(), old.bytes)
    })
}

/// The `Arc` of a region. The collection gives it away only together with a collection that lacks it.
fn keep_of<B: Bitmap + Send + Sync + 'static>(
    memory: &GuestMemoryMmap<B>,
    region: &GuestRegionMmap<B>,
) -> Option<Arc<dyn Any + Send + Sync>> {
    let (_, region) = memory.remove_region(region.start_addr(), region.len()).ok()?;
    Some(region)
}

impl fmt::Debug for RegisteredRam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.regions()).finish()
    }
}
