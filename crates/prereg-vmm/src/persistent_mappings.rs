//! Mappings that outlast devices: each holds its memory pinned from the map to the unmap, whatever devices come and go.
//!
//! A VFIO type1 or SPAPR container loses every mapping when its last device leaves, and a VMM that maps its guest's memory
//! once then has a container without memory when the next device comes. Here the mappings are remembered with the pins they
//! hold, and made again.
//!
//! The container's state is not guessed. While no device is counted it is *dormant*: maps are only remembered, unmaps ask the
//! container, and the next device gets every mapping again, where EEXIST says that the container had kept one. A device is
//! counted after it was opened and counted off before it is closed, so a container with a counted device is never dormant,
//! and no order of attaching and leaving threads leaves a device without mappings.
//!
//! Memory that is registered already is only counted. Memory that is not is registered by its first mapping and unregistered
//! after its last, of whichever `PersistentMappings` of the address space they are.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, AddressSpace, Errno, Holder, Iova, OutOfMemory, RegisterError, Translator, UserAddr};

use crate::container::DmaContainer;
use crate::dma_mapping::{DmaMapping, MappedMemory, MemoryKind};
use crate::error::DmaMapError;
use crate::mapping_table::{Entry, MappingTable};
use crate::pins::Pins;

/// The mappings of a device address space, as plain data.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct MappingsState {
    /// By ascending address.
    pub mappings: Vec<DmaMapping>,
    /// Devices that are counted.
    pub devices: u64,
    /// Whether the last device has left a container that may have lost the mappings.
    pub dormant: bool,
}

/// How often a map is tried while other threads unregister the memory between the registration and the count.
const TRIES: u32 = 100;

/// The mappings of one device address space, and the pins they hold.
pub struct PersistentMappings {
    space: Arc<AddressSpace>,
    container: Arc<dyn DmaContainer>,
    holder: Holder,
    table: Mutex<Table>,
}

struct Table {
    mappings: MappingTable,
    translator: Translator,
    devices: u64,
    dormant: bool,
}

impl PersistentMappings {
    /// No mappings. `holder` is reported as their holder when an unregister is refused.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: Arc<AddressSpace>,
        container: Arc<dyn DmaContainer>,
        holder: Holder,
    ) -> Result<Self, OutOfMemory> {
        let translator = space.try_translator(holder)?;
        let table = Table { mappings: MappingTable::default(), translator, devices: 0, dormant: false };
        Ok(Self { space, container, holder, table: Mutex::new(table) })
    }

    /// The address space in which the memory is registered.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is changed only after the calls that could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `bytes` bytes of memory at `ua` to `iova`. The memory is pinned from here to the unmap, if it is of a `kind` that
    /// is; it may lie in several registered regions, with gaps between them.
    ///
    /// # Errors
    /// [`DmaMapError`]; nothing is mapped, pinned or remembered then. ENXIO for memory whose last registration the VMM dropped while
    /// it was mapped: such a region takes no new mappings until the old ones are unmapped.
    ///
    /// # Safety
    /// Until [`unmap`](Self::unmap) of it has succeeded, the memory stays mapped and the same memory, and no Rust reference
    /// into it exists.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    pub unsafe fn map(
        &self,
        iova: Iova,
        ua: UserAddr,
        bytes: u64,
        access: Access,
        kind: MemoryKind,
    ) -> Result<(), DmaMapError> {
        let last = last_of(iova, bytes)?;
        let memory = MappedMemory::Address(ua);
        let mapping = DmaMapping { iova, bytes, memory, access, pinned: kind != MemoryKind::Device };
        let mut table = self.table();
        table.mappings.admits(iova.raw(), last)?;
        let pins = match kind {
            MemoryKind::Device => Some(Pins::None),
            MemoryKind::Ram | MemoryKind::Unknown => Pins::one(&mut table.translator, ua, bytes),
        };
        if let Some(pins) = pins {
            return self.enter(Entry { mapping, kind, file: None, pins }, table, None);
        }
        drop(table);
        let skip = kind == MemoryKind::Unknown || !access.writes();
        let mut tries = 0..TRIES;
        loop {
            // Without the lock: pinning takes long.
            let (pins, unpinned) = Pins::register(&self.space, self.holder, ua, bytes, skip)?;
            let mapping = DmaMapping { pinned: unpinned.is_none(), ..mapping };
            // Declared before the lock is taken, and so dropped after it.
            let mut entry = Entry { mapping, kind, file: None, pins };
            let mut table = self.table();
            table.mappings.admits(iova.raw(), last)?;
            match entry.pins.count(&mut table.translator) {
                Ok(()) => return self.enter(entry, table, unpinned),
                Err(_) if tries.next().is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Maps `bytes` bytes of `file` from `offset` on to `iova`, in a container that can map files. The container keeps the
    /// memory pinned, as iommufd does; the address space does not know of it.
    ///
    /// # Errors
    /// [`DmaMapError`]; nothing is mapped or remembered then.
    ///
    /// # Safety
    /// No Rust reference into that memory exists, through whatever mapping of the file, until [`unmap`](Self::unmap) of it
    /// has succeeded.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    pub unsafe fn map_file(
        &self,
        iova: Iova,
        file: BorrowedFd<'_>,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<(), DmaMapError> {
        let last = last_of(iova, bytes)?;
        let descriptor = |error: std::io::Error| DmaMapError::Descriptor {
            errno: error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        };
        let file = Some(file.try_clone_to_owned().map_err(descriptor)?);
        let mapping =
            DmaMapping { iova, bytes, memory: MappedMemory::File { offset }, access, pinned: false };
        // Declared before the lock is taken, and so dropped after it.
        let entry = Entry { mapping, kind: MemoryKind::Ram, file, pins: Pins::None };
        let table = self.table();
        table.mappings.admits(iova.raw(), last)?;
        self.enter(entry, table, None)
    }

    /// Makes a mapping and remembers it. `unpinned` is why some of its memory could not be pinned.
    #[inline]
    fn enter(
        &self,
        mut entry: Entry,
        mut table: MutexGuard<'_, Table>,
        unpinned: Option<RegisterError>,
    ) -> Result<(), DmaMapError> {
        let made = if table.dormant { Ok(()) } else { self.make(&mut entry) };
        if let Err(errno) = made {
            // The entry goes after the lock: its pins may be the last that keep memory, whose owner may call in here.
            drop(table);
            return Err(match unpinned {
                // The pin's refusal says more than the container's.
                Some(reason) if errno == Errno::EFAULT => DmaMapError::Register(reason),
                _ => refused("the map", entry.mapping, errno),
            });
        }
        table.mappings.insert(entry);
        Ok(())
    }

    /// Makes a mapping in the container. Unknown memory that the device may not write is mapped for reading.
    #[inline]
    fn make(&self, entry: &mut Entry) -> Result<(), Errno> {
        let result = self.make_as(entry, entry.mapping.access);
        if result == Err(Errno::EFAULT)
            && entry.kind == MemoryKind::Unknown
            && !entry.mapping.pinned
            && entry.mapping.access == Access::ReadWrite
            && self.make_as(entry, Access::Read).is_ok()
        {
            entry.mapping.access = Access::Read;
            return Ok(());
        }
        result
    }

    #[inline]
    fn make_as(&self, entry: &Entry, access: Access) -> Result<(), Errno> {
        let DmaMapping { iova, bytes, memory, .. } = entry.mapping;
        match (memory, &entry.file) {
            // SAFETY: the caller that maps it has promised that for the memory until the unmap.
            #[expect(unsafe_code, reason = "passes on a promise about memory")]
            (MappedMemory::File { offset }, Some(file)) => unsafe {
                self.container.map_file(iova, file.as_fd(), offset, bytes, access)
            },
            // SAFETY: as above.
            #[expect(unsafe_code, reason = "passes on a promise about memory")]
            (MappedMemory::Address(ua), _) => unsafe { self.container.map(iova, ua, bytes, access) },
            (MappedMemory::File { .. }, None) => Err(Errno::EBADF),
        }
    }

    /// Makes a mapping again in a container that may have kept it.
    fn make_again(&self, entry: &mut Entry) -> Result<bool, Errno> {
        match self.make(entry) {
            Ok(()) => Ok(true),
            // All maps of this container are made here and every unmap asks it, so what is there is this mapping.
            Err(Errno::EEXIST) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Removes a mapping from the container.
    fn remove(&self, mapping: DmaMapping, dormant: bool) -> Result<(), Errno> {
        match self.container.unmap(mapping.iova, mapping.bytes) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            // A container without devices has no IOMMU to ask.
            Err(Errno::EINVAL) if dormant => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Unmaps every mapping in `[iova, iova + bytes)`, which may be several, with gaps between them, or none; returns how
    /// many bytes that was. The container is asked for each, with or without devices.
    ///
    /// # Errors
    /// [`DmaMapError::Splits`] for a range that begins or ends inside a mapping, as VFIO type1 v2 and iommufd refuse it;
    /// [`DmaMapError::Container`]. Nothing has changed then, unless a container that refused half way also refused to take
    /// the first half back: those are lost here too.
    pub fn unmap(&self, iova: Iova, bytes: u64) -> Result<u64, DmaMapError> {
        let last = last_of(iova, bytes)?;
        let mut table = self.table();
        let keys = table.mappings.inside(iova, last)?;
        let mut gone = Vec::with_capacity(keys.len());
        let result = self.remove_all(&mut table, &keys, &mut gone).map(|()| {
            gone.extend(keys.iter().filter_map(|key| table.mappings.remove(*key)));
            gone.iter().map(|entry| entry.mapping.bytes).sum()
        });
        // Before the pins, whose release takes long and may call in here.
        drop(table);
        drop(gone);
        result
    }

    /// Removes the mappings of `keys` from the container: all or none. Those that could not be made again go to `lost`.
    fn remove_all(&self, table: &mut Table, keys: &[u64], lost: &mut Vec<Entry>) -> Result<(), DmaMapError> {
        for (at, key) in keys.iter().enumerate() {
            let Some(mapping) = table.mappings.get(*key).map(|entry| entry.mapping) else { continue };
            let Err(errno) = self.remove(mapping, table.dormant) else { continue };
            // Without devices they are made again for the next one.
            for key in keys[..at].iter().filter(|_| !table.dormant) {
                if table.mappings.get_mut(*key).is_some_and(|entry| self.make_again(entry).is_err()) {
                    lost.extend(table.mappings.remove(*key));
                }
            }
            let (DmaMapping { iova, bytes, .. }, lost) = (mapping, lost.len() as u64);
            return Err(DmaMapError::Container { during: "the unmap", iova, bytes, errno, lost });
        }
        Ok(())
    }

    /// Counts a device that was opened, and makes the mappings again if the container may have lost them.
    /// [`attach`](Self::attach) does this.
    ///
    /// # Errors
    /// [`DmaMapError::Container`]; the device is not counted then: close it.
    pub fn device_arrived(&self) -> Result<(), DmaMapError> {
        let mut table = self.table();
        if table.dormant {
            let mut made = Vec::new();
            let all: Vec<DmaMapping> = table.mappings.mappings().collect();
            for mapping in all {
                let Some(entry) = table.mappings.get_mut(mapping.iova.raw()) else { continue };
                match self.make_again(entry) {
                    Ok(true) => made.push(mapping),
                    Ok(false) => {}
                    Err(errno) => {
                        // A refusal does no harm: the pins stay, and the next device finds it kept.
                        for mapping in made {
                            let _ = self.remove(mapping, true);
                        }
                        return Err(refused("mapping again", mapping, errno));
                    }
                }
            }
            table.dormant = false;
        }
        table.devices += 1;
        Ok(())
    }

    /// Counts a device off that is about to be closed. Dropping [`Attached`](crate::Attached) does this.
    pub fn device_leaving(&self) {
        let mut table = self.table();
        table.devices = table.devices.saturating_sub(1);
        if table.devices == 0 && self.container.forgets() {
            table.dormant = true;
        }
    }

    /// The mappings and devices, as plain data.
    #[must_use]
    pub fn snapshot(&self) -> MappingsState {
        let table = self.table();
        MappingsState {
            mappings: table.mappings.mappings().collect(),
            devices: table.devices,
            dormant: table.dormant,
        }
    }
}

fn refused(during: &'static str, DmaMapping { iova, bytes, .. }: DmaMapping, errno: Errno) -> DmaMapError {
    DmaMapError::Container { during, iova, bytes, errno, lost: 0 }
}

/// The last address of a range that is not empty and does not pass 2^64.
fn last_of(iova: Iova, bytes: u64) -> Result<u64, DmaMapError> {
    bytes
        .checked_sub(1)
        .and_then(|more| iova.raw().checked_add(more))
        .ok_or(DmaMapError::Range { iova, bytes })
}

impl Drop for PersistentMappings {
    fn drop(&mut self) {
        let table = self.table.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (entries, dormant) = (table.mappings.take(), table.dormant);
        for entry in entries {
            if self.remove(entry.mapping, dormant).is_err() {
                // What a device may still reach stays pinned.
                std::mem::forget(entry);
            }
        }
    }
}

impl fmt::Debug for PersistentMappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table();
        f.debug_struct("PersistentMappings")
            .field("mappings", &table.mappings.len())
            .field("devices", &table.devices)
            .field("dormant", &table.dormant)
            .finish_non_exhaustive()
    }
}
