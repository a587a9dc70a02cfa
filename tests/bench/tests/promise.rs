//! The no-fault guarantee in the ordinary test run: a million maps and unmaps, or `PREREG_PROMISE_MAPS` of them.

#![expect(clippy::unwrap_used, reason = "a test says by panicking")]

use std::process::Command;

fn promise(options: &[&str]) -> String {
    let count = std::env::var("PREREG_PROMISE_MAPS").unwrap_or_else(|_| "1000000".to_owned());
    let output = Command::new(env!("CARGO_BIN_EXE_promise")).args(options).arg(&count).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{said}");
    assert!(
        output.status.success(),
        "{:?}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

fn holds(said: &str) {
    for line in ["refused: 0", "page faults: 0", "allocations: 0", "system calls: "] {
        assert!(said.contains(line), "{line}");
    }
}

#[test]
fn mapping_faults_nothing_allocates_nothing_and_calls_nobody() {
    holds(&promise(&[]));
}

#[test]
fn nor_while_the_kernel_takes_pages_away_from_a_group_that_is_too_small() {
    let said = promise(&["--squeezed"]);
    match said.lines().find(|line| line.starts_with("skipped: ")) {
        Some(line) => eprintln!("{line}"),
        None => holds(&said),
    }
}
