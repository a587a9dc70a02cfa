//! Which threads hold which memory for long, so that they release it before it is unmapped.
//!
//! The announcement comes before the unmap: between the two, a thread could take a hold that is not asked back. That time is an
//! odd epoch. It starts with the announcement and ends with the next call on the client's thread, which closes the range before
//! it does anything else. A thread that takes a hold for long loads the epoch first, and does not keep the hold if it is odd.
//! If it is even, a later announcement finds the range in the list.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prereg::Iova;

use crate::engine::ring_memory::intersects;

/// A reason to hold memory for long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum WatchedMemory {
    /// The admin queues.
    Admin,
    /// An I/O submission queue.
    Submission(u16),
    /// An I/O completion queue.
    Completion(u16),
    /// The shadow doorbells, which all threads hold.
    Shadow,
}

/// Ranges of shadow doorbells that are kept: those in use and those that failed.
const MOST_SHADOWS: usize = 16;

#[derive(Debug)]
struct Range {
    what: WatchedMemory,
    /// The thread that holds it; `None`: all threads.
    poll_group: Option<u32>,
    iova: Iova,
    bytes: u64,
}

/// The ranges, and the epoch.
#[derive(Debug, Default)]
pub(super) struct UnmapWatch {
    epoch: AtomicU32,
    ranges: Mutex<Vec<Range>>,
}

impl UnmapWatch {
    /// Adds a range, before it is first held.
    pub(super) fn watch(&self, what: WatchedMemory, poll_group: Option<u32>, (iova, bytes): (Iova, u64)) {
        let mut ranges = self.ranges();
        if what == WatchedMemory::Shadow
            && ranges.iter().filter(|range| range.what == what).count() >= MOST_SHADOWS
        {
            // For a guest that names ever new buffers, all memory is watched instead.
            ranges.retain(|range| range.what != what);
            ranges.push(Range { what, poll_group, iova: Iova::new(0), bytes: 0 });
        } else {
            ranges.push(Range { what, poll_group, iova, bytes });
        }
    }

    /// Removes ranges, after they were last held.
    pub(super) fn unwatch(&self, what: WatchedMemory) {
        self.ranges().retain(|range| range.what != what);
    }

    /// Removes all ranges.
    pub(super) fn clear(&self) {
        self.ranges().clear();
    }

    /// Memory is about to be unmapped. Returns the threads that hold some of it, `None` for all threads.
    pub(super) fn announce(&self, iova: Iova, bytes: u64) -> Vec<Option<u32>> {
        if self.may_keep_holds() {
            // Release: who receives the message that follows sees the odd epoch. Only the client's thread stores.
            self.epoch.fetch_add(1, Ordering::Release);
        }
        let mut poll_groups: Vec<_> = self
            .ranges()
            .iter()
            .filter(|range| intersects((range.iova, range.bytes), (iova, bytes)))
            .map(|range| range.poll_group)
            .collect();
        poll_groups.sort_unstable();
        poll_groups.dedup();
        poll_groups
    }

    /// The client's thread does something else: the announced unmap is done.
    pub(super) fn unmap_done(&self) {
        // Relaxed: this thread is the only writer.
        if self.epoch.load(Ordering::Relaxed) % 2 == 1 {
            // Release: who loads the even epoch finds the range closed.
            self.epoch.fetch_add(1, Ordering::Release);
        }
    }

    /// Whether a hold that begins now may be kept.
    pub(super) fn may_keep_holds(&self) -> bool {
        // Acquire: pairs with the stores of `announce` and `unmap_done`.
        self.epoch.load(Ordering::Acquire) % 2 == 0
    }

    fn ranges(&self) -> MutexGuard<'_, Vec<Range>> {
        // The list is valid after every statement.
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{UnmapWatch, WatchedMemory};
    use prereg::Iova;

    #[test]
    fn an_announcement_finds_whose_memory_it_is() {
        let unmap_watch = UnmapWatch::default();
        unmap_watch.watch(WatchedMemory::Submission(1), Some(3), (Iova::new(0x1000), 0x1000));
        unmap_watch.watch(WatchedMemory::Completion(1), Some(3), (Iova::new(0x1800), 0x1000));
        unmap_watch.watch(WatchedMemory::Shadow, None, (Iova::new(0x9000), 0x1000));
        assert_eq!(unmap_watch.announce(Iova::new(0x4000), 0x1000), []);
        assert_eq!(unmap_watch.announce(Iova::new(0x1fff), 1), [Some(3)]);
        assert_eq!(unmap_watch.announce(Iova::new(0), 0), [None, Some(3)], "everything");
        unmap_watch.unwatch(WatchedMemory::Submission(1));
        assert_eq!(unmap_watch.announce(Iova::new(0x1000), 0x800), []);
    }

    #[test]
    fn a_guest_that_names_many_shadows_makes_no_long_list() {
        let unmap_watch = UnmapWatch::default();
        for at in 0..1000 {
            unmap_watch.watch(WatchedMemory::Shadow, None, (Iova::new(at << 12), 0x1000));
        }
        assert!(unmap_watch.ranges().len() <= super::MOST_SHADOWS);
        assert_eq!(unmap_watch.announce(Iova::new(0x7000), 1), [None], "what was named first too");
    }

    #[test]
    fn holds_are_not_kept_between_an_announcement_and_what_comes_next() {
        let unmap_watch = UnmapWatch::default();
        assert!(unmap_watch.may_keep_holds());
        unmap_watch.announce(Iova::new(0), 1);
        unmap_watch.announce(Iova::new(0), 1);
        assert!(!unmap_watch.may_keep_holds());
        unmap_watch.unmap_done();
        unmap_watch.unmap_done();
        assert!(unmap_watch.may_keep_holds());
    }
}
