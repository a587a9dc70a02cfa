//! Builds the `no_std` crates for a bare target, which has no `std` that they could use by accident.

use std::process::{Command, Stdio};

use crate::diagnostic::Diagnostic;
use crate::packages::Metadata;

/// A target without an operating system that rustc knows by name.
const TARGET: &str = "x86_64-unknown-none";

/// The `no_std` crates.
const CRATES: [&str; 2] = ["prereg", "prereg-iommu"];

/// The result of the build.
#[derive(Debug)]
pub(crate) enum Outcome {
    Built(Vec<&'static str>),
    Skipped(String),
    Broken(Vec<Diagnostic>),
}

/// Builds every crate of [`CRATES`] that the workspace has, without default features.
///
/// Needs a nightly toolchain with the component `rust-src`, because `core` and `alloc` are built too.
pub(crate) fn build(metadata: &Metadata) -> Outcome {
    if let Some(reason) = missing() {
        return Outcome::Skipped(reason);
    }
    let (mut built, mut broken) = (Vec::new(), Vec::new());
    for name in
        CRATES.into_iter().filter(|name| metadata.packages.iter().any(|package| package.name == *name))
    {
        let status = nightly("cargo")
            .args(["build", "-Z", "build-std=core,alloc", "--target", TARGET])
            .args(["--package", name, "--no-default-features"])
            .current_dir(&metadata.workspace_root)
            .status();
        match status {
            Ok(status) if status.success() => built.push(name),
            Ok(_) => broken.push(Diagnostic::in_crate(
                name,
                format!("does not build for {TARGET} without default features"),
            )),
            Err(error) => {
                broken.push(Diagnostic::in_crate(name, format!("cargo could not be started: {error}")));
            }
        }
    }
    if broken.is_empty() { Outcome::Built(built) } else { Outcome::Broken(broken) }
}

/// The reason why the build is impossible here, if it is.
fn missing() -> Option<String> {
    let output = nightly("rustc").args(["--print", "sysroot"]).stderr(Stdio::null()).output().ok();
    let Some(output) = output.filter(|output| output.status.success()) else {
        return Some(
            "no nightly toolchain; `rustup toolchain install nightly --component rust-src`".to_owned(),
        );
    };
    let sysroot = std::path::PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if sysroot.join("lib/rustlib/src/rust/library/core").is_dir() {
        None
    } else {
        Some("nightly has no rust-src; `rustup component add --toolchain nightly rust-src`".to_owned())
    }
}

/// A tool of the nightly toolchain, independent of the toolchain that started this program.
fn nightly(tool: &str) -> Command {
    let mut command = Command::new(tool);
    command.arg("+nightly").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
    command
}
