//! A fence on every thread of the test process: `membarrier(2)`.
//!
//! Under miri, where each thread passes its own fence, it does nothing. Without the system call there is no
//! fence for tests with threads, which then print a reason and end.
#![expect(unsafe_code, reason = "implements `Barrier`, by a system call")]

use std::sync::Arc;

use prereg::Barrier;

struct ProcessFence;

#[cfg(not(miri))]
fn membarrier(command: libc::c_int) -> libc::c_long {
    // SAFETY: the call takes three numbers and touches no memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) }
}

// SAFETY: MEMBARRIER_CMD_PRIVATE_EXPEDITED fences every running thread of the process, and the caller. Under the interpreter
// the core passes its own fences.
unsafe impl Barrier for ProcessFence {
    fn all_threads(&self) {
        #[cfg(not(miri))]
        assert_eq!(
            membarrier(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED),
            0,
            "membarrier after it was registered"
        );
    }
}

/// The fence of this process.
pub(crate) fn process_fence() -> Arc<dyn Barrier> {
    #[cfg(not(miri))]
    assert_eq!(
        membarrier(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED),
        0,
        "these tests need a kernel with membarrier(2), Linux 4.14"
    );
    Arc::new(ProcessFence)
}
