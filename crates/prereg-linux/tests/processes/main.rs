//! Real pins observed from outside: the kernel's counters, compaction, `fork`, and processes that are killed.
//!
//! These tests need the process for themselves (VmPin counts per process, and only a process with one thread may fork
//! freely), so they run one at a time without the usual harness. A test that needs another user or a limit runs this
//! program again in a role. A test that this host does not allow is skipped with the reason.
#![expect(
    clippy::unwrap_used,
    reason = "a failed unwrap is a failed test; without the harness this is no test to clippy"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

mod crash;
mod faults;
mod limits;
mod moves;
mod pins;
mod raw;

/// Name and function of a test; `Err` is the reason for skipping it.
type Test = (&'static str, fn() -> Outcome);
type Outcome = Result<(), String>;

/// The environment variable that selects the role of a helper process.
const ROLE: &str = "PREREG_TEST_ROLE";

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(ROLE) {
        return match role.as_str() {
            "limited" => limits::limited(),
            "no-memlock" => limits::no_memlock(),
            "root-without-ipc-lock" => limits::root_without_ipc_lock(),
            "victim" => crash::victim(),
            other => panic!("no such role: {other}"),
        };
    }
    let tests: Vec<Test> = [pins::TESTS, faults::TESTS, limits::TESTS, moves::TESTS, crash::TESTS].concat();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in &tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let (mut passed, mut skipped, mut failed) = (0, 0, Vec::new());
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        match catch_unwind(AssertUnwindSafe(test)) {
            Ok(Ok(())) => {
                println!("test {name} ... ok");
                passed += 1;
            }
            Ok(Err(reason)) => {
                println!("test {name} ... skipped: {reason}");
                skipped += 1;
            }
            Err(_) => {
                println!("test {name} ... FAILED");
                failed.push(name);
            }
        }
    }
    println!("\ntest result: {passed} passed, {skipped} skipped, {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Skips a test that needs root in the initial user namespace.
fn need_root() -> Outcome {
    let report = prereg_linux::HostReport::probe();
    if report.capabilities.sys_admin && report.memlock.privileged {
        Ok(())
    } else {
        Err("needs root: CAP_SYS_ADMIN for page frames, CAP_IPC_LOCK to pass the limit".to_owned())
    }
}

/// Skips a test that needs to pin `bytes`.
fn need_pins(bytes: u64) -> Outcome {
    let report = prereg_linux::HostReport::probe();
    let verdict = report.backend("io-uring").unwrap();
    if !verdict.usable {
        return Err(verdict.why.clone());
    }
    // The kernel charges the ring's own memory too.
    let slack = 1 << 20;
    match verdict.allowance {
        Some(allowance) if allowance < bytes + slack => {
            Err(format!("needs to pin {bytes} bytes; this user may pin {allowance}"))
        }
        _ => Ok(()),
    }
}
