//! A queue whose memory cannot be reached is tried again, less and less often, as long as something waits for it.
//!
//! Memory goes and comes back within moments when a guest's memory map is rearranged. What stays away for longer is reported
//! to the guest, once; commands that wait are polled whenever the memory returns, without another doorbell.

/// When to try next.
#[derive(Clone, Copy, Debug)]
struct State {
    since: u64,
    next: u64,
    reported: bool,
}

/// Whether a queue's memory is away.
#[derive(Clone, Copy, Default, Debug)]
pub struct Backoff(Option<State>);

const FIRST: u64 = 1_000_000;
const LONGEST: u64 = 100_000_000;
/// Nanoseconds after which the guest is reported.
pub const REPORT_AFTER: u64 = 1_000_000_000;

impl Backoff {
    /// Whether it is worth trying at `now`.
    #[must_use]
    pub fn may_try(&self, now: u64) -> bool {
        self.0.is_none_or(|state| now >= state.next)
    }

    /// It was reached.
    pub fn reset(&mut self) {
        self.0 = None;
    }

    /// It was not reached at `now`; says whether the guest should be reported.
    pub fn failed(&mut self, now: u64) -> bool {
        let state = self.0.get_or_insert(State { since: now, next: now, reported: false });
        let away = now.saturating_sub(state.since);
        state.next = now + away.clamp(FIRST, LONGEST);
        let report = away >= REPORT_AFTER && !state.reported;
        state.reported |= report;
        report
    }

    /// When to try next without being asked.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.0.map(|state| state.next)
    }
}

#[cfg(test)]
mod tests {
    use super::{Backoff, REPORT_AFTER};

    #[test]
    fn it_is_told_once_and_tried_ever_less_often() {
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
