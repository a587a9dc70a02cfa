//! An allocator that counts what is allocated: unlike resident memory, it means the same under a sanitizer, which keeps freed
//! memory aside.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Counters alone: no other memory is published by them.
struct Counting {
    now: AtomicUsize,
    most: AtomicUsize,
}

// SAFETY: forwards every call to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), Relaxed) + layout.size();
        self.most.fetch_max(now, Relaxed);
        // SAFETY: the caller's contract for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), Relaxed);
        // SAFETY: allocated by `alloc` above with this layout, by the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting { now: AtomicUsize::new(0), most: AtomicUsize::new(0) };

/// The most bytes that were allocated at a time during `work`, above those allocated before it. All threads of the process count.
pub(crate) fn most_during(work: impl FnOnce()) -> usize {
    let before = ALLOCATOR.now.load(Relaxed);
    ALLOCATOR.most.store(before, Relaxed);
    work();
    ALLOCATOR.most.load(Relaxed) - before
}
