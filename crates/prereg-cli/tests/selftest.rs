//! Tests of the command `prereg selftest` without a device; `cargo xtask vm` runs it with devices.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

use std::process::{Command, Output};

use serde_json::Value;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_prereg")).args(arguments).output().unwrap()
}

fn verdict<'a>(report: &'a Value, name: &str) -> &'a str {
    let steps = report["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).map_or("missing", |step| step["verdict"].as_str().unwrap())
}

#[test]
fn io_uring_passes_every_step_without_a_device() {
    let output = run(&["selftest", "--backend", "io-uring", "--size", "4M", "--maps", "10000", "--json"]);
    if output.status.code() == Some(2) {
        eprintln!("skipped: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{report:#}");
    assert_eq!(report["passed"], true);
    for name in ["register", "busy", "unregister", "read-only", "no access", "past the end", "nothing left"] {
        assert_eq!(verdict(&report, name), "passed", "{report:#}");
    }
    assert_eq!(verdict(&report, "dma"), "skipped");
    assert_ne!(verdict(&report, "no system calls"), "failed");
}

#[test]
fn a_back_end_that_cannot_be_opened_exits_with_2_and_a_remedy() {
    for backend in ["vfio-type1", "vfio-spapr-v2", "iommufd"] {
        let output = run(&["selftest", "--backend", backend, "--device", "ffff:ff:1f.7"]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(&format!("opening {backend} for ffff:ff:1f.7")), "{text}");
        assert!(text.contains("no PCI device") || text.contains("/dev/iommu"), "{text}");
    }
    let output = run(&["selftest", "--backend", "vfio-type1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--device"));
}
