//! A device's access to its client's memory.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::{Access, Errno, HostAddr, Iova, UserAddr};
use prereg_iommu::iova::{HeldRange, HostSegment, IovaAccessError, IovaMap, UserSegment};
use prereg_linux::{SharedError, SharedMemory};

use super::error::DmaError;
use super::remote::Remote;

/// A client's memory, for its device. Clones share it; any thread may use it.
#[derive(Clone)]
pub struct Dma {
    link: Arc<DmaLink>,
}

/// The state shared by a client and its device.
pub(super) struct DmaLink {
    pub(super) map: Arc<IovaMap>,
    pub(super) remote: Arc<dyn Remote>,
    /// False after the client's disconnect.
    connected: AtomicBool,
}

impl DmaLink {
    pub(super) fn new(map: Arc<IovaMap>, remote: Arc<dyn Remote>) -> Self {
        Self { map, remote, connected: AtomicBool::new(true) }
    }

    pub(super) fn is_connected(&self) -> bool {
        // Acquire pairs with the Release in `disconnect`. An access that reads true late finds nothing mapped, or is waited for
        // by the unmap.
        self.connected.load(Ordering::Acquire)
    }

    /// Makes new accesses fail.
    pub(super) fn disconnect(&self) {
        // Release pairs with the Acquire in `is_connected`.
        self.connected.store(false, Ordering::Release);
    }
}

impl Dma {
    pub(super) fn new(link: Arc<DmaLink>) -> Self {
        Self { link }
    }

    /// Holds `[iova, iova + bytes)`, which may span adjacent mappings, for `access`.
    ///
    /// Memory that is registered at first use is pinned here, which may take long.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is held then.
    pub fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<DmaGuard, DmaError> {
        if !self.link.is_connected() {
            return Err(DmaError::Disconnected);
        }
        match self.link.map.hold(iova, bytes, access) {
            Ok(held) => {
                let remote = (!held.is_local()).then(|| Arc::clone(&self.link.remote));
                Ok(DmaGuard { held, remote, iova, access })
            }
            Err(error) => Err(self.refused(error)),
        }
    }

    #[cold]
    fn refused(&self, error: IovaAccessError) -> DmaError {
        // The unmap may be due to the disconnect.
        if self.link.is_connected() { error.into() } else { DmaError::Disconnected }
    }

    /// Copies from `iova` into `into`.
    ///
    /// # Errors
    /// [`DmaError`]; `into` must not be used then.
    pub fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        self.hold(iova, into.len() as u64, Access::Read)?.read(0, into)
    }

    /// Copies `from` to `iova`.
    ///
    /// # Errors
    /// [`DmaError`]; a part may have been written, except for errors of mapping or permission.
    pub fn write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        self.hold(iova, from.len() as u64, Access::Write)?.write(0, from)
    }

    /// Loads an aligned little-endian number, with acquire ordering towards the client's writes.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn load_u32(&self, iova: Iova) -> Result<u32, DmaError> {
        self.hold(iova, 4, Access::Read)?.load_u32(0)
    }

    /// Stores an aligned little-endian number, with release ordering towards the client's reads.
    ///
    /// # Errors
    /// [`DmaError`].
    pub fn store_u32(&self, iova: Iova, value: u32) -> Result<(), DmaError> {
        self.hold(iova, 4, Access::Write)?.store_u32(0, value)
    }
}

/// Memory held for an access: pinned at its addresses, with the reply to its unmap delayed, until this is dropped on any
/// thread. After [`Server::cut_off`](super::super::Server::cut_off) copies and numbers fail with [`DmaError::Disconnected`].
#[must_use = "the memory is held only while this lives"]
pub struct DmaGuard {
    held: HeldRange,
    /// Set if some of it is remote.
    remote: Option<Arc<dyn Remote>>,
    iova: Iova,
    access: Access,
}

/// A part of a guard that is contiguous for the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DmaSegment {
    /// The registered address: for I/O with fixed buffers, never for copies by a processor, including the kernel's.
    pub ua: UserAddr,
    /// The address for a device.
    pub host: HostAddr,
    /// The length.
    pub bytes: u64,
    /// An address of the memory for system calls that copy, which fail with EFAULT if the client truncated it. Never to be
    /// dereferenced: [`DmaGuard::read`] and the other methods do that safely.
    pub copy: UserAddr,
}

/// The location of a part of a guard.
enum Location<'a> {
    Local { memory: &'a SharedMemory, offset: u64 },
    Remote { iova: Iova },
}

impl DmaGuard {
    /// The parts in order, each contiguous for the device; remote memory has none.
    pub fn pieces(&self) -> impl Iterator<Item = DmaSegment> + '_ {
        self.held.host_segments_with_owners().filter_map(|(piece, owner)| {
            let HostSegment::Local { ua, host, bytes } = piece else { return None };
            let memory = owner?.downcast_ref::<SharedMemory>()?;
            let copy = memory.copy_ua().checked_add(ua.offset_from(memory.ua())?)?;
            Some(DmaSegment { ua, host, bytes, copy })
        })
    }

    /// The start.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.iova
    }

    /// The length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.bytes()
    }

    /// The access it was held for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether all of it is local memory with [`pieces`](Self::pieces); otherwise it must be copied.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.remote.is_none()
    }

    /// Copies from `offset` into `into`. Remote memory takes a message to the client and its reply.
    ///
    /// # Errors
    /// [`DmaError`]; `into` must not be used then.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DmaError> {
        self.allows(Access::Read)?;
        self.walk(offset, into.len(), |place, part| {
            let into = &mut into[part];
            match place {
                Location::Local { memory, offset } => {
                    memory.read(offset, into).map_err(|error| self.failed(error))
                }
                Location::Remote { iova } => Ok(self.remote()?.read(iova, into)?),
            }
        })
    }

    /// Copies `from` to `offset`.
    ///
    /// # Errors
    /// [`DmaError`]; a part may have been written.
    pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), DmaError> {
        self.allows(Access::Write)?;
        self.walk(offset, from.len(), |place, part| {
            let from = &from[part];
            match place {
                Location::Local { memory, offset } => {
                    memory.write(offset, from).map_err(|error| self.failed(error))
                }
                Location::Remote { iova } => Ok(self.remote()?.write(iova, from)?),
            }
        })
    }

    /// Loads an aligned little-endian number, with acquire ordering towards the client's writes.
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] if it is misaligned.
    pub fn load_u32(&self, offset: u64) -> Result<u32, DmaError> {
        let mut value = 0;
        self.number::<4>(Access::Read, offset, |place| {
            value = match place {
                Location::Local { memory, offset } => {
                    memory.load_u32(offset).map_err(|error| self.failed(error))?
                }
                Location::Remote { iova } => u32::from_le_bytes(self.fetch(iova)?),
            };
            Ok(())
        })?;
        Ok(value)
    }

    /// Stores an aligned little-endian number, with release ordering; at once in memory that is sealed against shrinking, see
    /// [`SharedMemory::store_u32`] for the rest.
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] if it is misaligned.
    pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), DmaError> {
        self.number::<4>(Access::Write, offset, |place| match place {
            Location::Local { memory, offset } => {
                memory.store_u32(offset, value).map_err(|error| self.failed(error))
            }
            Location::Remote { iova } => Ok(self.remote()?.write(iova, &value.to_le_bytes())?),
        })
    }

    /// Loads an aligned little-endian number (acquire).
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] if it is misaligned.
    pub fn load_u64(&self, offset: u64) -> Result<u64, DmaError> {
        let mut value = 0;
        self.number::<8>(Access::Read, offset, |place| {
            value = match place {
                Location::Local { memory, offset } => {
                    memory.load_u64(offset).map_err(|error| self.failed(error))?
                }
                Location::Remote { iova } => u64::from_le_bytes(self.fetch(iova)?),
            };
            Ok(())
        })?;
        Ok(value)
    }

    /// Stores an aligned little-endian number (release), for a flag in the same eight bytes as its data, like the second half
    /// of a completion queue entry.
    ///
    /// # Errors
    /// [`DmaError`]; [`DmaError::Range`] if it is misaligned.
    pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), DmaError> {
        self.number::<8>(Access::Write, offset, |place| match place {
            Location::Local { memory, offset } => {
                memory.store_u64(offset, value).map_err(|error| self.failed(error))
            }
            Location::Remote { iova } => Ok(self.remote()?.write(iova, &value.to_le_bytes())?),
        })
    }

    fn fetch<const BYTES: usize>(&self, iova: Iova) -> Result<[u8; BYTES], DmaError> {
        let mut bytes = [0; BYTES];
        self.remote()?.read(iova, &mut bytes)?;
        Ok(bytes)
    }

    /// Visits the location of an aligned number.
    fn number<const BYTES: usize>(
        &self,
        access: Access,
        offset: u64,
        mut visit: impl FnMut(Location<'_>) -> Result<(), DmaError>,
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

    /// Visits the locations of `len` bytes at `offset`, each with its part of those bytes.
    fn walk(
        &self,
        offset: u64,
        len: usize,
        mut visit: impl FnMut(Location<'_>, Range<usize>) -> Result<(), DmaError>,
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
                // At most `len`, so it fits.
                let part = done..done + (end - at).min((len - done) as u64) as usize;
                done = part.end;
                visit(self.place(stretch, skip)?, part)?;
            }
            start = end;
        }
        Ok(())
    }

    /// The location of byte `skip` of a segment.
    fn place<'a>(&self, stretch: UserSegment<'a>, skip: u64) -> Result<Location<'a>, DmaError> {
        let place = match stretch {
            UserSegment::Local { ua, owner: Some(owner), .. } => {
                owner.downcast_ref::<SharedMemory>().and_then(|memory| {
                    let offset = ua.offset_from(memory.ua())? + skip;
                    Some(Location::Local { memory, offset })
                })
            }
            UserSegment::Remote { iova, .. } => iova.checked_add(skip).map(|iova| Location::Remote { iova }),
            _ => None,
        };
        // Every mapped segment of a client has its file's memory as owner.
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
        f.debug_struct("Dma").field("map", &self.link.map).finish_non_exhaustive()
    }
}

impl fmt::Debug for DmaGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaGuard")
            .field("iova", &self.iova)
            .field("bytes", &self.bytes())
            .field("access", &self.access)
            .field("local", &self.is_local())
            .finish_non_exhaustive()
    }
}
