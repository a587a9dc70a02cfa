//! Guest memory of `vm-memory`, registered region by region.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use prereg::{
    AddressSpace, Errno, GuestAddr, Holder, Memory, RegisterError, Registration, UnregisterError, UserAddr,
};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MemoryRegionAddress,
};

/// Why guest memory was not registered or given up. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// A region has no address in this process. EFAULT.
    #[error("the memory at {gpa} has no address in this process")]
    NoAddress {
        /// Where it is in the guest.
        gpa: GuestAddr,
    },
    /// A region's address is used by another one of the guest. EEXIST.
    #[error("the memory at {gpa} shares guest or user addresses with memory at {other}")]
    Overlaps {
        /// Where it is in the guest.
        gpa: GuestAddr,
        /// The other's start.
        other: GuestAddr,
    },
    /// The address space refused a region. Its errno.
    #[error("the memory at {gpa} could not be registered: {error}")]
    Register {
        /// Where it is in the guest.
        gpa: GuestAddr,
        /// Why.
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
        /// Where it is in the guest.
        gpa: GuestAddr,
        /// Live mappings.
        mapped: u64,
    },
}

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

/// One region: where it is in the guest, and its registration.
struct Region {
    gpa: u64,
    registration: Registration,
}

/// A guest's memory, pinned: every region of a `GuestMemoryMmap` is registered and stays mapped as long as it is.
///
/// Dropping it gives the registrations up; memory that is still mapped for a device stays pinned, and mapped in this process,
/// until that is unmapped.
pub struct RegisteredRam {
    /// By guest address.
    regions: Vec<Region>,
    /// Which of them, by user address.
    by_user: Vec<usize>,
}

/// A region of a `GuestMemoryMmap`, kept by its `Arc`.
struct RegionMemory {
    ua: UserAddr,
    bytes: u64,
    keep: Arc<dyn Any + Send + Sync>,
}

#[expect(unsafe_code, reason = "a region vouches for its memory")]
// SAFETY: a region owns its mapping until it is dropped, or whoever made one of foreign memory promised to keep that.
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
        let mut ram = Self { regions: Vec::new(), by_user: Vec::new() };
        ram.extend(space, memory, holder)?;
        Ok(ram)
    }

    /// Registers what `memory` has and this has not: memory was plugged in.
    ///
    /// # Errors
    /// [`RamError`]; nothing more is registered then.
    pub fn extend<B: Bitmap + Send + Sync + 'static>(
        &mut self,
        space: &AddressSpace,
        memory: &GuestMemoryMmap<B>,
        holder: Holder,
    ) -> Result<(), RamError> {
        let mut more = Vec::new();
        for region in memory.iter() {
            let (gpa, bytes) = (GuestAddr::new(region.start_addr().0), region.len());
            let start =
                region.get_host_address(MemoryRegionAddress(0)).map_err(|_| RamError::NoAddress { gpa })?;
            let ua = UserAddr::new(start.expose_provenance() as u64);
            match self.in_the_way(gpa.raw(), ua.raw(), bytes) {
                Some(old) if old.is(gpa.raw(), ua, bytes) => continue,
                Some(old) => return Err(RamError::Overlaps { gpa, other: GuestAddr::new(old.gpa) }),
                None => {}
            }
            let keep = keep_of(memory, region).ok_or(RamError::NoAddress { gpa })?;
            let registration = space
                .register_for(&RegionMemory { ua, bytes, keep }, holder)
                .map_err(|error| RamError::Register { gpa, error })?;
            more.push(Region { gpa: gpa.raw(), registration });
        }
        self.regions.append(&mut more);
        self.index();
        Ok(())
    }

    /// Gives up the region that begins at `start`: memory is to be unplugged.
    ///
    /// # Errors
    /// [`RamError::NotThere`], [`RamError::Mapped`]; nothing has changed.
    pub fn remove(&mut self, start: GuestAddress) -> Result<(), RamError> {
        let gpa = GuestAddr::new(start.0);
        let Ok(at) = self.regions.binary_search_by_key(&start.0, |region| region.gpa) else {
            return Err(RamError::NotThere { gpa });
        };
        let Region { registration, .. } = self.regions.remove(at);
        let result = registration.unregister().or_else(|error: UnregisterError| {
            if error.errno() != Errno::EBUSY {
                return Ok(());
            }
            let mapped = error.mapped();
            self.regions.insert(at, Region { gpa: gpa.raw(), registration: error.into_inner() });
            Err(RamError::Mapped { gpa, mapped })
        });
        self.index();
        result
    }

    fn index(&mut self) {
        self.regions.sort_unstable_by_key(|region| region.gpa);
        self.by_user = (0..self.regions.len()).collect();
        self.by_user.sort_unstable_by_key(|&at| self.regions[at].registration.ua());
    }

    fn in_the_way(&self, gpa: u64, ua: u64, bytes: u64) -> Option<&Region> {
        let meet = |one: u64, other: u64, length: u64| one < other + length && other < one + bytes;
        self.regions.iter().find(|region| {
            let length = region.registration.bytes();
            meet(gpa, region.gpa, length) || meet(ua, region.registration.ua().raw(), length)
        })
    }

    /// The user address of `bytes` bytes at `gpa`, which lie in one region.
    #[must_use]
    pub fn user(&self, gpa: GuestAddress, bytes: u64) -> Option<UserAddr> {
        let at = self.regions.partition_point(|region| region.gpa <= gpa.0).checked_sub(1)?;
        let region = &self.regions[at];
        let ua = region.registration.ua().checked_add(gpa.0 - region.gpa)?;
        region.registration.range().holds(ua, bytes).then_some(ua)
    }

    /// The guest address of `bytes` bytes at `ua`, which lie in one region.
    #[must_use]
    pub fn guest(&self, ua: UserAddr, bytes: u64) -> Option<GuestAddress> {
        let at = self.by_user.partition_point(|&at| self.regions[at].registration.ua() <= ua);
        let region = &self.regions[*self.by_user.get(at.checked_sub(1)?)?];
        let offset = ua.offset_from(region.registration.ua())?;
        region.registration.range().holds(ua, bytes).then_some(GuestAddress(region.gpa + offset))
    }

    /// The regions by guest address: where each is in the guest, and its registration.
    pub fn regions(&self) -> impl Iterator<Item = (GuestAddress, &Registration)> {
        self.regions.iter().map(|region| (GuestAddress(region.gpa), &region.registration))
    }
}

impl Region {
    fn is(&self, gpa: u64, ua: UserAddr, bytes: u64) -> bool {
        (self.gpa, self.registration.ua(), self.registration.bytes()) == (gpa, ua, bytes)
    }
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
        f.debug_map().entries(self.regions.iter().map(|region| (region.gpa, &region.registration))).finish()
    }
}
