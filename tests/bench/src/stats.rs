//! Statistics of repeated measurements.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Nanoseconds per page: median, minimum and maximum of several measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

impl Summary {
    /// Summarises `times`, each for `pages` pages; `None` if there are none.
    #[must_use]
    pub fn of(times: &[Duration], pages: u64) -> Option<Self> {
        let mut each: Vec<f64> =
            times.iter().map(|took| took.as_nanos() as f64 / pages.max(1) as f64).collect();
        each.sort_by(f64::total_cmp);
        let (min, max) = (*each.first()?, *each.last()?);
        let median = median(&each)?;
        Some(Self { median, min, max })
    }
}

/// The median of the pairwise ratios of `these` to `those`; `None` if there are none.
///
/// Pairs are neighbours in time, because temporary load on the machine slows both down.
#[must_use]
pub fn median_ratio(these: &[Duration], those: &[Duration]) -> Option<f64> {
    let pairs = these.iter().zip(those).filter(|(_, those)| !those.is_zero());
    let mut ratios: Vec<f64> = pairs.map(|(this, that)| this.as_secs_f64() / that.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    median(&ratios)
}

/// The median of sorted numbers.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some((sorted[sorted.len() / 2 - 1] + upper) / 2.0) }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, min, max } = self;
        f.pad(&format!("{median:.1} ({min:.1}..{max:.1})"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(ns: &[u64], pages: u64) -> Option<Summary> {
        Summary::of(&ns.iter().map(|&ns| Duration::from_nanos(ns)).collect::<Vec<_>>(), pages)
    }

    #[test]
    fn the_middle_and_the_ends_are_for_each_page() {
        assert_eq!(spread(&[30, 10, 20], 10), Some(Summary { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(spread(&[40, 10, 20, 30], 1), Some(Summary { median: 25.0, min: 10.0, max: 40.0 }));
        assert_eq!(spread(&[], 1), None);
    }

    #[test]
    fn a_ratio_is_the_middle_of_its_pairs() {
        let ns = |ns: &[u64]| ns.iter().map(|&ns| Duration::from_nanos(ns)).collect::<Vec<_>>();
        // The machine was ten times slower during the second pair, which the ratio does not show.
        assert_eq!(median_ratio(&ns(&[20, 200, 30]), &ns(&[10, 100, 10])), Some(2.0));
        assert_eq!(median_ratio(&ns(&[20]), &ns(&[0])), None);
        assert_eq!(median_ratio(&[], &[]), None);
    }
}
