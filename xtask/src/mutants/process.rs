//! Starts other programs, with limits.

use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use super::error::Error;

/// Limit of the address space in KiB, because some mutants allocate without end.
const ADDRESS_SPACE: u64 = 16 << 20;

/// Whole seconds until `deadline`, 0 if it has passed, `None` if there is none.
pub(crate) fn seconds_until(deadline: Option<Instant>) -> Option<u64> {
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()).as_secs())
}

/// `command` with limits of its address space and time; after the time limit it exits with 124.
pub(crate) fn limited(command: &Command, seconds: Option<u64>) -> Command {
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v \"$0\"; exec \"$@\""]).arg(ADDRESS_SPACE.to_string());
    if let Some(seconds) = seconds {
        // INT, because cargo-mutants then ends its children and restores the file.
        limited.args(["timeout", "--signal=INT", "--kill-after=20"]).arg(seconds.max(1).to_string());
    }
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        limited.current_dir(directory);
    }
    limited
}

/// Runs `command` with empty input.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus, Error> {
    command.stdin(Stdio::null()).status().map_err(|source| unstarted(command, source))
}

/// Runs `command` and returns its output.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| unstarted(command, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Failed {
        command: format!("{command:?}"),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn unstarted(command: &Command, source: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}
