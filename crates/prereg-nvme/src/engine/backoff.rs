//! A queue whose memory cannot be reached is retried at growing intervals, as long as something waits for it.
//!
//! Memory disappears for moments when a guest's memory map changes. If it is away for longer, it is reported to the guest once; waiting
//! commands are served when the memory returns, without another doorbell.

/// Since when it fails, and when to try next.
#[derive(Clone, Copy, Debug)]
struct State {
    since: u64,
    next: u64,
    reported: bool,
}

/// The retry state of one queue.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Backoff(Option<State>);

const FIRST: u64 = 1_000_000;
const LONGEST: u64 = 100_000_000;
/// Nanoseconds of failures before they are reported to the guest.
pub(crate) const REPORT_AFTER: u64 = 1_000_000_000;

impl Backoff {
    /// Whether to try at `now`.
    pub(crate) fn may_try(&self, now: u64) -> bool {
        self.0.is_none_or(|state| now >= state.next)
    }

    /// The memory was reached.
    pub(crate) fn reset(&mut self) {
        self.0 = None;
    }

    /// The memory was not reached at `now`; returns whether to report it to the guest.
    pub(crate) fn failed(&mut self, now: u64) -> bool {
        let state = self.0.get_or_insert(State { since: now, next: now, reported: false });
        let away = now.saturating_sub(state.since);
        state.next = now + away.clamp(FIRST, LONGEST);
        let report = away >= REPORT_AFTER && !state.reported;
        state.reported |= report;
        report
    }

    /// When to try next.
    pub(crate) fn next(&self) -> Option<u64> {
        self.0.map(|state| state.next)
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, REPORT_AFTER};

    #[test]
    fn it_is_reported_once_and_retried_less_and_less_often() {
        let mut backoff = Backoff::default();
        let (mut now, mut tries, mut reported) = (5, 0, 0);
        assert!(backoff.may_try(now));
        while now < 3 * REPORT_AFTER {
            reported += u32::from(backoff.failed(now));
            tries += 1;
            assert!(!backoff.may_try(now));
            now = backoff.next().expect("it is tried again");
        }
        assert_eq!(reported, 1);
        assert!((20..70).contains(&tries), "{tries} tries");
        backoff.reset();
        assert!(backoff.may_try(0) && backoff.next().is_none());
    }
}
