//! Faulting memory in with several threads before it is pinned.
//!
//! Most of the time to register untouched memory is spent on faults: the pinning thread finds, zeroes and maps page
//! after page. When several threads have prefaulted it, the pin finds every page present. Contents do not change: pages
//! are populated, not written.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use prereg::{Errno, Memory, UserAddr};

use crate::mapping;
use crate::proc_maps;
use crate::sys;

/// Options of [`prefault`](prefault()).
#[derive(Clone, Copy, Default)]
pub struct Prefault<'a> {
    /// Threads to use; 0 means one per processor, at most 8.
    pub threads: usize,
    /// Called after each chunk with the bytes done and the total, from the prefaulting threads.
    pub progress: Option<&'a (dyn Fn(u64, u64) + Send + Sync)>,
    /// Checked before each chunk: `true` stops.
    pub cancel: Option<&'a AtomicBool>,
}

impl fmt::Debug for Prefault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prefault")
            .field("threads", &self.threads)
            .field("progress", &self.progress.is_some())
            .field("cancel", &self.cancel)
            .finish()
    }
}

/// Memory could not be prefaulted completely. Pages that were faulted in stay.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PrefaultError {
    /// The cancel flag was set.
    #[error("cancelled after {done} of {total} bytes")]
    Cancelled {
        /// Bytes that were faulted in.
        done: u64,
        /// Total bytes.
        total: u64,
    },
    /// A page cannot be faulted in.
    #[error("the page at {ua} cannot be faulted in: {why}")]
    Fault {
        /// The page.
        ua: UserAddr,
        /// The reason, and what to do.
        why: &'static str,
        /// The system's errno.
        errno: Errno,
    },
}

prereg::debug_as_display!(PrefaultError);

impl PrefaultError {
    /// EINTR when cancelled, else the system's errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Cancelled { .. } => Errno::EINTR,
            Self::Fault { errno, .. } => *errno,
        }
    }
}

/// Large enough to amortise the system call, small enough to cancel quickly, and a multiple of 2 MiB.
const CHUNK: u64 = 8 << 20;

/// Faults all of `memory` in, writable.
///
/// Kernels before 5.14 have no call for it; there every page is touched, which the promise of [`Memory`] makes sound.
///
/// # Errors
/// [`PrefaultError`].
pub fn prefault(memory: &(impl Memory + ?Sized), how: Prefault<'_>) -> Result<(), PrefaultError> {
    // Keeps the memory mapped throughout.
    let keep = memory.keep();
    let result = populate(memory.ua().raw(), memory.bytes(), how, Fallback::Touch);
    drop(keep);
    result
}

/// The alternative on a kernel without `MADV_POPULATE_WRITE`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// Touch every page: only for memory whose owner promised to keep it mapped.
    Touch,
    /// Nothing: the pin itself faults the pages in.
    Skip,
}

/// Faults `[ua, ua + bytes)` in.
pub(crate) fn populate(
    ua: u64,
    bytes: u64,
    how: Prefault<'_>,
    fallback: Fallback,
) -> Result<(), PrefaultError> {
    // Chunks start at multiples of their size, so that no two threads share a huge page.
    let first = ua / CHUNK;
    let end = ua.saturating_add(bytes);
    let chunks = usize::try_from(end.div_ceil(CHUNK) - first).unwrap_or(usize::MAX);
    let next = AtomicUsize::new(0);
    let done = AtomicU64::new(0);
    let failed: Mutex<Option<PrefaultError>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let fail = |error| {
        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        // Relaxed here and below: flags and counts; the kernel orders accesses to the memory itself.
        stop.store(true, Ordering::Relaxed);
    };
    let work = || {
        loop {
            let chunk = next.fetch_add(1, Ordering::Relaxed);
            if chunk >= chunks || stop.load(Ordering::Relaxed) {
                return;
            }
            if how.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed)) {
                fail(PrefaultError::Cancelled { done: done.load(Ordering::Relaxed), total: bytes });
                return;
            }
            let from = ((first + chunk as u64) * CHUNK).max(ua);
            let to = (first + chunk as u64 + 1).saturating_mul(CHUNK).min(end);
            if let Err(error) = populate_chunk(from, to - from, fallback) {
                fail(error);
                return;
            }
            let done = done.fetch_add(to - from, Ordering::Relaxed) + (to - from);
            if let Some(progress) = how.progress {
                progress(done, bytes);
            }
        }
    };
    let threads = sys::worker_threads(how.threads).min(chunks);
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // If a thread cannot be started, the others process its chunks.
            let _ = std::thread::Builder::new().name("prereg-fault-in".into()).spawn_scoped(scope, work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn populate_chunk(ua: u64, bytes: u64, fallback: Fallback) -> Result<(), PrefaultError> {
    loop {
        match sys::populate_write(ua, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            // Returned for memory without write permission, for device memory, and by kernels without this advice.
            Err(Errno::EINVAL) => return populate_otherwise(ua, bytes, fallback),
            Err(errno) => return Err(diagnosed(ua, bytes, errno)),
        }
    }
}

fn populate_otherwise(ua: u64, bytes: u64, fallback: Fallback) -> Result<(), PrefaultError> {
    if let Some(error) = unpinnable_reason(ua, bytes, Errno::EFAULT) {
        return Err(error);
    }
    // Device memory cannot be populated by any kernel and must not be touched.
    if fallback == Fallback::Touch && !sys::can_populate() {
        touch_pages(ua, bytes);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "touches pages that a `Memory` promised to keep mapped")]
fn touch_pages(ua: u64, bytes: u64) {
    let size = |n: u64| usize::try_from(n).unwrap_or(0);
    let start = std::ptr::with_exposed_provenance_mut(size(ua));
    // SAFETY: `Fallback::Touch` is used only for memory that its owner keeps mapped, and the mappings were just checked
    // to be writable.
    unsafe { mapping::touch(start, size(bytes), size(sys::page_size())) };
}

fn unpinnable_reason(ua: u64, bytes: u64, errno: Errno) -> Option<PrefaultError> {
    let granule = crate::pagemap::system_granule().ok()?;
    let range = prereg::UserRange::new(UserAddr::new(ua), bytes, granule).ok()?;
    let found = proc_maps::unpinnable_reason(range)?;
    Some(PrefaultError::Fault { ua: found.ua, why: found.why, errno })
}

fn diagnosed(ua: u64, bytes: u64, errno: Errno) -> PrefaultError {
    unpinnable_reason(ua, bytes, errno).unwrap_or(PrefaultError::Fault {
        ua: UserAddr::new(ua),
        why: "the system refused it once, but not on a second attempt; try again",
        errno,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;
    use crate::pagemap::{PageBacking, Pagemap};

    fn all_present(memory: &GuestMemory) -> bool {
        let map = Pagemap::open().unwrap();
        (0..memory.bytes() / sys::page_size()).all(|page| {
            let ua = memory.ua().checked_add(page * sys::page_size()).unwrap();
            map.page(ua).unwrap() != PageBacking::Absent
        })
    }

    #[test]
    fn every_page_is_present_afterwards_and_keeps_its_contents() {
        for threads in [0, 1, 2, 5] {
            let memory = GuestMemory::anonymous((20 << 20) + 12288).unwrap();
            memory.write(9 << 20, b"kept").unwrap();
            assert!(!all_present(&memory));
            prefault(&memory, Prefault { threads, ..Prefault::default() }).unwrap();
            assert!(all_present(&memory));
            let mut back = [0; 4];
            memory.read(9 << 20, &mut back).unwrap();
            assert_eq!(&back, b"kept");
        }
    }

    #[test]
    fn touching_does_the_same_where_the_kernel_cannot_populate() {
        let memory = GuestMemory::memfd("touched", 64 * sys::page_size()).unwrap();
        memory.write(5, b"kept").unwrap();
        touch_pages(memory.ua().raw(), memory.bytes());
        assert!(all_present(&memory));
        let mut back = [0; 4];
        memory.read(5, &mut back).unwrap();
        assert_eq!(&back, b"kept");
    }

    #[test]
    fn progress_ends_at_the_total_and_never_passes_it() {
        let memory = GuestMemory::memfd("progress", 40 << 20).unwrap();
        let seen = Mutex::new(Vec::new());
        let progress = |done, total| {
            assert!(done <= total && total == 40 << 20);
            seen.lock().unwrap().push(done);
        };
        prefault(&memory, Prefault { threads: 2, progress: Some(&progress), cancel: None }).unwrap();
        let seen = seen.into_inner().unwrap();
        assert!(seen.len() >= 5);
        assert_eq!(seen.iter().max(), Some(&(40 << 20)));
    }

    #[test]
    fn cancelling_stops_before_the_end() {
        let memory = GuestMemory::anonymous(64 << 20).unwrap();
        let cancel = AtomicBool::new(false);
        let progress = |_, _| cancel.store(true, Ordering::Relaxed);
        let how = Prefault { threads: 2, progress: Some(&progress), cancel: Some(&cancel) };
        let error = prefault(&memory, how).unwrap_err();
        assert!(matches!(error, PrefaultError::Cancelled { done, total } if done < total), "{error}");
        assert!(!all_present(&memory));
    }

    #[test]
    fn the_page_that_cannot_come_in_is_named() {
        let reserved = mapping::Mapping::reservation(64 << 20).unwrap();
        let error =
            populate(reserved.ua(), reserved.bytes(), Prefault::default(), Fallback::Skip).unwrap_err();
        let second = reserved.ua() + sys::page_size();
        assert!(matches!(error, PrefaultError::Fault { ua, .. } if ua.raw() >= second), "{error}");
        let error =
            populate(reserved.ua(), 2 * sys::page_size(), Prefault::default(), Fallback::Skip).unwrap_err();
        assert!(
            matches!(error, PrefaultError::Fault { ua, why, .. } if ua.raw() == second && why.contains("PROT_NONE"))
        );
        assert!(error.to_string().contains(&format!("{second:#x}")), "{error}");
    }
}
