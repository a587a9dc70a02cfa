//! Small parts for tests that need a whole machine: Debian packages, an initramfs, a run of QEMU.
//!
//! `cache` is where downloads and builds stay between runs; `tool` runs other programs; `apt` asks apt for packages
//! without touching the machine's own state; `root` starts programs of another release than the machine's; `image` and
//! `drivers` take a kernel and its modules out of their packing; `cpio` writes an initramfs; `machine` is a running
//! emulator with its console, `qmp` its other line, `qemu` a run of it until it says that it is done. Everything works
//! for an ordinary user: packages are unpacked, never installed.

pub(crate) mod apt;
pub(crate) mod cache;
pub(crate) mod cpio;
pub(crate) mod drivers;
pub(crate) mod image;
pub(crate) mod machine;
pub(crate) mod qemu;
pub(crate) mod qmp;
pub(crate) mod root;
pub(crate) mod tool;

use std::io;
use std::path::{Path, PathBuf};

/// Why a machine could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{program} could not be started: {source}; is it installed?")]
    Start { program: String, source: io::Error },
    #[error("{command}\nfailed ({status}):\n{output}")]
    Failed { command: String, status: String, output: String },
    #[error(
        "apt is set up for no Debian mirror: `apt-get update --print-uris` names none; add one to its sources"
    )]
    NoMirror,
    #[error("package {name} is not in suite {suite} of the machine's mirror")]
    NoPackage { name: String, suite: String },
    #[error("{place} has no {what}; {remedy}")]
    Missing { place: PathBuf, what: String, remedy: &'static str },
    #[error("neither XDG_CACHE_HOME nor HOME is set, so there is no place for downloads; set one")]
    NoCache,
    #[error("QEMU did not come to {what} in {seconds} s; its console is in {console}")]
    Slow { what: String, seconds: u64, console: PathBuf },
    #[error("QEMU ended ({status}) too early: {output}; its console is in {console}")]
    Ended { status: String, output: String, console: PathBuf },
    #[error("the guest's kernel gave up: {line}; the console is in {console}")]
    GaveUp { line: String, console: PathBuf },
    #[error("{place} is no {kind}: {why}")]
    Foreign { place: PathBuf, kind: &'static str, why: &'static str },
    #[error("QEMU's monitor: {0}")]
    Monitor(String),
}

impl Trouble {
    /// For `map_err`: what the file system said about `path`.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}
