//! Errors of trying mutants.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use super::report::Verdict;

/// An error of trying mutants.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{program} could not be started: {source}; is it installed?")]
    Start { program: String, source: io::Error },
    #[error("{command}\nfailed ({status}):\n{output}")]
    Failed { command: String, status: ExitStatus, output: String },
    #[error(
        "cargo-mutants failed ({status}); is the code right before it is changed? Its logs are in {output}"
    )]
    CargoMutants { status: String, output: PathBuf },
    #[error("without any change: {verdict}; the log is {log}")]
    Unchanged { verdict: Verdict, log: PathBuf },
    #[error("process {process} tries mutants at this moment; if it does not, remove {lock}")]
    Locked { process: String, lock: PathBuf },
    #[error("mutants.toml: {0}")]
    Policy(#[from] toml::de::Error),
    #[error("cargo-mutants wrote something else than expected: {0}")]
    Json(#[from] serde_json::Error),
    #[error("memory-order mutants: {0}")]
    Source(String),
    #[error("{path} has no place for {what}")]
    Document { path: &'static str, what: &'static str },
    #[error("a thread of this program panicked")]
    Panicked,
    #[error(transparent)]
    Cache(#[from] prereg_vm::error::Error),
}

impl Error {
    /// For `map_err`: an error of the operating system about `path`.
    pub(crate) fn file(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}
