//! Errors before the rules can run, and reading the workspace's own files.

use std::path::Path;
use std::process::Command;

/// An error before the rules could run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{program} could not be run: {source}")]
    Start { program: &'static str, source: std::io::Error },
    #[error("{program} failed:\n{output}")]
    Failed { program: &'static str, output: String },
    #[error("the output of cargo metadata is not as expected: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{file} cannot be read: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("{file}: {source}")]
    Toml { file: &'static str, source: toml::de::Error },
}

/// The text of the file `name` of the workspace.
pub(crate) fn read(root: &Path, name: &str) -> Result<String, Error> {
    let file = root.join(name);
    std::fs::read_to_string(&file).map_err(|source| Error::Read { file: file.display().to_string(), source })
}

/// Runs `command` and returns its output.
pub(crate) fn output(program: &'static str, command: &mut Command) -> Result<String, Error> {
    let output = command.output().map_err(|source| Error::Start { program, source })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Error::Failed { program, output: String::from_utf8_lossy(&output.stderr).into_owned() })
    }
}
