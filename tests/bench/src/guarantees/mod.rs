//! Guarantees shown by counting: instructions, memory per page, and faults, allocations and system calls while mapping.

pub mod memcg_pressure;
pub mod metadata;
pub mod no_fault;

use std::sync::atomic::{Ordering, fence};

use prereg::Barrier;

/// A fence for a process with one thread, for tools without `membarrier(2)`.
#[derive(Debug)]
pub struct SoleThread {
    made: (),
}

impl SoleThread {
    /// Makes the fence.
    ///
    /// # Panics
    /// In a process with more than one thread.
    #[must_use]
    pub fn alone() -> Self {
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        assert_eq!(threads, 1, "this fence reaches the calling thread only");
        Self { made: () }
    }
}

// SAFETY: the only thread of the process is the caller, which passes the fence. The program that uses it starts no thread.
#[expect(unsafe_code, reason = "the promise of the trait is kept by there being one thread")]
unsafe impl Barrier for SoleThread {
    fn all_threads(&self) {
        let () = self.made;
        fence(Ordering::SeqCst);
    }
}
