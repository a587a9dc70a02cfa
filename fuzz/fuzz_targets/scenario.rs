//! Any text as scenarios: every line is answered, nothing is left pinned or charged, whatever the page size.

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
    // The same bytes as answers and as rules: read or refused.
    let _ = Deviations::parse(&text);
    if let Ok(deviations) = Deviations::parse(Deviations::BUILT_IN) {
        let mut comparator = Comparator::new(&deviations, Answers::parse(&text));
        for scenario in &script.scenarios {
            comparator.compare(&run(scenario, machine, Granule::K4).unwrap());
        }
    }
});
