//! Random scripts, checked by the judge that the fuzzer uses too.

use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::judge::judge;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_a_client_sends_the_server_stands(script in prop::collection::vec(any::<u8>(), 0..3000)) {
        judge(&script);
    }
}

#[test]
fn the_scripts_reach_what_they_are_for() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let scripts = prop::collection::vec(any::<u8>(), 2000..3000);
    let (mut replies, mut failures, mut transfers) = (0, 0, 0);
    for _ in 0..200 {
        let script = scripts.new_tree(&mut runner).unwrap().current();
        let verdict = judge(&script);
        replies += verdict.replies;
        failures += verdict.failures;
        transfers += verdict.transfers;
    }
    assert!(replies > 2000 && failures * 10 > replies && transfers > 20, "{replies} {failures} {transfers}");
    assert!(failures * 10 < replies * 9, "{failures} of {replies} failed");
}
