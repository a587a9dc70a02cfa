//! The pin back end on `mlock`, which is not a pin.
//!
//! Locked memory stays resident, but its pages move: compaction, a write after `fork`, the merging of equal pages and
//! huge-page collapse give it other frames without notice. A device that was given the old address then accesses a page
//! that belongs to something else. This back end is for comparison with real pins, and for programs whose "device" is
//! the program itself. It is never chosen by default.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{
    AddressKind, Barrier, DirtyPages, Errno, Granule, HostAddr, PageSink, Pin, PinError, PinId, UserRange,
};

use crate::account::{MemlockAccount, impl_charge};
use crate::barrier::Membarrier;
use crate::error::BackendError;
use crate::frames;
use crate::pagemap::Pagemap;
use crate::proc_maps;
use crate::proc_status::KernelCount;
use crate::sys;

/// Locks memory instead of pinning it.
///
/// Locks do not nest: if two address spaces lock the same page, the first release unlocks it.
#[derive(Debug)]
pub struct Mlock {
    pagemap: Pagemap,
    /// Whether the page map shows page frames to this process.
    frames: bool,
    account: MemlockAccount,
    next: AtomicU64,
}

impl Mlock {
    /// A warning to show wherever this back end is offered.
    pub const WARNING: &'static str = "mlock is not a pin: locked pages still move (compaction, fork, KSM, huge-page \
                                       collapse), and a device would not be notified; for comparison only";

    /// A back end for this process. Its addresses are for reports only ([`AddressKind::Invented`]): the frame of each
    /// page when it was locked or, without CAP_SYS_ADMIN, its user address.
    ///
    /// # Errors
    /// [`BackendError::Pagemap`].
    pub fn new() -> Result<Self, BackendError> {
        let pagemap = Pagemap::open()?;
        let frames = pagemap.shows_frames()?;
        let account = MemlockAccount::new(pagemap.granule());
        Ok(Self { pagemap, frames, account, next: AtomicU64::new(0) })
    }

    /// The account that charges go to.
    #[must_use]
    pub const fn account(&self) -> &MemlockAccount {
        &self.account
    }

    fn refused(&self, range: UserRange, errno: Errno) -> PinError {
        if let Some(found) = proc_maps::unpinnable_reason(range) {
            return found.into();
        }
        let over_limit = match errno {
            Errno::ENOMEM | Errno::EAGAIN => true,
            Errno::EPERM => self.account.limit().is_some(),
            _ => false,
        };
        if !over_limit {
            return PinError::Os { ua: range.first(), errno, during: "mlock" };
        }
        self.account.refusal(range.bytes(), || KernelCount::now().map_or(0, |counted| counted.locked))
    }
}

// SAFETY: the addresses are of kind `Invented`: locked pages move, so no device may use them.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Mlock {
    fn name(&self) -> &'static str {
        "mlock"
    }

    fn granule(&self) -> Granule {
        self.pagemap.granule()
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }

    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        Membarrier::shared()
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        let (ua, bytes) = (range.first().raw(), range.bytes());
        // `mlock` accepts read-only memory; a device does not.
        if let Some(found) = proc_maps::vma_reason(range).filter(|found| !proc_maps::only_a_disk_file(*found))
        {
            return Err(found.into());
        }
        if let Err(errno) = sys::mlock(ua, bytes) {
            // A failed call can leave a part locked.
            let _ = sys::munlock(ua, bytes);
            return Err(self.refused(range, errno));
        }
        let pushed = if self.frames {
            frames::push_frames(&self.pagemap, range, pages)
        } else {
            pages.push(HostAddr::new(ua), range.pages(self.granule())).map_err(PinError::from)
        };
        if let Err(error) = pushed {
            let _ = sys::munlock(ua, bytes);
            return Err(error);
        }
        // Relaxed: must only be unique.
        Ok(PinId::new(self.next.fetch_add(1, Ordering::Relaxed)))
    }

    fn unpin(&self, _pin: PinId, range: UserRange, _dirty: DirtyPages<'_>) {
        // Fails only for unmapped memory, which is not locked any more.
        let _ = sys::munlock(range.first().raw(), range.bytes());
    }
}

impl_charge!(Mlock);
