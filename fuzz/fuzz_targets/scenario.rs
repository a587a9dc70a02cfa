//! Arbitrary text as scenarios: every line has an answer, and nothing is left pinned or charged, with both page sizes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prereg::Granule;
use prereg_conformance::compare::{Answers, Comparator};
use prereg_conformance::deviations::Deviations;
use prereg_conformance::machine::Machine;
use prereg_conformance::run::run;
use prereg_scenario::script::Script;

fuzz_target!(|text: &[u8]| {
    let text = String::from_utf8_lossy(text);
    let script = Script::parse(&text);
    let machine = Machine::of_script(&script);
    for granule in [Granule::K4, Granule::K64] {
        for scenario in &script.scenarios {
            let transcript = run(scenario, machine, granule).unwrap();
            assert_eq!(transcript.leak, None, "{transcript}");
        }
    }
    // The bytes as answers and as rules: parsed or refused.
    let _ = Deviations::parse(&text);
    if let Ok(deviations) = Deviations::parse(Deviations::BUILT_IN) {
        let mut comparator = Comparator::new(&deviations, Answers::parse(&text));
        for scenario in &script.scenarios {
            comparator.compare(&run(scenario, machine, Granule::K4).unwrap());
        }
    }
});
