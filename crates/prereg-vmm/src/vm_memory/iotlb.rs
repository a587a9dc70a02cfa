//! An `Iommu` for an `IommuMemory` with the semantics of an IOTLB, for vhost IOTLB messages and the like.
//!
//! Behaves as `vm_memory::Iotlb`, byte for byte: an update replaces what was mapped there, an invalidation cuts what reaches
//! out of it and never fails, and a target may be anything, a hole or a device's memory too. What it adds: a translation is
//! a counted use of the RAM it leads to, so that RAM cannot be unplugged under it; and an invalidation reports when the
//! translations that were made before it are gone. From the moment it returns, none is made again.
//!
//! A mapping by itself holds no RAM: it is a cache entry, and what it leads to is looked up at each translation. RAM that is
//! plugged in later is held from then on, RAM that is unplugged is not translated to any more.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use prereg::{
    AddressSpace, DrainResult, Errno, Holder, Iova, LeaveResult, OutOfMemory, RangeMapping, RundownRef,
    Translator,
};
use prereg_iommu::iova::OnDrained;
use vm_memory::iommu::{Error, IotlbIterator, IovaRange};
use vm_memory::{GuestAddress, Iommu, Iotlb, Permissions};

use super::iommu::{NoCallback, enter};
use super::ram::RegisteredRam;

/// An I/O virtual address space that is updated and invalidated as an IOTLB is, over a guest's registered memory.
pub struct PinnedIotlb {
    table: RwLock<Table>,
    limit: usize,
    ram: Arc<RegisteredRam>,
    translator: Mutex<Translator>,
    drained: Arc<dyn OnDrained>,
}

#[derive(Default)]
struct Table {
    /// By first address. They never overlap.
    entries: BTreeMap<u64, Entry>,
    /// The uses of entries that are gone while translations through them are in use, with the addresses of the entry.
    closing: Vec<(u64, u64, Arc<Uses>)>,
}

struct Entry {
    last: u64,
    gpa: u64,
    access: Permissions,
    uses: Arc<Uses>,
}

/// The translations that were made through an entry.
struct Uses {
    rundown: RundownRef,
    /// The entry is gone, and so are they.
    done: AtomicBool,
    drained: Arc<dyn OnDrained>,
}

/// Errors of an update. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IotlbUpdateError {
    /// Zero bytes, or addresses past 2^64. EINVAL.
    #[error("{bytes:#x} bytes from {iova} to guest address {gpa:#x} are none, or pass 2^64")]
    Range {
        /// The start asked for.
        iova: Iova,
        /// The length asked for.
        bytes: u64,
        /// The target asked for.
        gpa: u64,
    },
    /// Too many entries. ENOSPC.
    #[error("there would be more than {limit} entries; invalidate some, or use larger ranges")]
    Limit {
        /// How many there may be.
        limit: usize,
    },
}

prereg::debug_as_display!(IotlbUpdateError);

impl IotlbUpdateError {
    /// EINVAL or ENOSPC.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } => Errno::EINVAL,
            Self::Limit { .. } => Errno::ENOSPC,
        }
    }
}

/// An invalidation that took effect, and the translations made before it that are still in use. Dropping it changes nothing.
#[derive(Default)]
pub struct Invalidation {
    waiting: Vec<Arc<Uses>>,
}

/// A translation: the addresses, and the memory held at them.
pub struct IotlbTranslation {
    iotlb: Iotlb,
    /// Dropped before the uses: a use that has left has released its memory.
    units: Vec<RangeMapping>,
    uses: Vec<Use>,
}

/// A translation's use of an entry.
struct Use(Arc<Uses>);

impl Drop for Use {
    fn drop(&mut self) {
        // A leave without an enter cannot be: only `Uses::enter` makes this.
        if self.0.rundown.leave() == Ok(LeaveResult::Last) {
            // Release pairs with `is_done`: the memory was used before.
            self.0.done.store(true, Ordering::Release);
            self.0.drained.on_drained();
        }
    }
}

impl Uses {
    fn enter(self: &Arc<Self>) -> Option<Use> {
        self.rundown.enter().ok().map(|()| Use(Arc::clone(self)))
    }

    fn is_done(&self) -> bool {
        // Acquire pairs with the Release in `Use::drop`.
        self.done.load(Ordering::Acquire)
    }
}

impl Invalidation {
    /// Whether no translation made before reaches the invalidated addresses any more, the ones of earlier mappings included.
    /// One that was made through an entry counts for all addresses of that.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.waiting.iter().all(|uses| uses.is_done())
    }

    /// How many such translations are in use.
    #[must_use]
    pub fn in_use(&self) -> u64 {
        self.waiting.iter().map(|uses| uses.rundown.count()).sum()
    }
}

impl PinnedIotlb {
    /// How many entries there may be, unless chosen: as many as a VFIO container has mappings.
    pub const DEFAULT_LIMIT: usize = 65_535;

    /// Nothing is mapped. Translations are reported as held by `holder` when memory is to be unplugged.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(space: &AddressSpace, ram: Arc<RegisteredRam>, holder: Holder) -> Result<Self, OutOfMemory> {
        Self::with_drained(space, ram, holder, Self::DEFAULT_LIMIT, Arc::new(NoCallback))
    }

    /// Like [`new`](Self::new), with a limit of entries and a callback for when the last translation through an invalidated
    /// entry has gone: time to look at [`Invalidation::is_done`].
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn with_drained(
        space: &AddressSpace,
        ram: Arc<RegisteredRam>,
        holder: Holder,
        limit: usize,
        drained: Arc<dyn OnDrained>,
    ) -> Result<Self, OutOfMemory> {
        let translator = Mutex::new(space.try_translator(holder)?);
        Ok(Self { table: RwLock::default(), limit, ram, translator, drained })
    }

    /// Maps `bytes` bytes at `iova` to the guest addresses from `to` on, instead of what was mapped there: a
    /// VHOST_IOTLB_UPDATE. Any alignment; the target need not be RAM. Repeating an update changes nothing. An entry that the
    /// range cuts in two counts twice from then on.
    ///
    /// # Errors
    /// [`IotlbUpdateError`].
    pub fn update(
        &self,
        iova: GuestAddress,
        bytes: u64,
        to: GuestAddress,
        access: Permissions,
    ) -> Result<Invalidation, IotlbUpdateError> {
        let range = || IotlbUpdateError::Range { iova: Iova::new(iova.0), bytes, gpa: to.0 };
        let more = bytes.checked_sub(1).ok_or_else(range)?;
        let last = iova.0.checked_add(more).ok_or_else(range)?;
        to.0.checked_add(more).ok_or_else(range)?;
        let mut table = self.write();
        let entries = &table.entries;
        if entries.get(&iova.0).is_some_and(|old| (old.last, old.gpa, old.access) == (last, to.0, access)) {
            return Ok(Invalidation::default());
        }
        if entries_after(entries, iova.0, last) > self.limit {
            return Err(IotlbUpdateError::Limit { limit: self.limit });
        }
        let invalidation = self.cut(&mut table, iova.0, last, usize::MAX);
        table.entries.insert(iova.0, Entry { last, gpa: to.0, access, uses: self.uses() });
        Ok(invalidation)
    }

    /// Unmaps `bytes` bytes at `iova`, whatever is mapped there: a VHOST_IOTLB_INVALIDATE. Entries that reach out of the
    /// range are cut, unless that would pass the limit of entries: then the part behind the range goes too, as from any full
    /// IOTLB. When this returns nothing in the range is translated; the [`Invalidation`] reports when the translations made
    /// before are gone.
    #[must_use = "translations made before may be in use"]
    pub fn invalidate(&self, iova: GuestAddress, bytes: u64) -> Invalidation {
        let Some(more) = bytes.checked_sub(1) else { return Invalidation::default() };
        // There is nothing past 2^64.
        self.cut(&mut self.write(), iova.0, iova.0.saturating_add(more), self.limit)
    }

    /// Unmaps everything.
    #[must_use = "translations made before may be in use"]
    pub fn invalidate_all(&self) -> Invalidation {
        self.cut(&mut self.write(), 0, u64::MAX, self.limit)
    }

    /// The guest's memory, to plug memory in and out.
    #[must_use]
    pub fn ram(&self) -> &Arc<RegisteredRam> {
        &self.ram
    }

    /// How many entries there are.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.read().entries.len()
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    // Nothing that changes the table can panic half way.
    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn uses(&self) -> Arc<Uses> {
        Arc::new(Uses {
            rundown: RundownRef::new(),
            done: AtomicBool::new(false),
            drained: Arc::clone(&self.drained),
        })
    }

    /// Takes everything in `[first, last]` out; what reaches out of it becomes entries of its own, behind it as long as there
    /// are fewer than `limit`.
    fn cut(&self, table: &mut Table, first: u64, last: u64, limit: usize) -> Invalidation {
        let Table { entries, closing } = table;
        let before = entries.range(..first).next_back().filter(|(_, entry)| entry.last >= first);
        let from = before.map_or(first, |(&start, _)| start);
        let keys: Vec<u64> = entries.range(from..=last).map(|(&start, _)| start).collect();
        closing.retain(|(_, _, uses)| !uses.is_done());
        for start in keys {
            let Some(entry) = entries.remove(&start) else { continue };
            let part = |gpa, last| Entry { last, gpa, access: entry.access, uses: self.uses() };
            if start < first {
                entries.insert(start, part(entry.gpa, first - 1));
            }
            if entry.last > last && entries.len() < limit {
                entries.insert(last + 1, part(entry.gpa + (last + 1 - start), entry.last));
            }
            if let DrainResult::Waiting(_) = entry.uses.rundown.close_and_drain() {
                closing.push((start, entry.last, entry.uses));
            }
        }
        let meets = |&&(start, end, _): &&(u64, u64, Arc<Uses>)| start <= last && end >= first;
        let waiting = closing.iter().filter(meets).map(|(_, _, uses)| Arc::clone(uses)).collect();
        Invalidation { waiting }
    }

    /// Enters the translation of `[iova, iova + bytes)` into `translation` and holds the RAM that it leads to.
    fn fill(
        &self,
        translation: &mut IotlbTranslation,
        iova: u64,
        bytes: u64,
        access: Permissions,
    ) -> Result<(), String> {
        let mut targets = Vec::new();
        let table = self.read();
        let (mut at, mut left) = (iova, bytes);
        while left > 0 {
            let (start, entry) = match table.entries.range(..=at).next_back() {
                Some((start, entry)) if entry.last >= at => (*start, entry),
                _ => return Err(format!("nothing is mapped at {at:#x}")),
            };
            if !entry.access.allow(access) {
                return Err(format!("the mapping at {at:#x} does not allow {access:?}"));
            }
            // An entry's gate is closed only when it is taken out, which waits for this lock.
            translation.uses.extend(entry.uses.enter());
            let length = left.min((entry.last - at).saturating_add(1));
            targets.push((at, GuestAddress(entry.gpa + (at - start)), length));
            // Past the last address only when nothing is left.
            (at, left) = (at.wrapping_add(length), left - length);
        }
        drop(table);
        for (iova, gpa, bytes) in targets {
            enter(&mut translation.iotlb, iova, gpa, bytes, access)?;
            let mut translator = self.translator.lock().unwrap_or_else(PoisonError::into_inner);
            for (bytes, ua) in self.ram.parts(gpa, bytes) {
                let Some(ua) = ua else { continue };
                translation.units.push(translator.map_range(ua, bytes).map_err(|error| error.to_string())?);
            }
        }
        Ok(())
    }
}

/// How many entries there are once `[first, last]` is an entry of its own: those inside it go, and what one has behind it
/// becomes another.
fn entries_after(entries: &BTreeMap<u64, Entry>, first: u64, last: u64) -> usize {
    let inside = entries.range(first..=last).count();
    let cut_behind = entries.range(..=last).next_back().is_some_and(|(_, entry)| entry.last > last);
    entries.len() - inside + usize::from(cut_behind) + 1
}

impl Iommu for PinnedIotlb {
    type IotlbGuard<'a> = IotlbTranslation;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<IotlbTranslation>, Error> {
        let refused = |reason: String| {
            let iova_range = IovaRange { base: iova, length };
            Error::CannotResolve { iova_range, reason }
        };
        if iova.0.checked_add(length as u64).is_none() {
            // An `Iotlb` cannot name the last byte of all.
            return Err(refused("the range reaches 2^64".to_owned()));
        }
        let mut translation = IotlbTranslation { iotlb: Iotlb::new(), units: Vec::new(), uses: Vec::new() };
        self.fill(&mut translation, iova.0, length as u64, access).map_err(refused)?;
        Iotlb::lookup(translation, iova, length, access)
            .map_err(|_| refused("a translation has a hole".to_owned()))
    }
}

impl Deref for IotlbTranslation {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.iotlb
    }
}

impl fmt::Debug for PinnedIotlb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedIotlb")
            .field("entries", &self.entries())
            .field("ram", &self.ram)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for IotlbTranslation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IotlbTranslation").field("iotlb", &self.iotlb).finish_non_exhaustive()
    }
}

impl fmt::Debug for Invalidation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invalidation").field("in_use", &self.in_use()).finish()
    }
}
