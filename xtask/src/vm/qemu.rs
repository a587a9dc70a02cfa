//! One run of QEMU: started niced, read until its console says the end mark, then stopped.
//!
//! Powering off takes an emulated machine longer than most of the tests, so it is killed instead, by its own handle. A
//! run that ends in any other way than by its end mark is an error with its console kept.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::Trouble;
use super::tool::{Tools, unstarted};

/// What to run and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The emulator, such as `qemu-system-ppc64`.
    pub(crate) program: &'static str,
    pub(crate) arguments: Vec<String>,
    /// A line of the console after which the machine is not needed any more.
    pub(crate) end_mark: &'static str,
    pub(crate) limit: Duration,
    /// Where the console is kept.
    pub(crate) console: PathBuf,
}

/// What a finished run printed.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    /// The lines of the console up to the end mark.
    pub(crate) lines: Vec<String>,
    pub(crate) took: Duration,
}

/// A running QEMU; it is gone when this is.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to stop.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Run {
    /// Runs the machine to its end mark.
    ///
    /// # Errors
    /// [`Trouble::Slow`] and [`Trouble::Ended`] when it never says the mark.
    pub(crate) fn go(&self, tools: &Tools) -> Result<Finished, Trouble> {
        let begin = Instant::now();
        let mut command = tools.command("nice");
        command.args(["-n", "10", self.program]).args(&self.arguments);
        if let Some(data) = tools.shared("qemu") {
            command.arg("-L").arg(data);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running(command.spawn().map_err(|source| unstarted(&command, source))?);
        let lines = reader(running.0.stdout.take());
        let errors = reader(running.0.stderr.take());

        let mut seen = Vec::new();
        let mut result = Err(None);
        while let Some(left) = self.limit.checked_sub(begin.elapsed()) {
            match lines.recv_timeout(left) {
                Ok(line) if line == self.end_mark => {
                    result = Ok(());
                    break;
                }
                Ok(line) => seen.push(line),
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    result = Err(running.0.wait().ok());
                    break;
                }
            }
        }
        drop(running);
        keep(&self.console, &seen)?;
        match result {
            Ok(()) => Ok(Finished { lines: seen, took: begin.elapsed() }),
            Err(None) => Err(Trouble::Slow { seconds: self.limit.as_secs(), console: self.console.clone() }),
            Err(Some(status)) => Err(Trouble::Ended {
                status: status.to_string(),
                output: errors.iter().collect::<Vec<_>>().join("\n"),
                console: self.console.clone(),
            }),
        }
    }
}

/// The lines of a stream, read by a thread of its own until the stream ends.
fn reader(stream: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    if let Some(stream) = stream {
        thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            // A console may print anything; what is no UTF-8 is replaced.
            while stream.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line);
                if sender.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
                    return;
                }
                line.clear();
            }
        });
    }
    receiver
}

fn keep(console: &Path, lines: &[String]) -> Result<(), Trouble> {
    let mut text = lines.join("\n");
    text.push('\n');
    fs::write(console, text).map_err(Trouble::file(console))
}
