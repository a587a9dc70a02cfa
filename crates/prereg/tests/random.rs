//! Random operations on the whole public API, each result compared with a reference model (see `prereg-core-model`).
//!
//! Every case runs twice: with a barrier, so that mapping has no fence, and without.

use prereg::Granule;
use prereg_core_model::{Case, Fence, Op, Random, Summary, run_case};

fn in_both_ways(ops: &[Op], granule: Granule, small: bool, aligned: bool) -> Result<Summary, String> {
    run_case(ops, Case { fence: Fence::Full, granule, small, aligned })?;
    run_case(ops, Case { fence: Fence::Compiler, granule, small, aligned })
}

#[cfg(not(miri))]
mod with_shrinking {
    use proptest::prelude::*;
    use proptest::test_runner::TestCaseError;

    use super::*;

    fn any_op() -> impl Strategy<Value = Op> {
        any::<(u8, u16, u16, u16)>().prop_map(|(verb, a, b, c)| Op::new(verb, a, b, c))
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 4096, ..ProptestConfig::with_cases(200) })]

        #[test]
        fn every_answer_is_the_models(
            ops in prop::collection::vec(any_op(), 1..160),
            large in any::<bool>(),
            aligned in any::<bool>(),
        ) {
            let granule = if large { Granule::K64 } else { Granule::K4 };
            in_both_ways(&ops, granule, false, aligned).map_err(TestCaseError::fail)?;
        }
    }
}

/// A number that depends on the seed of the interpreter (`-Zmiri-many-seeds`).
fn interpreter_seed() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// `PREREG_MODEL_SEEDS` seeds from `PREREG_MODEL_SEED` on; under miri one derived from its own.
#[test]
fn every_answer_is_the_models_for_given_seeds() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first =
        number("PREREG_MODEL_SEED").unwrap_or_else(|| if cfg!(miri) { interpreter_seed() >> 1 } else { 1 });
    let seeds = number("PREREG_MODEL_SEEDS").unwrap_or(if cfg!(miri) { 1 } else { 20 });
    let small = cfg!(miri);
    let mut addresses = 0;
    // A short sequence may map nothing: another seed follows then, so that each run compares addresses.
    for (done, seed) in (0..seeds + 100).zip(first..) {
        if done >= seeds && addresses > 0 {
            break;
        }
        let mut random = Random::new(seed);
        let granule = if random.one_in(3) { Granule::K64 } else { Granule::K4 };
        let aligned = random.one_in(2);
        let ops: Vec<Op> = (0..if small { 40 } else { 300 }).map(|_| Op::random(&mut random)).collect();
        match in_both_ways(&ops, granule, small, aligned) {
            Ok(done) => addresses += done.addresses,
            Err(wrong) => panic!("seed {seed}: {wrong}"),
        }
    }
    assert!(addresses > 0, "nothing was mapped");
}
