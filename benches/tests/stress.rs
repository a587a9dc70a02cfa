//! A second of the stress test; `stress --seconds N` does more.

use std::time::Duration;

#[test]
fn a_second_of_everything_at_once_leaves_nothing() {
    let report = prereg_benches::stress::run(Duration::from_secs(1));
    eprintln!("{report:?}");
    assert!(report.registered > 0 && report.mapped > 0);
}
