//! Builds programs for guests: static, so that a guest needs only the file.
//!
//! The machine's toolchain builds for PCs. Stable toolchains have no std for static POWER programs: a nightly one builds it
//! from source, and Debian's cross compiler links.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::error::Error;
use crate::tool::{Tools, run};

/// A target with its build folder.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    triple: &'static str,
    folder: PathBuf,
    /// The folder in which cargo runs, whose configuration applies.
    from: PathBuf,
    /// The cross compiler, used with a std built from source.
    cross: Option<Tools>,
}

impl Target {
    /// A PC with Linux.
    pub(crate) fn pc(from: &Path, folder: PathBuf) -> Self {
        Self { triple: "x86_64-unknown-linux-gnu", folder, from: from.to_owned(), cross: None }
    }

    /// Little-endian POWER with Linux, with the cross compiler in `tools`.
    pub(crate) fn power(from: &Path, folder: PathBuf, tools: Tools) -> Self {
        Self { triple: "powerpc64le-unknown-linux-gnu", folder, from: from.to_owned(), cross: Some(tools) }
    }

    fn cargo(&self, verb: &str, manifest: &Path) -> Command {
        let mut cargo = match &self.cross {
            Some(tools) => {
                let mut cargo = tools.command("cargo");
                cargo.args(["+nightly", verb, "-Z", "build-std=std,panic_abort"]);
                let compiler = "powerpc64le-linux-gnu-gcc";
                cargo.env("CARGO_TARGET_POWERPC64LE_UNKNOWN_LINUX_GNU_LINKER", compiler);
                cargo.env("CC_powerpc64le_unknown_linux_gnu", compiler);
                cargo.env("AR_powerpc64le_unknown_linux_gnu", "powerpc64le-linux-gnu-ar");
                cargo
            }
            None => {
                let mut cargo = Command::new("cargo");
                cargo.arg(verb);
                cargo
            }
        };
        cargo.args(["--release", "--locked", "--quiet", "--target", self.triple]);
        cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(&self.folder);
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        // Nothing is measured with these programs; short builds matter.
        for (key, value) in [("LTO", "off"), ("CODEGEN_UNITS", "16"), ("DEBUG", "0"), ("STRIP", "symbols")] {
            cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
        }
        // Variables set by the cargo that runs this program concern another build.
        for key in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTC_WRAPPER", "RUSTDOCFLAGS"] {
            cargo.env_remove(key);
        }
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS").current_dir(&self.from);
        cargo
    }
}

/// Builds the program `name` of `package`, or of the only package of `manifest`.
///
/// # Errors
/// [`Error::Failed`] with the compiler's output.
pub(crate) fn build(
    target: &Target,
    manifest: &Path,
    package: Option<&str>,
    name: &str,
) -> Result<PathBuf, Error> {
    let mut cargo = target.cargo("build", manifest);
    cargo.args(["--bin", name]);
    if let Some(package) = package {
        cargo.args(["--package", package]);
    }
    run(&mut cargo)?;
    Ok(target.folder.join(target.triple).join("release").join(name))
}

/// Builds the test programs of `package` that cargo's arguments `chosen` name.
///
/// # Errors
/// As [`build`].
pub(crate) fn tests(
    target: &Target,
    manifest: &Path,
    package: &str,
    chosen: &[&str],
) -> Result<Vec<PathBuf>, Error> {
    let mut cargo = target.cargo("test", manifest);
    cargo.args(["--package", package, "--no-run", "--message-format=json"]).args(chosen);
    Ok(executables(&run(&mut cargo)?))
}

/// Compiles the test program `name` of the C library, the package `prereg-capi`, with the library in it.
///
/// # Errors
/// As [`build`].
pub(crate) fn c_test(target: &Target, checkout: &Path, name: &str) -> Result<PathBuf, Error> {
    let mut cargo = target.cargo("rustc", &checkout.join("Cargo.toml"));
    run(cargo.args(["--package", "prereg-capi", "--lib", "--crate-type", "staticlib"]))?;
    let package = checkout.join("crates/prereg-capi");
    let built = target.folder.join(target.triple).join("release");
    let program = built.join(name);
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu99", "-O1", "-Wall", "-Wextra", "-static", "-o"]).arg(&program);
    cc.arg("-I").arg(package.join("include")).arg(package.join(format!("tests/c/{name}.c")));
    cc.arg(built.join("libprereg_c.a")).args(["-lpthread", "-ldl", "-lm", "-lgcc_eh", "-lc"]);
    run(&mut cc)?;
    Ok(program)
}

/// The programs named in cargo's messages, one message per line.
fn executables(messages: &str) -> Vec<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let tests = messages.filter(|message| message["profile"]["test"] == true);
    tests.filter_map(|message| message["executable"].as_str().map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_taken_from_the_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"profile\":{\"test\":true},\"executable\":\"/t/a-1\"}\n\
                        {\"reason\":\"compiler-artifact\",\"profile\":{\"test\":false},\"executable\":\"/t/b\"}\n\
                        {\"reason\":\"compiler-artifact\",\"profile\":{\"test\":true},\"executable\":null}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\nnoise\n";
        assert_eq!(executables(messages), [PathBuf::from("/t/a-1")]);
    }
}
