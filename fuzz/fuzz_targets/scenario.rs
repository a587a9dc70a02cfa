//! Any text as scenarios: every line is answered, nothing is left pinned or charged, whatever the page size.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prereg::Granule;
use prereg_cli::conform::deviations::Deviations;
use prereg_cli::conform::judge::{Answers, Judge};
use prereg_cli::conform::run::run;
use prereg_cli::conform::scenario::ScenarioFile;

fuzz_target!(|text: &[u8]| {
    let text = String::from_utf8_lossy(text);
    let file = ScenarioFile::parse(&text);
    for granule in [Granule::K4, Granule::K64] {
        for scenario in &file.scenarios {
            let transcript = run(scenario, file.machine, granule).unwrap();
            assert_eq!(transcript.left, None, "{transcript}");
        }
    }
    // The same bytes as answers and as rules: read or refused.
    let _ = Deviations::parse(&text);
    if let Ok(deviations) = Deviations::parse(Deviations::BUILT_IN) {
        let mut judge = Judge::new(&deviations, Answers::parse(&text));
        for scenario in &file.scenarios {
            judge.judge(&run(scenario, file.machine, Granule::K4).unwrap());
        }
    }
});
