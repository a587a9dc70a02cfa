//! The promise of real mode in the plain test run: a million maps and unmaps, or as many as `PREREG_PROMISE_MAPS` says.

use std::process::Command;

#[test]
fn mapping_faults_nothing_allocates_nothing_and_calls_nobody() {
    let count = std::env::var("PREREG_PROMISE_MAPS").unwrap_or_else(|_| "1000000".to_owned());
    let output = Command::new(env!("CARGO_BIN_EXE_promise")).arg(&count).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    print!("{said}");
    assert!(
        output.status.success(),
        "{:?}: {said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    for line in ["refused: 0", "page faults: 0", "allocations: 0", "system calls: "] {
        assert!(said.contains(line), "{line}");
    }
}
