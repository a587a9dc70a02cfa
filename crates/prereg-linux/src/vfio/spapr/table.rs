//! The table of a window. Each entry is a counted mapping here and a TCE in the kernel, which are changed together.
//!
//! A new mapping is counted before the system call and an old one released after it, so every address in the kernel's
//! table is counted. A change takes one system call; lookups and translations take none. When the kernel refuses a
//! change, the old entries are restored.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prereg::{Access, BusAddr, Errno, MapError, Mapping, PageShift, Translator, UserAddr};

use super::window::Window;

/// Entries were not changed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpaprTableError {
    /// The entries are not inside the window, or misaligned. EINVAL.
    #[error(
        "{pages} entries from {ioba} do not lie in the window of {bytes:#x} bytes at {start:#x}, or not at the start of its \
         {shift} pages"
    )]
    Outside {
        /// The first entry.
        ioba: BusAddr,
        /// The number of entries.
        pages: u64,
        /// The start of the window.
        start: u64,
        /// The length of the window.
        bytes: u64,
        /// The page size of the window.
        shift: PageShift,
    },
    /// The memory cannot be mapped. The errno of [`MapError`].
    #[error(transparent)]
    Map(#[from] MapError),
    /// No memory for the list of entries. ENOMEM.
    #[error("no memory for {pages} entries")]
    OutOfMemory {
        /// The number of entries.
        pages: u64,
    },
    /// The kernel refused. Its errno, or EINVAL where it returned a positive number.
    #[error(
        "the kernel refused {during} at {ioba} with {errno}{}: a window's pages must not be larger than the pages of the \
         memory (system pages, or those of hugetlb)", lost_text(*.lost)
    )]
    Kernel {
        /// The call.
        during: &'static str,
        /// The first entry.
        ioba: BusAddr,
        /// The kernel's errno.
        errno: Errno,
        /// Entries that were live and could not be restored: they are empty now.
        lost: u64,
    },
}

prereg::debug_as_display!(SpaprTableError);

fn lost_text(lost: u64) -> String {
    if lost == 0 { String::new() } else { format!(" ({lost} entries that were there before are empty now)") }
}

impl SpaprTableError {
    /// EINVAL, ENOMEM, the mapping's or the kernel's, as documented at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Outside { .. } => Errno::EINVAL,
            Self::Map(error) => error.errno(),
            Self::OutOfMemory { .. } => Errno::ENOMEM,
            Self::Kernel { errno, .. } => *errno,
        }
    }
}

/// A live entry.
struct Entry {
    mapping: Mapping,
    access: Access,
}

#[derive(Default)]
struct Entries {
    live: BTreeMap<u64, Entry>,
    /// Mappings of entries that the kernel did not empty: never released.
    unconfirmed: Vec<Mapping>,
}

/// The table of a window. Threads may change it concurrently, each with its own translator; changes are serialised.
///
/// Dropping it empties its entries, and removes the window if it was created for the table.
pub struct SpaprTable {
    entries: Mutex<Entries>,
    window: Window,
}

impl SpaprTable {
    pub(super) fn new(window: Window) -> Self {
        Self { entries: Mutex::default(), window }
    }

    /// The bus address of the first entry.
    #[must_use]
    pub const fn start(&self) -> BusAddr {
        BusAddr::new(self.window.start())
    }

    /// The length of the window in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.window.bytes()
    }

    /// The page size of its entries.
    #[must_use]
    pub const fn shift(&self) -> PageShift {
        self.window.shift()
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self, ioba: BusAddr, pages: u64) -> Result<u64, SpaprTableError> {
        self.window.index(ioba, pages).ok_or(SpaprTableError::Outside {
            ioba,
            pages,
            start: self.window.start(),
            bytes: self.window.bytes(),
            shift: self.window.shift(),
        })
    }

    /// Maps the page at `ua` into the entry at `ioba`, like `H_PUT_TCE`: one system call. The old mapping of the entry
    /// is released.
    ///
    /// # Errors
    /// [`SpaprTableError`]; the entry is unchanged.
    pub fn put(
        &self,
        translator: &mut Translator,
        ioba: BusAddr,
        ua: UserAddr,
        access: Access,
    ) -> Result<(), SpaprTableError> {
        self.put_run(translator, ioba, ua, 1, access)
    }

    /// Maps `pages` consecutive pages from `ua` on into the entries from `ioba` on: one system call, or none for zero
    /// pages.
    ///
    /// # Errors
    /// [`SpaprTableError`]; the entries are unchanged, except those that [`SpaprTableError::Kernel`] counts as lost.
    pub fn put_run(
        &self,
        translator: &mut Translator,
        ioba: BusAddr,
        ua: UserAddr,
        pages: u64,
        access: Access,
    ) -> Result<(), SpaprTableError> {
        if pages == 0 {
            return Ok(());
        }
        let first = self.index(ioba, pages)?;
        let taken = self.map_pages(translator, ua, pages)?;
        let mut entries = self.entries();
        if let Err(errno) = self.window.map(first, pages, ua.raw(), access) {
            let lost = self.restore(&mut entries, first, pages, taken);
            return Err(SpaprTableError::Kernel { during: "VFIO_IOMMU_MAP_DMA", ioba, errno, lost });
        }
        let mut old = Vec::new();
        for (step, mapping) in taken.into_iter().enumerate() {
            old.extend(entries.live.insert(first + step as u64, Entry { mapping, access }));
        }
        drop(entries);
        for entry in old {
            translator.unmap(entry.mapping);
        }
        Ok(())
    }

    /// Maps arbitrary pages into consecutive entries from `ioba` on, like `H_PUT_TCE_INDIRECT`: one system call for
    /// each run of consecutive pages.
    ///
    /// # Errors
    /// [`SpaprTableError`] of the run that was refused, as in [`put_run`](Self::put_run); the runs before it stay
    /// mapped.
    pub fn put_list(
        &self,
        translator: &mut Translator,
        ioba: BusAddr,
        pages: &[UserAddr],
        access: Access,
    ) -> Result<(), SpaprTableError> {
        self.index(ioba, pages.len() as u64)?;
        let size = self.shift().bytes();
        let mut at = ioba;
        for run in pages.chunk_by(|one, next| one.checked_add(size) == Some(*next)) {
            let Some(&first) = run.first() else { continue };
            self.put_run(translator, at, first, run.len() as u64, access)?;
            // Inside the window, which does not wrap; after the last entry the sum is not used.
            at = BusAddr::new(at.raw().wrapping_add(run.len() as u64 * size));
        }
        Ok(())
    }

    /// Counts mappings of `pages` pages from `ua` on, or of none.
    fn map_pages(
        &self,
        translator: &mut Translator,
        ua: UserAddr,
        pages: u64,
    ) -> Result<Vec<Mapping>, SpaprTableError> {
        let shift = self.shift();
        if !ua.is_aligned(shift) {
            return Err(MapError::Misaligned { ua, shift }.into());
        }
        let out_of_memory = SpaprTableError::OutOfMemory { pages };
        let mut taken = Vec::new();
        let room = usize::try_from(pages).map_err(|_| out_of_memory)?;
        taken.try_reserve_exact(room).map_err(|_| out_of_memory)?;
        for step in 0..pages {
            let page = step.checked_mul(shift.bytes()).and_then(|offset| ua.checked_add(offset));
            let mapped = match page {
                Some(page) => translator.map(page, shift),
                None => Err(MapError::Unregistered { ua, shift }),
            };
            match mapped {
                Ok(mapping) => taken.push(mapping),
                Err(error) => {
                    taken.into_iter().for_each(|mapping| translator.unmap(mapping));
                    return Err(error.into());
                }
            }
        }
        Ok(taken)
    }

    /// A refused map may have emptied or written some entries. Empties all of them and maps the old ones again; returns
    /// how many live entries are lost.
    #[cold]
    fn restore(&self, entries: &mut Entries, first: u64, pages: u64, taken: Vec<Mapping>) -> u64 {
        if self.window.unmap(first, pages).is_err() {
            entries.unconfirmed.extend(taken);
            return 0;
        }
        let page = self.shift().bytes();
        let before: Vec<(u64, u64, Access)> = entries
            .live
            .range(first..first + pages)
            .map(|(&index, entry)| (index, entry.mapping.ua().raw(), entry.access))
            .collect();
        let follows = |one: &(u64, u64, Access), next: &(u64, u64, Access)| {
            next.0 == one.0 + 1 && next.1.checked_sub(one.1) == Some(page) && next.2 == one.2
        };
        let mut lost = 0;
        for run in before.chunk_by(follows) {
            let Some(&(index, ua, access)) = run.first() else { continue };
            if self.window.map(index, run.len() as u64, ua, access).is_err() {
                for (index, ..) in run {
                    // The kernel's entry is empty, so nothing names the mapping any more.
                    lost += u64::from(entries.live.remove(index).is_some());
                }
            }
        }
        lost
    }

    /// Empties `pages` entries from `ioba` on, like `H_STUFF_TCE` with zero: one system call, or none if all are empty.
    /// Returns how many were live.
    ///
    /// # Errors
    /// [`SpaprTableError`]; the entries stay counted.
    pub fn stuff(
        &self,
        translator: &mut Translator,
        ioba: BusAddr,
        pages: u64,
    ) -> Result<u64, SpaprTableError> {
        if pages == 0 {
            return Ok(0);
        }
        let first = self.index(ioba, pages)?;
        let mut entries = self.entries();
        let mut live = entries.live.split_off(&first);
        let mut above = live.split_off(&(first + pages));
        if live.is_empty() {
            entries.live.append(&mut above);
            return Ok(0);
        }
        if let Err(errno) = self.window.unmap(first, pages) {
            entries.live.append(&mut live);
            entries.live.append(&mut above);
            return Err(SpaprTableError::Kernel { during: "VFIO_IOMMU_UNMAP_DMA", ioba, errno, lost: 0 });
        }
        entries.live.append(&mut above);
        drop(entries);
        let count = live.len() as u64;
        for entry in live.into_values() {
            translator.unmap(entry.mapping);
        }
        Ok(count)
    }

    /// Empties the entry at `ioba`. Returns whether it was live.
    ///
    /// # Errors
    /// As [`stuff`](Self::stuff).
    pub fn clear(&self, translator: &mut Translator, ioba: BusAddr) -> Result<bool, SpaprTableError> {
        Ok(self.stuff(translator, ioba, 1)? == 1)
    }

    /// The page that the entry at `ioba` maps, and the device's access to it.
    #[must_use]
    pub fn entry(&self, ioba: BusAddr) -> Option<(UserAddr, Access)> {
        let index = self.window.index(ioba, 1)?;
        let entries = self.entries();
        entries.live.get(&index).map(|entry| (entry.mapping.ua(), entry.access))
    }

    /// The number of live entries.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.entries().live.len() as u64
    }
}

impl Drop for SpaprTable {
    fn drop(&mut self) {
        let entries = self.entries.get_mut().unwrap_or_else(PoisonError::into_inner);
        let (Some((&first, _)), Some((&last, _))) =
            (entries.live.first_key_value(), entries.live.last_key_value())
        else {
            std::mem::take(&mut entries.unconfirmed).into_iter().for_each(std::mem::forget);
            return;
        };
        let live = std::mem::take(&mut entries.live).into_values();
        if self.window.unmap(first, last - first + 1).is_ok() {
            drop(live);
        } else {
            // A device may still reach the memory, so its mappings are leaked and it can never be unregistered.
            live.for_each(|entry| std::mem::forget(entry.mapping));
        }
        std::mem::take(&mut entries.unconfirmed).into_iter().for_each(std::mem::forget);
    }
}

impl fmt::Debug for SpaprTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SpaprTable").field("window", &self.window).field("live", &self.live()).finish()
    }
}
