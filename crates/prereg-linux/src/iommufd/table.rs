//! What devices reach of held memory, range by range: every mapping counted here, and a copy in the devices' space.
//!
//! The count comes before the copy and goes after it, so whatever a device reaches is counted at every moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, Errno, Iova, MapError, RangeMapping, Translator, UserAddr};

use super::ioas::{IoasPair, IommufdLimits};
use crate::vfio::iova::IovaRange;
use crate::vfio::uapi::{IOAS_READABLE, IOAS_WRITEABLE};

/// Why a range was not mapped or unmapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IommufdTableError {
    /// Not a range that can be mapped. EINVAL.
    #[error(
        "{bytes:#x} bytes at {iova} cannot be mapped: an I/O range is not empty, does not wrap, and is made of whole \
         {alignment:#x} byte units"
    )]
    Range {
        /// The first byte.
        iova: Iova,
        /// Its length.
        bytes: u64,
        /// The unit.
        alignment: u64,
    },
    /// Something is mapped there. EEXIST.
    #[error("{bytes:#x} bytes at {iova} meet a mapping that is there; unmap that first")]
    Exists {
        /// The first byte.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// No mapping is just this range. ENOENT.
    #[error("no mapping is {bytes:#x} bytes at {iova}; unmap what was mapped, whole")]
    Absent {
        /// The first byte.
        iova: Iova,
        /// Its length.
        bytes: u64,
    },
    /// The memory cannot be mapped. The mapping's errno.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel refused. Its errno.
    #[error("the kernel refused {during} at {iova} with {errno}")]
    Kernel {
        /// The call.
        during: &'static str,
        /// The first byte.
        iova: Iova,
        /// The kernel's number.
        errno: Errno,
    },
}

impl IommufdTableError {
    /// EINVAL, EEXIST, ENOENT, the mapping's or the kernel's, as said at each kind.
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
    /// The parts of it, as the kernel knows them.
    pieces: Vec<IovaRange>,
    mapping: RangeMapping,
}

/// What devices reach of held memory. Dropping it unmaps all.
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

    /// Lets devices reach `bytes` bytes from `ua` on at `iova`: one call to the kernel where the region is one piece. The
    /// memory was pinned when it was registered; nothing is pinned or charged here.
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

    /// Copies all parts, or none.
    fn copy_runs(&self, iova: Iova, mapping: &RangeMapping, access: Access) -> Result<Vec<IovaRange>, Errno> {
        let may =
            if access.reads() { IOAS_READABLE } else { 0 } | if access.writes() { IOAS_WRITEABLE } else { 0 };
        let mut pieces = Vec::new();
        let mut at = iova.raw();
        for run in mapping.runs() {
            let piece = IovaRange { iova: at, bytes: run.bytes };
            if let Err(errno) = self.ioas.copy_with_access(run.host.raw(), piece, may) {
                // A part that stays would be a mapping nobody counts; the kernel has no reason to refuse an exact unmap.
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

    /// Takes back what [`map`](Self::map) mapped at `iova`, whole.
    ///
    /// # Errors
    /// [`IommufdTableError::Absent`], or [`IommufdTableError::Kernel`] and it stays counted.
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

    /// How many ranges are mapped.
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
                // What a device may still reach must not be unregistered, by anybody.
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
