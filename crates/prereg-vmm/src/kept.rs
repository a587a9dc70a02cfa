//! Mappings that outlast devices: each holds its memory pinned from the map to the unmap, whatever devices come and go.
//!
//! A kernel's type1 container forgets every mapping when its last device leaves, and a VMM that maps its guest's memory
//! once then has a container without memory when the next device comes. Here the mappings are remembered with the pins they
//! hold, and put into the container again.
//!
//! Memory that is registered already is only counted. Memory that is not is registered by its first mapping and given up
//! with its last: after an unmap the VMM may do with it what it likes.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prereg::{
    Access, AddressSpace, Holder, Iova, Memory, OutOfMemory, RangeMapping, Registration, Translator, UserAddr,
};

use crate::container::DmaContainer;
use crate::error::KeptError;

/// What is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum What {
    /// Memory that is pinned.
    Ram,
    /// A device's own memory (a BAR), which nobody pins: passed on to the container as it is.
    Device,
}

/// Whether an unmap may cover addresses that nothing is mapped at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gaps {
    /// It may, and may cover nothing at all.
    Allowed,
    /// It may not.
    Refused,
}

/// A mapping, as it is to be seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeptMapping {
    /// Where the device finds it.
    pub iova: Iova,
    /// How long it is.
    pub bytes: u64,
    /// The memory.
    pub ua: UserAddr,
    /// What the device may do.
    pub access: Access,
    /// What it is.
    pub what: What,
}

/// What is to be seen of the mappings of a device address space.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeptState {
    /// By ascending address.
    pub mappings: Vec<KeptMapping>,
    /// Devices that are counted.
    pub devices: u64,
    /// Whether the container has lost its mappings, so that they are only remembered.
    pub forgotten: bool,
}

/// The mappings of one device address space, and the pins they hold.
pub struct KeptMappings {
    space: Arc<AddressSpace>,
    container: Arc<dyn DmaContainer>,
    holder: Holder,
    books: Mutex<Books>,
}

struct Books {
    /// By first address. They never overlap.
    mappings: BTreeMap<u64, Kept>,
    /// Registrations made for mappings, by first address; alive while one of those mappings is.
    ours: BTreeMap<u64, Weak<Registration>>,
    translator: Translator,
    devices: u64,
    forgotten: bool,
}

/// A mapping. Fields are dropped in this order: the unit before what keeps its region.
struct Kept {
    seen: KeptMapping,
    #[expect(dead_code, reason = "held until the unmap")]
    unit: Option<RangeMapping>,
    #[expect(dead_code, reason = "held until the unmap")]
    registration: Option<Arc<Registration>>,
}

/// A caller's range of memory.
struct CallersMemory {
    ua: UserAddr,
    bytes: u64,
}

#[expect(unsafe_code, reason = "the promise can only be made by whoever maps it")]
// SAFETY: the promise is the one that `KeptMappings::map` asks for.
unsafe impl Memory for CallersMemory {
    fn ua(&self) -> UserAddr {
        self.ua
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn keep(&self) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
        None
    }
}

impl KeptMappings {
    /// No mappings. `holder` is who they are reported as held by when an unregister is refused.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: Arc<AddressSpace>,
        container: Arc<dyn DmaContainer>,
        holder: Holder,
    ) -> Result<Self, OutOfMemory> {
        let translator = space.try_translator(holder)?;
        let (mappings, ours) = (BTreeMap::new(), BTreeMap::new());
        let books = Books { mappings, ours, translator, devices: 0, forgotten: false };
        Ok(Self { space, container, holder, books: Mutex::new(books) })
    }

    /// Where the memory is registered.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Books are changed only after the calls that could panic.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `bytes` bytes of memory at `ua` to `iova`. The memory is pinned from here to the unmap, all of it in one region:
    /// one that is registered already, or one made for it.
    ///
    /// # Errors
    /// [`KeptError`]; nothing is mapped, pinned or remembered then.
    ///
    /// # Safety
    /// Until [`unmap`](Self::unmap) of it has succeeded, the memory stays mapped and the same memory, and nobody holds a Rust
    /// reference into it.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    pub unsafe fn map(
        &self,
        iova: Iova,
        ua: UserAddr,
        bytes: u64,
        access: Access,
        what: What,
    ) -> Result<(), KeptError> {
        let last = last_of(iova, bytes)?;
        let seen = KeptMapping { iova, bytes, ua, access, what };
        // Dropped after the lock: giving memory up can take long.
        let mut fresh = None;
        let mut books = self.books();
        books.admits(iova.raw(), last)?;
        let mut registration = books.our_region(ua, bytes);
        if what == What::Ram && registration.is_none() && self.space.find(ua, bytes).is_none() {
            drop(books);
            // Without the lock: bringing memory in takes long.
            let made = self.space.register_for(&CallersMemory { ua, bytes }, self.holder)?;
            fresh = Some(Arc::new(made));
            registration.clone_from(&fresh);
            books = self.books();
            books.admits(iova.raw(), last)?;
        }
        let unit = match what {
            What::Ram => Some(books.translator.map_range(ua, bytes)?),
            What::Device => None,
        };
        if !books.forgotten {
            // SAFETY: the caller's promise; the unit keeps it pinned until after the unmap.
            unsafe { self.container.map(iova, ua, bytes, access) }.map_err(|errno| KeptError::Container {
                during: "the map",
                iova,
                bytes,
                errno,
                lost: 0,
            })?;
        }
        if let Some(fresh) = &fresh {
            books.ours.insert(fresh.ua().raw(), Arc::downgrade(fresh));
        }
        books.mappings.insert(iova.raw(), Kept { seen, unit, registration });
        Ok(())
    }

    /// Unmaps every mapping in `[iova, iova + bytes)`; how many bytes that was.
    ///
    /// # Errors
    /// [`KeptError`]. Nothing has changed, but that a container which refused half way, and refused to take the first half
    /// back, has lost some.
    pub fn unmap(&self, iova: Iova, bytes: u64, gaps: Gaps) -> Result<u64, KeptError> {
        let last = last_of(iova, bytes)?;
        let mut books = self.books();
        let keys = books.inside(iova, last)?;
        let mapped = keys.iter().filter_map(|key| books.mappings.get(key)).map(|kept| kept.seen.bytes).sum();
        if gaps == Gaps::Refused && mapped != bytes {
            return Err(KeptError::Gap { iova, bytes, mapped });
        }
        let mut gone = Vec::with_capacity(keys.len());
        let result = if books.forgotten { Ok(()) } else { self.take_out(&mut books, &keys, &mut gone) };
        if result.is_ok() {
            gone.extend(keys.iter().filter_map(|key| books.mappings.remove(key)));
        }
        drop(books);
        // Without the lock: giving memory up takes long.
        drop(gone);
        self.books().ours.retain(|_, registration| registration.strong_count() > 0);
        result.map(|()| mapped)
    }

    /// Takes the mappings of `keys` out of the container: all or none. Those that could not be put back go to `lost`.
    fn take_out(&self, books: &mut Books, keys: &[u64], lost: &mut Vec<Kept>) -> Result<(), KeptError> {
        for (at, key) in keys.iter().enumerate() {
            let Some(KeptMapping { iova, bytes, .. }) = books.mappings.get(key).map(|kept| kept.seen) else {
                continue;
            };
            let Err(errno) = self.container.unmap(iova, bytes) else { continue };
            for key in &keys[..at] {
                if books.mappings.get(key).is_some_and(|kept| self.put_in(kept).is_err()) {
                    lost.extend(books.mappings.remove(key));
                }
            }
            let lost = lost.len() as u64;
            return Err(KeptError::Container { during: "the unmap", iova, bytes, errno, lost });
        }
        Ok(())
    }

    fn put_in(&self, kept: &Kept) -> Result<(), prereg::Errno> {
        let KeptMapping { iova, bytes, ua, access, .. } = kept.seen;
        // SAFETY: whoever mapped it has promised that it stays until the unmap, and the mapping is remembered until then.
        #[expect(unsafe_code, reason = "repeats a map that was promised for")]
        unsafe {
            self.container.map(iova, ua, bytes, access)
        }
    }

    /// A device is in the container from now on. If the container has lost its mappings, puts them in.
    ///
    /// # Errors
    /// [`KeptError::Container`]; the container then has none of them and the device is not counted: close it.
    pub fn device_arrived(&self) -> Result<(), KeptError> {
        let mut books = self.books();
        if books.forgotten {
            for (at, kept) in books.mappings.values().enumerate() {
                let Err(errno) = self.put_in(kept) else { continue };
                for kept in books.mappings.values().take(at) {
                    // A refusal does no harm: the pins stay, and the container goes with the device.
                    let _ = self.container.unmap(kept.seen.iova, kept.seen.bytes);
                }
                let KeptMapping { iova, bytes, .. } = kept.seen;
                let during = "putting back the mapping";
                return Err(KeptError::Container { during, iova, bytes, errno, lost: 0 });
            }
            books.forgotten = false;
        }
        books.devices += 1;
        Ok(())
    }

    /// A device that had arrived is closed. After the last one a container that forgets is taken to be empty.
    pub fn device_left(&self) {
        let mut books = self.books();
        books.devices = books.devices.saturating_sub(1);
        if books.devices == 0 && self.container.forgets() {
            books.forgotten = true;
        }
    }

    /// Everything there is to see.
    #[must_use]
    pub fn snapshot(&self) -> KeptState {
        let books = self.books();
        KeptState {
            mappings: books.mappings.values().map(|kept| kept.seen).collect(),
            devices: books.devices,
            forgotten: books.forgotten,
        }
    }
}

impl Books {
    /// Whether nothing is mapped in `[first, last]`.
    fn admits(&self, first: u64, last: u64) -> Result<(), KeptError> {
        // The last one that begins in the range or before it is the only one that can be in the way.
        match self.mappings.range(..=last).next_back().map(|(_, kept)| kept.seen) {
            Some(seen) if seen.last() >= first => {
                Err(KeptError::Exists { iova: seen.iova, bytes: seen.bytes })
            }
            _ => Ok(()),
        }
    }

    /// The mappings that lie in the range, none of which reaches out of it.
    fn inside(&self, iova: Iova, last: u64) -> Result<Vec<u64>, KeptError> {
        let splits = |seen: KeptMapping| KeptError::Splits { iova: seen.iova, bytes: seen.bytes };
        if let Some((_, kept)) = self.mappings.range(..iova.raw()).next_back() {
            if kept.seen.last() >= iova.raw() {
                return Err(splits(kept.seen));
            }
        }
        let mut keys = Vec::new();
        for (key, kept) in self.mappings.range(iova.raw()..=last) {
            if kept.seen.last() > last {
                return Err(splits(kept.seen));
            }
            keys.push(*key);
        }
        Ok(keys)
    }

    /// The registration made for mappings whose region holds the range.
    fn our_region(&self, ua: UserAddr, bytes: u64) -> Option<Arc<Registration>> {
        let (_, registration) = self.ours.range(..=ua.raw()).next_back()?;
        registration.upgrade().filter(|registration| registration.range().holds(ua, bytes))
    }
}

impl KeptMapping {
    fn last(&self) -> u64 {
        self.iova.raw() + (self.bytes - 1)
    }
}

/// The last address of a range that is not empty and does not pass 2^64.
fn last_of(iova: Iova, bytes: u64) -> Result<u64, KeptError> {
    bytes.checked_sub(1).and_then(|more| iova.raw().checked_add(more)).ok_or(KeptError::Range { iova, bytes })
}

impl Drop for KeptMappings {
    fn drop(&mut self) {
        let books = self.books.get_mut().unwrap_or_else(PoisonError::into_inner);
        let forgotten = books.forgotten;
        for kept in std::mem::take(&mut books.mappings).into_values() {
            if !forgotten && self.container.unmap(kept.seen.iova, kept.seen.bytes).is_err() {
                // What a device may still reach stays pinned.
                std::mem::forget(kept);
            }
        }
    }
}

impl fmt::Debug for KeptMappings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let books = self.books();
        f.debug_struct("KeptMappings")
            .field("mappings", &books.mappings.len())
            .field("devices", &books.devices)
            .field("forgotten", &books.forgotten)
            .finish_non_exhaustive()
    }
}
