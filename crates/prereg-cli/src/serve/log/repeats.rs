//! Events that are counted instead of repeated. Bounded in memory and in the number of lines, whatever clients do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long events of a kind are counted before the count is written.
const PERIOD: Duration = Duration::from_secs(60);
/// Kinds of events, over all sockets, that are counted apart; later ones share a count.
const MAX_KEYS: usize = 4096;

/// The events that are counted together: a kind of event of one socket, not of one client, because a client that reconnects is a new one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    pub(super) socket: Option<PathBuf>,
    pub(super) kind: &'static str,
    pub(super) detail: &'static str,
}

/// Events that were counted, and the last of them.
#[derive(Debug)]
pub(super) struct Repeated<T> {
    pub(super) last: T,
    pub(super) count: u64,
}

/// The counts of all kinds of events.
#[derive(Debug)]
pub(super) struct Repeats<T>(BTreeMap<Key, Kind<T>>);

#[derive(Debug)]
struct Kind<T> {
    /// The begin of the period.
    since: Instant,
    /// Events that may be written in this period.
    left: u32,
    counted: Option<Repeated<T>>,
}

impl<T> Default for Repeats<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Repeats<T> {
    /// Returns an event that is to be written; counts it and returns `None` if `burst` of its kind were written in this period.
    pub(super) fn admit(&mut self, key: Key, event: T, burst: u32, now: Instant) -> Option<T> {
        let key = if self.0.len() >= MAX_KEYS && !self.0.contains_key(&key) {
            Key { socket: None, kind: "other", detail: "" }
        } else {
            key
        };
        let kind = self.0.entry(key).or_insert_with(|| Kind { since: now, left: burst, counted: None });
        if kind.counted.is_none() && now.saturating_duration_since(kind.since) >= PERIOD {
            (kind.since, kind.left) = (now, burst);
        }
        if kind.left > 0 {
            kind.left -= 1;
            return Some(event);
        }
        let count = kind.counted.as_ref().map_or(0, |counted| counted.count) + 1;
        kind.counted = Some(Repeated { last: event, count });
        None
    }

    /// Takes the counts whose period is over. A kind of which nothing was counted in a whole period is forgotten.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Repeated<T>> {
        let mut due = Vec::new();
        self.0.retain(|_, kind| {
            if now.saturating_duration_since(kind.since) < PERIOD {
                return true;
            }
            let counted = kind.counted.take();
            // The next event of it is counted again.
            (kind.since, kind.left) = (now, 0);
            let is_current = counted.is_some();
            due.extend(counted);
            is_current
        });
        due
    }

    /// Takes the counts of one socket.
    pub(super) fn take_counts(&mut self, socket: &Option<PathBuf>) -> Vec<Repeated<T>> {
        let of_it = self.0.iter_mut().filter(|(key, _)| key.socket == *socket);
        of_it.filter_map(|(_, kind)| kind.counted.take()).collect()
    }

    /// Takes all counts.
    pub(super) fn take_all(&mut self) -> Vec<Repeated<T>> {
        std::mem::take(&mut self.0).into_values().filter_map(|kind| kind.counted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(detail: &'static str) -> Key {
        Key { socket: None, kind: "kind", detail }
    }

    #[test]
    fn the_first_events_are_written_and_the_others_counted_once_a_period() {
        let (mut repeats, mut now) = (Repeats::default(), Instant::now());
        let written = (0..100_000).filter(|at| repeats.admit(key(""), *at, 2, now).is_some()).count();
        assert_eq!(written, 2);
        assert!(repeats.due(now).is_empty());
        for _ in 0..3 {
            now += PERIOD;
            let due = repeats.due(now);
            assert_eq!((due.len(), due[0].last), (1, 99_999));
            assert!(
                (0..100_000).all(|at| repeats.admit(key(""), at, 2, now).is_none()),
                "as long as it goes on"
            );
        }
        assert_eq!(repeats.take_all()[0].count, 100_000);
    }

    #[test]
    fn a_kind_that_was_quiet_for_a_period_is_written_at_once_again() {
        let (mut repeats, mut now) = (Repeats::default(), Instant::now());
        assert!(repeats.admit(key(""), 0, 1, now).is_some());
        assert!(repeats.admit(key(""), 0, 1, now).is_none());
        now += PERIOD;
        assert_eq!(repeats.due(now).len(), 1);
        now += PERIOD;
        assert!(repeats.due(now).is_empty() && repeats.0.is_empty());
        assert!(repeats.admit(key(""), 0, 1, now).is_some());
    }

    #[test]
    fn the_number_of_kinds_is_bounded() {
        let (mut repeats, now) = (Repeats::default(), Instant::now());
        for at in 0..3 * MAX_KEYS {
            let key = Key { socket: Some(at.to_string().into()), kind: "kind", detail: "" };
            repeats.admit(key, at, 1, now);
        }
        assert!(repeats.0.len() <= MAX_KEYS + 1);
    }
}
