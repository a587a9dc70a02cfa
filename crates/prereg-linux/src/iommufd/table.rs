//! Mappings of registered memory for devices: each is a counted mapping of a region and a copy in the device IOAS.
//!
//! A mapping is counted before it is copied, and released after the copy was removed, so everything that a device
//! reaches is counted.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, Errno, Iova, MapError, RangeMapping, Translator, UserAddr};

use super::ioas::{IoasPair, IommufdLimits};
use crate::vfio::iova::IovaRange;
use crate::vfio::uapi::{IOAS_READABLE, IOAS_WRITEABLE};

/// A range was not mapped or unmapped.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IommufdTableError {
    /// The range is invalid. EINVAL.
    #[error(
        "{bytes:#x} bytes at {iova} cannot be mapped: an I/O range is not empty, does not wrap, and is made of whole \
         {alignment:#x} byte units"
    )]
    Range {
        /// The first byte.
        iova: Iova,
        /// Its length.
        bytes: u64,
        /// The required alignment.
        alignment: u64,
    },
    /// The range intersects a mapping. EEXIST.
    #[error("{bytes:#x} bytes at {iova} intersect an existing mapping; unmap it first")]
    Exists {
        /// The first byte.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// There is no mapping of exactly this range. ENOENT.
    #[error("no mapping is exactly {bytes:#x} bytes at {iova}; unmap whole mappings")]
    Absent {
        /// The first byte.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// The memory cannot be mapped. The errno of [`MapError`].
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel refused. Its errno.
    #[error("the kernel refused {during} at {iova} with {errno}")]
    Kernel {
        /// The call.
        during: &'static str,
        /// The first byte.
        iova: Iova,
        /// The kernel's errno.
        errno: Errno,
    },
}

prereg::debug_as_display!(IommufdTableError);

impl IommufdTableError {
    /// EINVAL, EEXIST, ENOENT, the mapping's or the kernel's, as documented at each kind.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } => Errno::EINVAL,
            Self::Exists { .. } => Errno::EEXIST,
            Self::Absent { .. } => Errno::ENOENT,
            Self::Map(error) => error.errno(),
            Self::Kernel { errno, .. } => *errno,
        }
    }
}

struct Entry {
    bytes: u64,
    /// The ranges copied to the device IOAS.
    pieces: Vec<IovaRange>,
    mapping: RangeMapping,
}

/// Mappings of registered memory for devices. Dropping it unmaps all.
pub struct IommufdTable {
    entries: Mutex<BTreeMap<u64, Entry>>,
    limits: IommufdLimits,
    ioas: Arc<IoasPair>,
}

impl IommufdTable {
    pub(super) fn new(ioas: Arc<IoasPair>, limits: IommufdLimits) -> Self {
        Self { entries: Mutex::default(), limits, ioas }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps `bytes` bytes from `ua` on at `iova` for devices, with one system call per contiguous run of host
    /// addresses. Pins and charges nothing.
    ///
    /// # Errors
    /// [`IommufdTableError`]; nothing is mapped.
    pub fn map(
        &self,
        translator: &mut Translator,
        iova: Iova,
        ua: UserAddr,
        bytes: u64,
        access: Access,
    ) -> Result<(), IommufdTableError> {
        let alignment = self.limits.alignment;
        let end = iova.raw().checked_add(bytes);
        let whole = (iova.raw() | bytes) & (alignment - 1) == 0;
        let Some(end) = end.filter(|_| bytes != 0 && whole) else {
            return Err(IommufdTableError::Range { iova, bytes, alignment });
        };
        let mut entries = self.entries();
        let before = entries.range(..end).next_back();
        if before.is_some_and(|(&first, entry)| first + entry.bytes > iova.raw()) {
            return Err(IommufdTableError::Exists { iova, bytes });
        }
        let mapping = translator.map_range(ua, bytes)?;
        match self.copy_runs(iova, &mapping, access) {
            Ok(pieces) => {
                entries.insert(iova.raw(), Entry { bytes, pieces, mapping });
                Ok(())
            }
            Err(errno) => {
                drop(entries);
                translator.unmap_range(mapping);
                Err(IommufdTableError::Kernel { during: "IOMMU_IOAS_COPY", iova, errno })
            }
        }
    }

    /// Copies every run, or none.
    fn copy_runs(&self, iova: Iova, mapping: &RangeMapping, access: Access) -> Result<Vec<IovaRange>, Errno> {
        let may =
            if access.reads() { IOAS_READABLE } else { 0 } | if access.writes() { IOAS_WRITEABLE } else { 0 };
        let mut pieces = Vec::new();
        let mut at = iova.raw();
        for run in mapping.runs() {
            let piece = IovaRange { iova: at, bytes: run.bytes };
            if let Err(errno) = self.ioas.copy_with_access(run.host.raw(), piece, may) {
                // The kernel has no reason to refuse an exact unmap; if it did, the copy would stay without being
                // counted.
                for piece in pieces {
                    self.ioas.unmap_device(piece);
                }
                return Err(errno);
            }
            pieces.push(piece);
            at = at.wrapping_add(run.bytes);
        }
        Ok(pieces)
    }

    /// Unmaps the whole range that [`map`](Self::map) mapped at `iova`.
    ///
    /// # Errors
    /// [`IommufdTableError::Absent`]; [`IommufdTableError::Kernel`], and then the mapping stays counted.
    pub fn unmap(
        &self,
        translator: &mut Translator,
        iova: Iova,
        bytes: u64,
    ) -> Result<(), IommufdTableError> {
        let mut entries = self.entries();
        let known = entries.get(&iova.raw()).is_some_and(|entry| entry.bytes == bytes);
        let found = if known { entries.remove(&iova.raw()) } else { None };
        let Some(mut entry) = found else {
            return Err(IommufdTableError::Absent { iova, bytes });
        };
        entry.pieces.retain(|&piece| !self.ioas.unmap_device(piece));
        if !entry.pieces.is_empty() {
            entries.insert(iova.raw(), entry);
            return Err(IommufdTableError::Kernel { during: "IOMMU_IOAS_UNMAP", iova, errno: Errno::EIO });
        }
        drop(entries);
        translator.unmap_range(entry.mapping);
        Ok(())
    }

    /// The number of mapped ranges.
    #[must_use]
    pub fn live(&self) -> u64 {
        self.entries().len() as u64
    }
}

impl Drop for IommufdTable {
    fn drop(&mut self) {
        let entries = std::mem::take(self.entries.get_mut().unwrap_or_else(PoisonError::into_inner));
        for entry in entries.into_values() {
            let stay = entry.pieces.iter().filter(|&&piece| !self.ioas.unmap_device(piece)).count();
            if stay > 0 {
                // A device may still reach the memory, so its mapping is leaked and it can never be unregistered.
                std::mem::forget(entry.mapping);
            }
        }
    }
}

impl fmt::Debug for IommufdTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IommufdTable").field("live", &self.live()).finish_non_exhaustive()
    }
}
