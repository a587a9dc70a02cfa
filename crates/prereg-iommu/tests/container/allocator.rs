//! An allocator that fails on request, for maps that cannot allocate a block of their table.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Allocations until this thread's allocations fail; 0: they never do.
    static COUNTDOWN: Cell<u64> = const { Cell::new(0) };
}

struct Failing;

// SAFETY: forwards every call to the system's allocator; failure is a null pointer, as the trait demands.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let refuse = COUNTDOWN.try_with(|left| {
            let now = left.get();
            left.set(now.saturating_sub(u64::from(now > 1)));
            now == 1
        });
        if refuse == Ok(true) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's contract for the layout.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: allocated by `alloc` above with this layout, by the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `work`, in which `allocations` more allocations succeed.
pub(crate) fn with_memory_for<T>(allocations: u64, work: impl FnOnce() -> T) -> T {
    COUNTDOWN.with(|left| left.set(allocations + 1));
    let result = work();
    COUNTDOWN.with(|left| left.set(0));
    result
}
