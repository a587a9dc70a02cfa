//! What a device sees of its client's memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::{Access, Errno, HostAddr, Iova, UserAddr};
use prereg_iommu::iova::{HeldRange, HostSegment, IovaAccessError, IovaMap, UserSegment};
use prereg_linux::{SharedError, SharedMemory};

use super::error::DmaError;
use super::remote::Remote;

/// A client's memory, as its device sees it. Clones are the same memory; any thread may use one.
#[derive(Clone)]
pub struct Dma {
    bus: Arc<DmaBus>,
}

/// What a client and its device share.
pub(super) struct DmaBus {
    pub(super) map: Arc<IovaMap>,
    pub(super) remote: Arc<dyn Remote>,
    /// Until the client is gone.
    connected: AtomicBool,
}

impl DmaBus {
    pub(super) fn new(map: Arc<IovaMap>, remote: Arc<dyn Remote>) -> Self {
        Self { map, remote, connected: AtomicBool::new(true) }
    }

    pub(super) fn is_connected(&self) -> bool {
        // Acquire pairs with the Release in `disconnect`. An access that misses it finds nothing mapped, or is one of those
        // that the unmap waits for.
        self.connected.load(Ordering::Acquire)
    }

    /// New accesses fail from here on.
    pub(super) fn disconnect(&self) {
        // Release pairs with the Acquire in `is_connected`.
        self.connected.store(false, Ordering::Release);
    }
}

impl Dma {
    pub(super) fn new(bus: Arc<DmaBus>) -> Self {
        Self { bus }
    }

    /// Holds `[iova, iova + bytes)` for a device that does with it what `access` says. It may lie in several mappings that
    /// touch.
    ///
    /// With memory that is registered at its first use, this is where that happens, and then it takes as long as a pin does.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is held then.
    pub fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<Hold, DmaError> {
        if !self.bus.is_connected() {
            return Err(DmaError::Disconnected);
        }
        match self.bus.map.hold(iova, bytes, access) {
            Ok(held) => {
                let remote = (!held.is_local()).then(|| Arc::clone(&self.bus.remote));
                Ok(Hold { held, remote, iova, access })
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    #[cold]
    fn refused(&self, error: IovaAccessError) -> DmaError {
        // It may have been unmapped because the client went.
        if self.bus.is_connected() { error.into() } else { DmaError::Disconnected }
    }

    /// Copies from `iova` on into `into`.
    ///
    /// # Errors
    /// [`DmaError`]; `into` is then not to be used.
    pub fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        self.hold(iova, into.len() as u64, Access::Read)?.read(0, into)
    }

    /// Copies `from` to `iova` and on.
    ///
    /// # Errors
    /// [`DmaError`]; a part may have been written if it is none of those that say that nothing is mapped or allowed.
    pub fn write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        self.hold(iova, from.len() as u64, Access::Write)?.write(0, from)
    }

    /// Loads an aligned little-endian number: what the client wrote before it is seen after (acquire).
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn load_u32(&self, iova: Iova) -> Result<u32, DmaError> {
        self.hold(iova, 4, Access::Read)?.load_u32(0)
    }

    /// Stores an aligned little-endian number: what was written before is seen before (release).
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn store_u32(&self, iova: Iova, value: u32) -> Result<(), DmaError> {
        self.hold(iova, 4, Access::Write)?.store_u32(0, value)
    }
}

/// Memory held for an access: pinned at its addresses, and its unmap not answered, until this is dropped. Any thread may use
/// it, and drop it. Once the client is cut off, copies and numbers fail with [`DmaError::Disconnected`].
#[must_use = "the memory is held only while this lives"]
pub struct Hold {
    held: HeldRange,
    /// Only where some of it is remote.
    remote: Option<Arc<dyn Remote>>,
    iova: Iova,
    access: Access,
}

/// A part of a hold that is contiguous for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DmaPiece {
    /// The address it is registered by: for I/O by fixed buffers, never for copies by a processor, the kernel's included.
    pub ua: UserAddr,
    /// Where a device finds it.
    pub host: HostAddr,
    /// How long it is.
    pub bytes: u64,
    /// The address of the same memory for system calls that copy. They answer EFAULT where the client took the memory away.
    /// Never to be loaded from or stored to directly: [`Hold::read`] and the others do that safely.
    pub copy: UserAddr,
}

/// Where a part of a hold is to be reached.
enum Place<'a> {
    Local { memory: &'a SharedMemory, offset: u64 },
    Remote { iova: Iova },
}

impl Hold {
    /// The parts in order, each contiguous for the device; memory that only the client can reach has none.
    pub fn pieces(&self) -> impl Iterator<Item = DmaPiece> + '_ {
        self.held.host_segments_with_owners().filter_map(|(piece, owner)| {
            let HostSegment::Local { ua, host, bytes } = piece else { return None };
            let memory = owner?.downcast_ref::<SharedMemory>()?;
            let copy = memory.copy_ua().checked_add(ua.offset_from(memory.ua())?)?;
            Some(DmaPiece { ua, host, bytes, copy })
        })
    }

    /// Where it begins.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// What the device may do.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether all of it is memory of this machine that [`pieces`](Self::pieces) names; otherwise it is copied.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.remote.is_none()
    }

    /// Copies from `offset` on into `into`. Memory that only the client can reach takes a message to it and back.
    ///
    /// # Errors
    /// [`DmaError`]; `into` is then not to be used.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaError> {
        self.allows(Access::Read)?;
        self.walk(offset, into.len(), |place, part| {
            let into = &mut into[part];
            match place {
                Place::Local { memory, offset } => {
                    memory.read(offset, into).map_err(|error| self.failed(error))
                }
                Place::Remote { iova } => Ok(self.remote()?.read(iova, into)?),
            }
        })
    }

    /// Copies `from` to `offset` and on.
    ///
    /// # Errors
    /// [`DmaError`]; a part may have been written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), DmaError> {
        self.allows(Access::Write)?;
        self.walk(offset, from.len(), |place, part| {
            let from = &from[part];
            match place {
                Place::Local { memory, offset } => {
                    memory.write(offset, from).map_err(|error| self.failed(error))
                }
                Place::Remote { iova } => Ok(self.remote()?.write(iova, from)?),
            }
        })
    }

    /// Loads an aligned little-endian number: what the client wrote before it is seen after (acquire).
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] where it is not aligned.
    pub fn load_u32(&self, offset: u64) -> Result<u32, DmaError> {
        let mut value = 0;
        self.number::<4>(Access::Read, offset, |place| {
            value = match place {
                Place::Local { memory, offset } => {
                    memory.load_u32(offset).map_err(|error| self.failed(error))?
                }
                Place::Remote { iova } => u32::from_le_bytes(self.fetch(iova)?),
            };
            Ok(())
        })?;
        Ok(value)
    }

    /// Stores an aligned little-endian number: what was written before is seen before (release). At once in memory that is
    /// sealed against shrinking; see [`SharedMemory::store_u32`] for the rest.
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] where it is not aligned.
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), DmaError> {
        self.number::<4>(Access::Write, offset, |place| match place {
            Place::Local { memory, offset } => {
                memory.store_u32(offset, value).map_err(|error| self.failed(error))
            }
            Place::Remote { iova } => Ok(self.remote()?.write(iova, &value.to_le_bytes())?),
        })
    }

    /// Loads an aligned little-endian number (acquire).
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] where it is not aligned.
    pub fn load_u64(&self, offset: u64) -> Result<u64, DmaError> {
        let mut value = 0;
        self.number::<8>(Access::Read, offset, |place| {
            value = match place {
                Place::Local { memory, offset } => {
                    memory.load_u64(offset).map_err(|error| self.failed(error))?
                }
                Place::Remote { iova } => u64::from_le_bytes(self.fetch(iova)?),
            };
            Ok(())
        })?;
        Ok(value)
    }

    /// Stores an aligned little-endian number (release): for a flag that lies in the same eight bytes as what it is about,
    /// like the second half of a completion queue entry.
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] where it is not aligned.
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), DmaError> {
        self.number::<8>(Access::Write, offset, |place| match place {
            Place::Local { memory, offset } => {
                memory.store_u64(offset, value).map_err(|error| self.failed(error))
            }
            Place::Remote { iova } => Ok(self.remote()?.write(iova, &value.to_le_bytes())?),
        })
    }

    fn fetch<const BYTES: usize>(&self, iova: Iova) -> Result<[u8; BYTES], DmaError> {
        let mut bytes = [0; BYTES];
        self.remote()?.read(iova, &mut bytes)?;
        Ok(bytes)
    }

    /// Visits the one place of an aligned number.
    fn number<const BYTES: usize>(
        &self,
        access: Access,
        offset: u64,
        mut visit: impl FnMut(Place<'_>) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        self.allows(access)?;
        let range = DmaError::Range { offset, bytes: BYTES as u64 };
        let aligned = self.iova.checked_add(offset).is_some_and(|iova| iova.raw() % BYTES as u64 == 0);
        if !aligned {
            return Err(range);
        }
        self.walk(offset, BYTES, |place, part| if part.len() == BYTES { visit(place) } else { Err(range) })
    }

    fn allows(&self, access: Access) -> Result<(), DmaError> {
        if self.held.is_revoked() {
            return Err(DmaError::Disconnected);
        }
        let allowed = self.access.bits() & access.bits() == access.bits();
        if allowed { Ok(()) } else { Err(DmaError::Protected { iova: self.iova }) }
    }

    fn remote(&self) -> Result<&dyn Remote, DmaError> {
        self.remote.as_deref().ok_or(DmaError::Disconnected)
    }

    /// Visits the places of `len` bytes from `offset` on, each with the part of those bytes that is there.
    fn walk(
        &self,
        offset: u64,
        len: usize,
        mut visit: impl FnMut(Place<'_>, Range<usize>) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let bytes = len as u64;
        if offset > self.bytes() || bytes > self.bytes() - offset {
            return Err(DmaError::Range { offset, bytes });
        }
        let mut done = 0;
        let mut start = 0;
        for stretch in self.held.user_segments() {
            if done == len {
                break;
            }
            let (UserSegment::Local { bytes, .. } | UserSegment::Remote { bytes, .. }) = stretch else {
                break;
            };
            let at = offset + done as u64;
            let end = start + bytes;
            if at < end {
                let skip = at - start;
                // No more than `len`, so it fits.
                let part = done..done + (end - at).min((len - done) as u64) as usize;
                done = part.end;
                visit(self.place(stretch, skip)?, part)?;
            }
            start = end;
        }
        Ok(())
    }

    /// Where the byte at `skip` of a stretch is.
    fn place<'a>(&self, stretch: UserSegment<'a>, skip: u64) -> Result<Place<'a>, DmaError> {
        let place = match stretch {
            UserSegment::Local { ua, owner: Some(owner), .. } => {
                owner.downcast_ref::<SharedMemory>().and_then(|memory| {
                    let offset = ua.offset_from(memory.ua())? + skip;
                    Some(Place::Local { memory, offset })
                })
            }
            UserSegment::Remote { iova, .. } => iova.checked_add(skip).map(|iova| Place::Remote { iova }),
            _ => None,
        };
        // All memory that is mapped for a client came from a file, with this for an owner.
        place.ok_or(DmaError::Memory { iova: self.iova, errno: Errno::EIO })
    }

    #[cold]
    fn failed(&self, error: SharedError) -> DmaError {
        match error {
            SharedError::Gone => DmaError::Gone { iova: self.iova },
            SharedError::OutOfBounds { offset, len, .. } => DmaError::Range { offset, bytes: len },
            other => DmaError::Memory { iova: self.iova, errno: other.errno() },
        }
    }
}

impl fmt::Debug for Dma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dma").field("map", &self.bus.map).finish_non_exhaustive()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("iova", &self.iova)
            .field("bytes", &self.bytes())
            .field("access", &self.access)
            .field("local", &self.is_local())
            .finish_non_exhaustive()
    }
}
