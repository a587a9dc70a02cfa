//! Promised parts of a file: disjoint intervals, each with the number of promises that cover it.
//!
//! A promised part is charged whether it is pinned yet or not, so that memory whose DMA_MAP succeeded can be pinned later.

use std::collections::BTreeMap;

/// End and number of promises (never zero) by first byte; disjoint.
#[derive(Debug, Default)]
pub(super) struct Promises {
    intervals: BTreeMap<u64, (u64, u64)>,
}

impl Promises {
    /// Splits the interval that contains `at` and begins before it.
    fn cut_at(&mut self, at: u64) {
        if let Some((_, (end, count))) = self.intervals.range_mut(..at).next_back() {
            if *end > at {
                let rest = (*end, *count);
                *end = at;
                self.intervals.insert(at, rest);
            }
        }
    }

    /// Adds a promise of `[first, end)`.
    pub(super) fn add(&mut self, first: u64, end: u64) {
        self.cut_at(first);
        self.cut_at(end);
        let mut at = first;
        while at < end {
            match self.intervals.range_mut(at..end).next() {
                Some((&from, (to, count))) if from == at => {
                    *count += 1;
                    at = *to;
                }
                next => {
                    let to = next.map_or(end, |(&from, _)| from);
                    self.intervals.insert(at, (to, 1));
                    at = to;
                }
            }
        }
        self.join(first, end);
    }

    /// Removes a promise that was added with exactly this range.
    pub(super) fn remove(&mut self, first: u64, end: u64) {
        self.cut_at(first);
        self.cut_at(end);
        let inside: Vec<u64> = self.intervals.range(first..end).map(|(&from, _)| from).collect();
        for from in inside {
            if let Some((_, count)) = self.intervals.get_mut(&from) {
                *count -= 1;
                if *count == 0 {
                    self.intervals.remove(&from);
                }
            }
        }
        self.join(first, end);
    }

    /// Joins adjacent intervals with equal numbers at both ends of a changed range, which bounds the number of intervals.
    fn join(&mut self, first: u64, end: u64) {
        for at in [first, end] {
            let Some(&(to, count)) = self.intervals.get(&at) else { continue };
            let Some((_, (before, other))) = self.intervals.range_mut(..at).next_back() else { continue };
            if *before == at && *other == count {
                *before = to;
                self.intervals.remove(&at);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.intervals.is_empty()
    }

    /// The promised parts of `[first, end)`, in order, clipped to it.
    pub(super) fn parts(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let before = self.intervals.range(..first).next_back().filter(move |(_, (to, _))| *to > first);
        let inside = self.intervals.range(first..end.max(first));
        before.into_iter().chain(inside).map(move |(&from, &(to, _))| (from.max(first), to.min(end)))
    }

    /// Whether any of `[first, end)` is promised.
    pub(super) fn touch(&self, first: u64, end: u64) -> bool {
        self.parts(first, end).next().is_some()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.intervals.iter().map(|(&first, &(end, _))| (first, end))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 24;

    proptest! {
        #[test]
        fn they_are_an_array_of_counts_told_shorter(
            steps in proptest::collection::vec((0u64..PAGES, 1u64..PAGES, any::<bool>()), 1..60)
        ) {
            let mut promises = Promises::default();
            let mut model = [0u64; PAGES as usize];
            let mut live: Vec<(u64, u64)> = Vec::new();
            for (first, length, is_new) in steps {
                if is_new || live.is_empty() {
                    let end = (first + length).min(PAGES);
                    promises.add(first, end);
                    live.push((first, end));
                    model[first as usize..end as usize].iter_mut().for_each(|count| *count += 1);
                } else {
                    let (first, end) = live.swap_remove((first as usize) % live.len());
                    promises.remove(first, end);
                    model[first as usize..end as usize].iter_mut().for_each(|count| *count -= 1);
                }
                let mut flat = [0u64; PAGES as usize];
                for (&from, &(to, count)) in &promises.intervals {
                    prop_assert!(from < to && count > 0);
                    flat[from as usize..to as usize].iter_mut().for_each(|page| *page += count);
                }
                prop_assert_eq!(flat, model);
                prop_assert!(promises.intervals.len() <= 2 * live.len(), "cuts go again");
                let promised: u64 = promises.parts(3, 17).map(|(from, to)| to - from).sum();
                prop_assert_eq!(promised, model[3..17].iter().filter(|count| **count > 0).count() as u64);
                prop_assert_eq!(promises.touch(3, 17), promised > 0);
            }
            for (first, end) in live {
                promises.remove(first, end);
            }
            prop_assert!(promises.is_empty());
        }
    }
}
