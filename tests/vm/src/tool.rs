//! Running other programs: returns their output, or an error that explains the failure.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use crate::error::Error;

/// Lines of a failed program's output in the error.
const SHOWN: usize = 40;

/// Runs `command` and returns its output.
///
/// # Errors
/// [`Error::Start`], or [`Error::Failed`] with the end of its output.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| unstarted(command, source))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let all = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Err(failed(command, &output, &all))
}

/// Runs `command` with `input` and returns its output as bytes.
///
/// # Errors
/// [`Error::Start`], or [`Error::Failed`] with its error output.
pub(crate) fn run_into(command: &mut Command, input: &[u8]) -> Result<Vec<u8>, Error> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|source| unstarted(command, source))?;
    let pipe = child.stdin.take();
    let output = thread::scope(|scope| {
        // A program that does not read all of its input reports the reason itself.
        scope.spawn(move || pipe.map(|mut pipe| pipe.write_all(input)));
        child.wait_with_output().map_err(|source| unstarted(command, source))
    })?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(command, &output, &String::from_utf8_lossy(&output.stderr)))
    }
}

fn failed(command: &Command, output: &Output, said: &str) -> Error {
    let lines: Vec<&str> = said.lines().collect();
    Error::Failed {
        command: spelled(command),
        status: output.status.to_string(),
        output: lines[lines.len().saturating_sub(SHOWN)..].join("\n"),
    }
}

/// For `map_err`: `command` did not start.
pub(crate) fn unstarted(command: &Command, source: std::io::Error) -> Error {
    Error::Start { program: command.get_program().to_string_lossy().into_owned(), source }
}

fn spelled(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// Unpacked programs that take precedence over installed ones.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    root: PathBuf,
    libraries: PathBuf,
}

impl Tools {
    /// Programs below `root`, with libraries in the folders of `triplet`, Debian's name of the architecture.
    pub(crate) fn at(root: &Path, triplet: &str) -> Self {
        Self { root: root.to_owned(), libraries: Path::new("usr/lib").join(triplet) }
    }

    /// A command that finds these programs and their libraries first.
    pub(crate) fn command(&self, program: &str) -> Command {
        let unpacked = self.root.join("usr/bin").join(program);
        // By its full path: the search path of a command is not used to find the command itself.
        let mut command =
            Command::new(if unpacked.exists() { unpacked.as_os_str() } else { OsStr::new(program) });
        command.env("PATH", before("PATH", &[self.root.join("usr/bin")]));
        // Some packages still ship their libraries outside /usr.
        let unmerged = self.root.join(self.libraries.strip_prefix("usr").unwrap_or(&self.libraries));
        command
            .env("LD_LIBRARY_PATH", before("LD_LIBRARY_PATH", &[self.root.join(&self.libraries), unmerged]));
        command
    }

    /// The file `name` of the shared data, if it was unpacked here.
    pub(crate) fn shared(&self, name: &str) -> Option<PathBuf> {
        Some(self.root.join("usr/share").join(name)).filter(|path| path.exists())
    }
}

/// The search path `key` of this process with `folders` in front.
fn before(key: &str, folders: &[PathBuf]) -> OsString {
    let old = std::env::var_os(key).unwrap_or_default();
    let rest = std::env::split_paths(&old).filter(|path| !path.as_os_str().is_empty());
    // A folder with a colon in its name cannot be in a search path; the others still can.
    std::env::join_paths(folders.iter().cloned().chain(rest)).unwrap_or(old)
}
