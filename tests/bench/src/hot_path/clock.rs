//! The processor time of the calling thread, which other load on the machine does not increase.

use std::time::Duration;

/// Processor time of the calling thread since its start.
///
/// # Panics
/// If the kernel has no such clock; Linux has had it since 2.6.12.
#[must_use]
pub(super) fn thread_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    #[expect(unsafe_code, reason = "a system call that fills a structure")]
    // SAFETY: `now` is valid for writing for as long as the call lasts.
    let answer = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    assert_eq!(answer, 0, "no clock of the thread's processor time");
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
