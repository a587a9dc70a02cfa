//! Which registered piece of a file serves which part of it: an ordered map of user_segments that never overlap.
//!
//! Plain numbers in, plain numbers out. A stretch begins at its first byte and ends before `end`; its value is the number of
//! the registered piece that shows there. A newer piece shows where an older one was cut away.

use std::collections::BTreeMap;

/// A stretch of a file that a registered piece shows in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shown {
    pub(super) first: u64,
    pub(super) end: u64,
    /// The number of the piece.
    pub(super) extent: u64,
}

/// Stretches of a file by where they begin.
#[derive(Debug, Default)]
pub(super) struct Cover {
    shown: BTreeMap<u64, (u64, u64)>,
}

impl Cover {
    /// Shows `extent` in `[first, end)`, where nothing shows.
    pub(super) fn show(&mut self, first: u64, end: u64, extent: u64) {
        debug_assert!(self.parts(first, end).next().is_none(), "one piece a place");
        self.shown.insert(first, (end, extent));
    }

    /// What shows in `[first, end)`, in order, cut to it.
    pub(super) fn parts(&self, first: u64, end: u64) -> impl Iterator<Item = Shown> + '_ {
        let before = self.shown.range(..first).next_back().filter(|(_, (last, _))| *last > first);
        let inside = self.shown.range(first..end.max(first));
        before.into_iter().chain(inside).map(move |(&from, &(to, extent))| Shown {
            first: from.max(first),
            end: to.min(end),
            extent,
        })
    }

    /// The user_segments of `[first, end)` where nothing shows, in order.
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

    /// The longest stretch of `[0, limit)` around `at`, where nothing shows, in which nothing shows.
    pub(super) fn gap_around(&self, at: u64, limit: u64) -> (u64, u64) {
        let first = self.shown.range(..=at).next_back().map_or(0, |(_, &(end, _))| end);
        let end = self.shown.range(at..).next().map_or(limit, |(&next, _)| next.min(limit));
        (first, end)
    }

    /// Nothing shows in `[first, end)` any more; answers what did.
    pub(super) fn cut(&mut self, first: u64, end: u64) -> Vec<Shown> {
        let hit: Vec<_> = self.parts(first, end).collect();
        for part in &hit {
            // The stretch that the part belongs to.
            let Some((&from, &(to, extent))) = self.shown.range(..=part.first).next_back() else { continue };
            self.shown.remove(&from);
            if from < part.first {
                self.shown.insert(from, (part.first, extent));
            }
            if to > part.end {
                self.shown.insert(part.end, (to, extent));
            }
        }
        hit
    }

    /// `extent`, which showed nothing outside of `[first, end)`, shows nowhere any more.
    pub(super) fn hide(&mut self, extent: u64, first: u64, end: u64) {
        let shown = self.shown.range(first..end).filter(|(_, (_, shown))| *shown == extent);
        let gone: Vec<u64> = shown.map(|(&from, _)| from).collect();
        for from in gone {
            self.shown.remove(&from);
        }
    }

    /// Everything that shows, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = Shown> + '_ {
        self.shown.iter().map(|(&first, &(end, extent))| Shown { first, end, extent })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 24;

    /// One piece's number a page, or none.
    fn flat(cover: &Cover) -> Vec<Option<u64>> {
        let mut pages = vec![None; PAGES as usize];
        for part in cover.all() {
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
            let mut cover = Cover::default();
            let mut model = vec![None; PAGES as usize];
            for (extent, (first, length, what)) in (0u64..).zip(steps) {
                let end = (first + length).min(PAGES);
                let range = first as usize..end as usize;
                let gaps: Vec<u64> = cover.gaps(first, end).into_iter().flat_map(|(a, b)| a..b).collect();
                let empty: Vec<u64> = (first..end).filter(|&page| model[page as usize].is_none()).collect();
                prop_assert_eq!(&gaps, &empty);
                match what {
                    0 => {
                        for (from, to) in cover.gaps(first, end) {
                            let (left, right) = cover.gap_around(from, PAGES);
                            prop_assert!(left <= from && to <= right);
                            prop_assert!((left..right).all(|page| model[page as usize].is_none()));
                            prop_assert!(left == 0 || model[left as usize - 1].is_some());
                            prop_assert!(right == PAGES || model[right as usize].is_some());
                            cover.show(from, to, extent);
                            model[from as usize..to as usize].fill(Some(extent));
                        }
                    }
                    1 => {
                        let cut: Vec<_> =
                            cover.cut(first, end).into_iter().flat_map(|s| (s.first..s.end).map(move |_| s.extent)).collect();
                        let had: Vec<_> = model[range.clone()].iter().copied().flatten().collect();
                        prop_assert_eq!(cut, had);
                        model[range].fill(None);
                    }
                    _ => {
                        if let Some(extent) = model[first as usize] {
                            let shows = |page: &Option<u64>| *page == Some(extent);
                            let from = model.iter().position(shows).map_or(0, |page| page as u64);
                            let to = model.iter().rposition(shows).map_or(0, |page| page as u64 + 1);
                            cover.hide(extent, from, to);
                            for page in &mut model {
                                if *page == Some(extent) {
                                    *page = None;
                                }
                            }
                        }
                    }
                }
                prop_assert_eq!(flat(&cover), model.clone());
            }
        }
    }
}
