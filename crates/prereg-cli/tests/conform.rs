//! Tests of the command `prereg conform`; the comparison is tested in prereg-conformance.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn conformance(path: &str) -> PathBuf {
    Path::new("../../conformance").join(path)
}

fn prereg(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_prereg"))
        .arg("conform")
        .args(arguments)
        .output()
        .expect("running prereg")
}

#[test]
fn the_command_prints_totals_and_exits_by_them() {
    let scenarios = conformance("scenarios/vfio.scn");
    let answers = conformance("answers/vfio-64k.txt");
    let (scenarios, answers) = (scenarios.to_str().unwrap(), answers.to_str().unwrap());
    let right = prereg(&["--page-size", "64k", "--answers", answers, "--json", scenarios]);
    let totals: serde_json::Value = serde_json::from_slice(&right.stdout).unwrap();
    assert_eq!((right.status.code(), &totals["unexplained"]), (Some(0), &serde_json::json!(0)));
    assert_eq!(totals["scenarios"], 88);
    assert!(totals["explained"]["unregister-mapped"].as_u64() > Some(0));
    // Answers for another page size differ.
    let wrong = prereg(&["--page-size", "4k", "--answers", answers, scenarios]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stdout).contains("UNEXPLAINED"));
    let plain = prereg(&[scenarios]);
    assert_eq!(plain.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&plain.stdout).contains("\n010 check_ext c0 2 => ok lck=0 ret=1\n"));
    assert_eq!(prereg(&["--json", scenarios]).status.code(), Some(2));
    assert_eq!(prereg(&["/nowhere.scn"]).status.code(), Some(2));
}
