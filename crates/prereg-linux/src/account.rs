//! An account of pinned pages under the rules of `RLIMIT_MEMLOCK`.
//!
//! The kernel charges pins itself, but only when it pins, and its ENOMEM names neither the limit nor what was needed.
//! This account refuses earlier and says both. It counts registered pages, each once.

use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{Charge, ChargeError, Granule, PinError};
use rustix::thread::CapabilitySet;

use crate::sys;

/// Source of the limit and of the privilege to exceed it.
#[derive(Clone, Copy, Debug)]
enum LimitSource {
    /// Both are read at every charge, as the kernel does.
    Kernel { initial_namespace: bool },
    /// The limit is read at every charge; the privilege was read when the account was made.
    KernelLimit { privileged: bool },
    /// A limit that the owner of the account set.
    Fixed { limit: Option<u64> },
}

/// Pages charged to this process.
#[derive(Debug)]
pub struct MemlockAccount {
    granule: Granule,
    source: LimitSource,
    charged: AtomicU64,
    unmatched_uncharges: AtomicU64,
}

impl MemlockAccount {
    /// An account that reads limit and privilege of this process at each charge.
    #[must_use]
    pub fn new(granule: Granule) -> Self {
        Self::with_source(granule, LimitSource::Kernel { initial_namespace: in_initial_user_namespace() })
    }

    /// An account that reads the privilege now, as io_uring does when a ring is made, and the limit at each charge.
    #[must_use]
    pub fn with_current_privilege(granule: Granule) -> Self {
        Self::with_source(granule, LimitSource::KernelLimit { privileged: bypasses_memlock() })
    }

    /// An account with a limit of its own in pages; `None` is no limit.
    #[must_use]
    pub fn with_limit(granule: Granule, limit: Option<u64>) -> Self {
        Self::with_source(granule, LimitSource::Fixed { limit })
    }

    const fn with_source(granule: Granule, source: LimitSource) -> Self {
        Self { granule, source, charged: AtomicU64::new(0), unmatched_uncharges: AtomicU64::new(0) }
    }

    /// Pages charged now.
    #[must_use]
    pub fn charged(&self) -> u64 {
        // Relaxed: a number for reports.
        self.charged.load(Ordering::Relaxed)
    }

    /// Pages that were uncharged without having been charged: zero unless a caller is defective.
    #[must_use]
    pub fn unmatched_uncharges(&self) -> u64 {
        // Relaxed: a number for reports.
        self.unmatched_uncharges.load(Ordering::Relaxed)
    }

    /// The limit in pages at the next charge; `None` when there is none or this process may exceed it.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        let privileged = match self.source {
            LimitSource::Fixed { limit } => return limit,
            LimitSource::KernelLimit { privileged } => privileged,
            LimitSource::Kernel { initial_namespace } => initial_namespace && holds_ipc_lock(),
        };
        if privileged {
            return None;
        }
        let (soft, _) = sys::memlock_limit();
        soft.map(|bytes| bytes >> self.granule.shift().get())
    }

    /// [`limit`](Self::limit) in bytes.
    pub(crate) fn limit_bytes(&self) -> Option<u64> {
        self.limit().map(|pages| pages << self.granule.shift().get())
    }

    /// The error for `need` bytes that the kernel refused with ENOMEM while `used` bytes were charged.
    pub(crate) fn refusal(&self, need: u64, used: impl FnOnce() -> u64) -> PinError {
        match self.limit_bytes() {
            Some(limit) => PinError::Limit { need, used: used(), limit },
            None => PinError::OutOfMemory,
        }
    }
}

/// Implements [`Charge`] for a back end through its account.
macro_rules! impl_charge {
    ($backend:ty) => {
        impl prereg::Charge for $backend {
            fn charge(&self, pages: u64) -> Result<(), prereg::ChargeError> {
                self.account().charge(pages)
            }

            fn uncharge(&self, pages: u64) {
                self.account().uncharge(pages);
            }
        }
    };
}
pub(crate) use impl_charge;

impl Charge for MemlockAccount {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        let limit = self.limit();
        let over =
            |charged| ChargeError::OverLimit { need: pages, charged, limit: limit.unwrap_or(u64::MAX) };
        // Relaxed: the number guards no other memory.
        let result = self.charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |charged| {
            charged.checked_add(pages).filter(|&total| limit.is_none_or(|limit| total <= limit))
        });
        result.map(drop).map_err(over)
    }

    fn uncharge(&self, pages: u64) {
        // Relaxed: as above.
        let before = self.charged.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |charged| {
            Some(charged.saturating_sub(pages))
        });
        let (Ok(before) | Err(before)) = before;
        // Relaxed: a number for reports.
        self.unmatched_uncharges.fetch_add(pages.saturating_sub(before), Ordering::Relaxed);
    }
}

fn holds_ipc_lock() -> bool {
    sys::effective_capabilities().is_ok_and(|capabilities| capabilities.contains(CapabilitySet::IPC_LOCK))
}

/// Root of another user namespace has the capability, but the kernel does not accept it for RLIMIT_MEMLOCK.
pub(crate) fn in_initial_user_namespace() -> bool {
    match std::fs::read_to_string("/proc/self/uid_map") {
        Ok(text) => is_identity_map(&text),
        // A kernel without user namespaces has no such file; every process is in the initial one.
        Err(error) => {
            error.kind() == std::io::ErrorKind::NotFound && std::path::Path::new("/proc/self/status").exists()
        }
    }
}

/// Whether a `uid_map` is that of the initial namespace, which maps all users to themselves.
fn is_identity_map(text: &str) -> bool {
    let mut words = text.split_ascii_whitespace();
    words.next() == Some("0")
        && words.next() == Some("0")
        && words.next() == Some("4294967295")
        && words.next().is_none()
}

/// Whether the kernel lets this thread exceed RLIMIT_MEMLOCK.
pub(crate) fn bypasses_memlock() -> bool {
    holds_ipc_lock() && in_initial_user_namespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_is_allowed_and_one_page_more_is_not() {
        let account = MemlockAccount::with_limit(Granule::K4, Some(10));
        account.charge(4).unwrap();
        account.charge(6).unwrap();
        let error = account.charge(1).unwrap_err();
        assert_eq!(error, ChargeError::OverLimit { need: 1, charged: 10, limit: 10 });
        let text = error.to_string();
        assert!(text.contains("10 pages") && text.contains("RLIMIT_MEMLOCK"), "{text}");
        assert_eq!(account.charged(), 10);
        account.uncharge(6);
        account.charge(1).unwrap();
        assert_eq!(account.charged(), 5);
    }

    #[test]
    fn without_a_limit_pages_still_count_and_never_wrap() {
        let account = MemlockAccount::with_limit(Granule::K4, None);
        account.charge(u64::MAX).unwrap();
        assert!(account.charge(1).is_err());
        assert_eq!(account.charged(), u64::MAX);
    }

    #[test]
    fn taking_off_too_much_stops_at_zero_and_is_reported() {
        let account = MemlockAccount::with_limit(Granule::K4, Some(10));
        account.charge(3).unwrap();
        account.uncharge(5);
        assert_eq!((account.charged(), account.unmatched_uncharges()), (0, 2));
    }

    #[test]
    fn only_the_map_of_the_initial_namespace_maps_everybody() {
        assert!(is_identity_map("         0          0 4294967295\n"));
        for text in ["", "0 0 1", "0 1000 4294967295", "0 1000 1\n1 1 5", "0 0 4294967295\n1 1 1"] {
            assert!(!is_identity_map(text), "{text:?}");
        }
    }

    #[test]
    fn charges_from_many_threads_never_pass_the_limit() {
        let account = MemlockAccount::with_limit(Granule::K4, Some(1000));
        let granted: u64 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..1000).filter(|_| account.charge(1).is_ok()).count() as u64))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((granted, account.charged()), (1000, 1000));
    }
}
