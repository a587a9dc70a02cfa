//! A queue whose memory cannot be reached is tried again, less and less often, as long as something waits for it.
//!
//! Memory goes and comes back within moments when a guest's memory map is rearranged. What stays away for longer is reported
//! to the guest, once; commands that wait are served whenever the memory returns, without another doorbell.

/// When to try next.
#[derive(Clone, Copy, Debug)]
struct State {
    since: u64,
    next: u64,
    told: bool,
}

/// Whether a queue's memory is away.
#[derive(Clone, Copy, Default, Debug)]
pub struct Outage(Option<State>);

const FIRST: u64 = 1_000_000;
const LONGEST: u64 = 100_000_000;
/// Nanoseconds after which the guest is told.
pub const GIVEN_UP: u64 = 1_000_000_000;

impl Outage {
    /// Whether it is worth trying at `now`.
    #[must_use]
    pub fn may_try(&self, now: u64) -> bool {
        self.0.is_none_or(|state| now >= state.next)
    }

    /// It was reached.
    pub fn over(&mut self) {
        self.0 = None;
    }

    /// It was not reached at `now`; says whether the guest should be told.
    pub fn met(&mut self, now: u64) -> bool {
        let state = self.0.get_or_insert(State { since: now, next: now, told: false });
        let away = now.saturating_sub(state.since);
        state.next = now + away.clamp(FIRST, LONGEST);
        let tell = away >= GIVEN_UP && !state.told;
        state.told |= tell;
        tell
    }

    /// When to try next without being asked.
    #[must_use]
    pub fn next(&self) -> Option<u64> {
        self.0.map(|state| state.next)
    }
}

#[cfg(test)]
mod tests {
    use super::{GIVEN_UP, Outage};

    #[test]
    fn it_is_told_once_and_tried_ever_less_often() {
        let mut outage = Outage::default();
        let (mut now, mut tries, mut told) = (5, 0, 0);
        assert!(outage.may_try(now));
        while now < 3 * GIVEN_UP {
            told += u32::from(outage.met(now));
            tries += 1;
            assert!(!outage.may_try(now));
            now = outage.next().expect("it is tried again");
        }
        assert_eq!(told, 1);
        assert!((20..70).contains(&tries), "{tries} tries");
        outage.over();
        assert!(outage.may_try(0) && outage.next().is_none());
    }
}
