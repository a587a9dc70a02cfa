//! Builds the guest program: static, for the guest's architecture, with a std built from source by a nightly toolchain, because
//! there is no prebuilt std for static ppc64le programs.

use std::path::{Path, PathBuf};

use super::kernel::DistroKernel;
use crate::cache::Cache;
use crate::error::Error;
use crate::tool::run;

const TARGET: &str = "powerpc64le-unknown-linux-gnu";

/// Builds the crate in `source` and returns the program.
///
/// # Errors
/// [`Error::Failed`] with the compiler's output, also if the nightly toolchain or its rust-src is missing.
pub(crate) fn build(source: &Path, cache: &Cache, kernel: &DistroKernel) -> Result<PathBuf, Error> {
    let folder = cache.folder("guest")?;
    let mut cargo = kernel.tools().command("cargo");
    cargo.args(["+nightly", "build", "--release", "--locked", "--quiet"]);
    cargo.args(["-Z", "build-std=std,panic_abort", "--target", TARGET]);
    cargo.arg("--manifest-path").arg(source.join("Cargo.toml")).arg("--target-dir").arg(&folder);
    cargo.env("CARGO_TARGET_POWERPC64LE_UNKNOWN_LINUX_GNU_LINKER", "powerpc64le-linux-gnu-gcc");
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    // Variables set by the cargo that runs this program concern another toolchain and target.
    for key in
        ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTC_WRAPPER", "RUSTDOCFLAGS", "CARGO_ENCODED_RUSTFLAGS"]
    {
        cargo.env_remove(key);
    }
    // From the crate's folder, so that the configuration of the main workspace does not apply.
    run(cargo.current_dir(source))?;
    let program = folder.join(TARGET).join("release/oracle-guest");
    if program.exists() {
        Ok(program)
    } else {
        Err(Error::Missing {
            place: folder,
            what: "the built program oracle-guest".to_owned(),
            remedy: "--fresh builds it anew",
        })
    }
}
