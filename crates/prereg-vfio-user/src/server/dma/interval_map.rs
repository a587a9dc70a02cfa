//! An ordered map of disjoint intervals `[first, end)`, each with the number of an extent.
//!
//! It records which registered extent serves which part of a file; a newer extent serves where an older one was cut.

use std::collections::BTreeMap;

/// An interval of a file served by an extent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Interval {
    pub(super) first: u64,
    pub(super) end: u64,
    /// The number of the extent.
    pub(super) extent: u64,
}

/// End and extent by first byte.
#[derive(Debug, Default)]
pub(super) struct IntervalMap {
    intervals: BTreeMap<u64, (u64, u64)>,
}

impl IntervalMap {
    /// Adds `[first, end)`, which is free, for `extent`.
    pub(super) fn insert(&mut self, first: u64, end: u64, extent: u64) {
        debug_assert!(self.parts(first, end).next().is_none(), "one piece a place");
        self.intervals.insert(first, (end, extent));
    }

    /// The intervals that intersect `[first, end)`, in order, clipped to it.
    pub(super) fn parts(&self, first: u64, end: u64) -> impl Iterator<Item = Interval> + '_ {
        let before = self.intervals.range(..first).next_back().filter(|(_, (last, _))| *last > first);
        let inside = self.intervals.range(first..end.max(first));
        before.into_iter().chain(inside).map(move |(&from, &(to, extent))| Interval {
            first: from.max(first),
            end: to.min(end),
            extent,
        })
    }

    /// The gaps in `[first, end)`, in order.
    pub(super) fn gaps(&self, first: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = first;
        for part in self.parts(first, end) {
            if part.first > at {
                gaps.push((at, part.first));
            }
            at = part.end;
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// The gap of `[0, limit)` around `at`, which is free.
    pub(super) fn gap_around(&self, at: u64, limit: u64) -> (u64, u64) {
        let first = self.intervals.range(..=at).next_back().map_or(0, |(_, &(end, _))| end);
        let end = self.intervals.range(at..).next().map_or(limit, |(&next, _)| next.min(limit));
        (first, end)
    }

    /// Removes `[first, end)`; returns the removed parts.
    pub(super) fn remove(&mut self, first: u64, end: u64) -> Vec<Interval> {
        let hit: Vec<_> = self.parts(first, end).collect();
        for part in &hit {
            // The interval that contains the part.
            let Some((&from, &(to, extent))) = self.intervals.range(..=part.first).next_back() else {
                continue;
            };
            self.intervals.remove(&from);
            if from < part.first {
                self.intervals.insert(from, (part.first, extent));
            }
            if to > part.end {
                self.intervals.insert(part.end, (to, extent));
            }
        }
        hit
    }

    /// Removes the intervals of `extent`, all of which lie in `[first, end)`.
    pub(super) fn remove_value(&mut self, extent: u64, first: u64, end: u64) {
        let intervals = self.intervals.range(first..end).filter(|(_, (_, intervals))| *intervals == extent);
        let gone: Vec<u64> = intervals.map(|(&from, _)| from).collect();
        for from in gone {
            self.intervals.remove(&from);
        }
    }

    /// All intervals, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = Interval> + '_ {
        self.intervals.iter().map(|(&first, &(end, extent))| Interval { first, end, extent })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 24;

    /// The extent of each page.
    fn flat(interval_map: &IntervalMap) -> Vec<Option<u64>> {
        let mut pages = vec![None; PAGES as usize];
        for part in interval_map.all() {
            for page in part.first..part.end {
                assert_eq!(pages[page as usize], None, "no page twice");
                pages[page as usize] = Some(part.extent);
            }
        }
        pages
    }

    proptest! {
        #[test]
        fn it_is_an_array_of_pages_told_shorter(
            steps in proptest::collection::vec((0u64..PAGES, 1u64..PAGES, 0u8..3), 1..40)
        ) {
            let mut interval_map = IntervalMap::default();
            let mut model = vec![None; PAGES as usize];
            for (extent, (first, length, what)) in (0u64..).zip(steps) {
                let end = (first + length).min(PAGES);
                let range = first as usize..end as usize;
                let gaps: Vec<u64> = interval_map.gaps(first, end).into_iter().flat_map(|(a, b)| a..b).collect();
                let empty: Vec<u64> = (first..end).filter(|&page| model[page as usize].is_none()).collect();
                prop_assert_eq!(&gaps, &empty);
                match what {
                    0 => {
                        for (from, to) in interval_map.gaps(first, end) {
                            let (left, right) = interval_map.gap_around(from, PAGES);
                            prop_assert!(left <= from && to <= right);
                            prop_assert!((left..right).all(|page| model[page as usize].is_none()));
                            prop_assert!(left == 0 || model[left as usize - 1].is_some());
                            prop_assert!(right == PAGES || model[right as usize].is_some());
                            interval_map.insert(from, to, extent);
                            model[from as usize..to as usize].fill(Some(extent));
                        }
                    }
                    1 => {
                        let remove: Vec<_> =
                            interval_map.remove(first, end).into_iter().flat_map(|s| (s.first..s.end).map(move |_| s.extent)).collect();
                        let had: Vec<_> = model[range.clone()].iter().copied().flatten().collect();
                        prop_assert_eq!(remove, had);
                        model[range].fill(None);
                    }
                    _ => {
                        if let Some(extent) = model[first as usize] {
                            let shows = |page: &Option<u64>| *page == Some(extent);
                            let from = model.iter().position(shows).map_or(0, |page| page as u64);
                            let to = model.iter().rposition(shows).map_or(0, |page| page as u64 + 1);
                            interval_map.remove_value(extent, from, to);
                            for page in &mut model {
                                if *page == Some(extent) {
                                    *page = None;
                                }
                            }
                        }
                    }
                }
                prop_assert_eq!(flat(&interval_map), model.clone());
            }
        }
    }
}
