//! A sample with a fixed seed, so that a run can be repeated.

/// For SplitMix64; arbitrary.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// At most `count` of `items`, in order; equal for equal items.
pub(crate) fn sample<T>(items: Vec<T>, count: usize) -> Vec<T> {
    let mut random = SEED;
    let mut left = items.len();
    let mut wanted = count.min(left);
    items
        .into_iter()
        .filter(|_| {
            random = random.wrapping_add(SEED);
            let mut bits = random;
            bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bits ^= bits >> 31;
            // Each remaining item is taken with the probability wanted / left, so that exactly `wanted` are taken.
            let taken = bits % (left as u64) < wanted as u64;
            left -= 1;
            wanted -= usize::from(taken);
            taken
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_size_asked_for_and_is_the_same_every_time() {
        for count in [0, 1, 7, 99, 100, 200] {
            let taken = sample((0..100).collect::<Vec<i32>>(), count);
            assert_eq!(taken.len(), count.min(100));
            assert!(taken.is_sorted());
            assert_eq!(taken, sample((0..100).collect(), count));
        }
    }

    #[test]
    fn a_sample_is_spread_over_the_items() {
        let taken = sample((0..1000).collect::<Vec<i32>>(), 100);
        for part in 0..4 {
            let inside = taken.iter().filter(|&&item| item / 250 == part).count();
            assert!((10..=40).contains(&inside), "{inside} of the quarter {part}");
        }
    }
}
