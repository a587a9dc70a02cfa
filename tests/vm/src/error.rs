//! Errors of preparing and running a virtual machine.

use std::io;
use std::path::{Path, PathBuf};

/// An error of preparing or running a virtual machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A program did not start.
    #[error("{program} could not be started: {source}; is it installed?")]
    Start {
        /// The program.
        program: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A program failed.
    #[error("{command}\nfailed ({status}):\n{output}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// apt has no Debian source.
    #[error(
        "apt is set up for no Debian mirror: `apt-get update --print-uris` names none; add one to its sources"
    )]
    NoMirror,
    /// A package does not exist.
    #[error("package {name} is not in suite {suite} of the machine's mirror")]
    NoPackage {
        /// The package.
        name: String,
        /// The suites that were searched.
        suite: String,
    },
    /// A file is missing.
    #[error("{place} has no {what}; {remedy}")]
    Missing {
        /// The folder.
        place: PathBuf,
        /// The missing file.
        what: String,
        /// How to get it.
        remedy: &'static str,
    },
    /// There is no cache folder.
    #[error("neither XDG_CACHE_HOME nor HOME is set, so there is no place for downloads; set one")]
    NoCache,
    /// The console did not show an expected line in time.
    #[error("QEMU did not come to {what} in {seconds} s; its console is in {console}")]
    Timeout {
        /// The expected line or event.
        what: String,
        /// The time limit.
        seconds: u64,
        /// The file with the console's output.
        console: PathBuf,
    },
    /// The emulator ended before an expected line.
    #[error("QEMU ended ({status}) too early: {output}; its console is in {console}")]
    Ended {
        /// Its exit status.
        status: String,
        /// Its error output.
        output: String,
        /// The file with the console's output.
        console: PathBuf,
    },
    /// The guest's kernel panicked.
    #[error("the guest's kernel panicked: {line}; the console is in {console}")]
    Panicked {
        /// The kernel's message.
        line: String,
        /// The file with the console's output.
        console: PathBuf,
    },
    /// A file has another format than expected.
    #[error("{place} is no {kind}: {why}")]
    Format {
        /// The file.
        place: PathBuf,
        /// The expected kind of file.
        kind: &'static str,
        /// The reason.
        why: &'static str,
    },
    /// QEMU's monitor refused a command or closed the connection.
    #[error("QEMU's monitor: {0}")]
    Monitor(String),
}

impl Error {
    /// For `map_err`: an error of the operating system about `path`.
    pub fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}
