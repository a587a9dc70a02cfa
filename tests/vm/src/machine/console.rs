//! A running emulator with its console, which a thread reads and writes to a file.
//!
//! A `Machine` is started niced and killed when dropped. Waiting for a console line has a time limit. If the line does not come
//! (timeout, end of the emulator, kernel panic), the error names the file with the whole console.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::tool::unstarted;

/// A kernel panic.
const GIVEN_UP: &str = "Kernel panic - not syncing";

/// Poll interval for the end of a process.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A running emulator with its console.
#[derive(Debug)]
pub(crate) struct Machine {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Receiver<String>,
    seen: Vec<String>,
    console: PathBuf,
}

impl Machine {
    /// Starts `command`, an emulator with its console on standard input and output, and logs to `console`.
    pub(crate) fn start(mut command: Command, console: &Path) -> Result<Self, Error> {
        let log = File::create(console).map_err(Error::file(console))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| unstarted(&command, source))?;
        let errors = log.try_clone().map_err(Error::file(console))?;
        Ok(Self {
            input: child.stdin.take(),
            lines: reader(child.stdout.take(), log),
            errors: reader(child.stderr.take(), errors),
            child,
            seen: Vec::new(),
            console: console.to_owned(),
        })
    }

    /// The lines read so far.
    pub(crate) fn seen(&self) -> &[String] {
        &self.seen
    }

    /// Types a line at the console.
    ///
    /// # Errors
    /// [`Error::Ended`] if the emulator has ended.
    pub(crate) fn type_line(&mut self, line: &str) -> Result<(), Error> {
        let typed = self.input.as_mut().map(|input| input.write_all(format!("{line}\n").as_bytes()));
        match typed {
            Some(Ok(())) => Ok(()),
            _ => Err(self.ended_early()),
        }
    }

    /// Reads the console until `wanted` returns a value for a line, at most for `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`] after that time, [`Error::Ended`] if the emulator ended, [`Error::Panicked`] if the kernel panicked.
    pub(crate) fn wait<T>(
        &mut self,
        limit: Duration,
        what: &str,
        mut wanted: impl FnMut(&str) -> Option<T>,
    ) -> Result<T, Error> {
        let begin = Instant::now();
        while let Some(left) = limit.checked_sub(begin.elapsed()) {
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    let found = wanted(&line);
                    let given_up = line.contains(GIVEN_UP).then(|| line.clone());
                    self.seen.push(line);
                    if let Some(found) = found {
                        return Ok(found);
                    }
                    if let Some(line) = given_up {
                        return Err(Error::Panicked { line, console: self.console.clone() });
                    }
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => return Err(self.ended_early()),
            }
        }
        Err(Error::Timeout { what: what.to_owned(), seconds: limit.as_secs(), console: self.console.clone() })
    }

    /// Waits for the end of the emulator.
    ///
    /// # Errors
    /// [`Error::Timeout`].
    pub(crate) fn end(&mut self, limit: Duration) -> Result<ExitStatus, Error> {
        // An emulator that waits for input would never end.
        drop(self.input.take());
        let begin = Instant::now();
        while begin.elapsed() < limit {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Ok(status);
            }
            thread::sleep(POLL_INTERVAL);
        }
        Err(Error::Timeout {
            what: "its end".to_owned(),
            seconds: limit.as_secs(),
            console: self.console.clone(),
        })
    }

    /// Kills the emulator as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn ended_early(&mut self) -> Error {
        let status = self.child.wait();
        Error::Ended {
            status: status.map_or_else(|error| error.to_string(), |status| status.to_string()),
            output: self.errors.iter().collect::<Vec<_>>().join("\n"),
            console: self.console.clone(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The lines of a stream, read by a thread until the stream ends, and written to `log`.
fn reader(stream: Option<impl Read + Send + 'static>, mut log: File) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stream) = stream {
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            // A console may print anything; invalid UTF-8 is replaced.
            while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned();
                // A full disk must not stop the machine: the caller gets the lines through the channel.
                let _ = writeln!(log, "{text}");
                if sender.send(text).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(script: &str, folder: &Path) -> Machine {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Machine::start(command, &folder.join("console")).expect("there is a shell")
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_line_is_waited_for_and_answered_and_all_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut machine = machine("echo first; echo ready; read word; echo got $word; exit 3", folder.path());
        let found = machine.wait(SOON, "ready", |line| (line == "ready").then_some(7));
        assert_eq!(found.expect("it says so"), 7);
        machine.type_line("go").expect("it reads");
        machine.wait(SOON, "the echo", |line| (line == "got go").then_some(())).expect("it answers");
        assert_eq!(machine.end(SOON).expect("it ends").code(), Some(3));
        assert_eq!(machine.seen(), ["first", "ready", "got go"]);
        let kept = std::fs::read_to_string(folder.path().join("console")).expect("kept");
        assert_eq!(kept, "first\nready\ngot go\n");
    }

    #[test]
    fn silence_an_early_end_and_a_kernel_that_gave_up_are_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let never = |_: &str| None::<()>;
        let mut silent = machine("exec sleep 60", folder.path());
        let error = silent.wait(Duration::from_millis(50), "a word", never).expect_err("nothing is said");
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let mut early = machine("echo why >&2; exit 1", folder.path());
        let error = early.wait(SOON, "a word", never).expect_err("it ends");
        assert!(matches!(&error, Error::Ended { output, .. } if output == "why"), "{error}");
        let mut panic = machine("echo 'Kernel panic - not syncing: x'; exec sleep 60", folder.path());
        let error = panic.wait(SOON, "a word", never).expect_err("it gave up");
        assert!(matches!(error, Error::Panicked { .. }), "{error}");
    }
}
