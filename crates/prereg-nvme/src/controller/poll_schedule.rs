//! How often mapped doorbells are polled: less often the longer none was written. All times are nanoseconds.
//!
//! Waking an idle thread costs about 25 microseconds of processor time on a virtual machine. After 20 s without a doorbell a
//! client costs 20 wakes a second for its doorbells and one every two seconds for each I/O thread.

/// The longest pause, reached after 16 times as long without a doorbell.
const LONGEST: u64 = 25_000_000;
const DIVISOR: u64 = 16;
/// The longest pause of a client that is idle for long, reached after 20 s.
const LONGEST_AT_REST: u64 = 50_000_000;
const DIVISOR_AT_REST: u64 = 400;
/// How often all I/O threads are woken to poll by themselves, and when idle for long.
const WAKE_ALL: u64 = 100_000_000;
const WAKE_ALL_AT_REST: u64 = 2_000_000_000;
const WAKE_ALL_DIVISOR: u64 = 4;

/// The pause before the next poll, at least `first`, when no doorbell was written for `idle`.
pub(super) fn pause(idle: u64, first: u64) -> u64 {
    let busy = (idle / DIVISOR).clamp(first, LONGEST);
    busy.max((idle / DIVISOR_AT_REST).min(LONGEST_AT_REST))
}

/// The time between two wakes of all I/O threads, when no doorbell was written for `idle`. Only they find a doorbell that was
/// written with the value of the last poll, which happens to a queue that was in use a moment before.
pub(super) fn wake_all(idle: u64) -> u64 {
    (idle / WAKE_ALL_DIVISOR).clamp(WAKE_ALL, WAKE_ALL_AT_REST)
}

#[cfg(test)]
mod tests {
    use super::{pause, wake_all};

    const MILLISECOND: u64 = 1_000_000;

    #[test]
    fn an_idle_client_is_polled_twenty_times_a_second_and_a_busy_one_often() {
        let pauses = [0, 16, 160, 400, 1000, 10_000, 20_000, 1_000_000]
            .map(|idle| pause(idle * MILLISECOND, MILLISECOND) / MILLISECOND);
        assert_eq!(pauses, [1, 1, 10, 25, 25, 25, 50, 50]);
    }

    #[test]
    fn all_io_threads_poll_ten_times_a_second_after_a_doorbell() {
        let times = [0, 400, 4000, 8000, 1_000_000].map(|idle| wake_all(idle * MILLISECOND) / MILLISECOND);
        assert_eq!(times, [100, 100, 1000, 2000, 2000]);
    }
}
