//! A short run of the stress; the program `core-stress` does more.
#![cfg(feature = "native")]

use prereg_core_model::stress::{Plan, Until, run};

#[test]
fn threads_that_race_see_right_addresses_and_leave_nothing() {
    let report = run(Plan { threads: 4, until: Until::Operations(20_000), seed: 1 });
    eprintln!("{report:?}");
    assert!(report.addresses > 0 && report.refused > 0 && report.missed > 0);
}
