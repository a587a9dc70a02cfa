//! A run of QEMU until its console shows an end mark.
//!
//! Powering off takes an emulated machine longer than most tests, so it is killed after the mark. Any other end is an error,
//! and its console is kept.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::console::Machine;
use crate::error::Error;
use crate::tool::Tools;

/// The command and its time limit.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The emulator, such as `qemu-system-ppc64`.
    pub(crate) program: &'static str,
    pub(crate) arguments: Vec<String>,
    /// The console line after which the machine is killed.
    pub(crate) end_mark: &'static str,
    pub(crate) limit: Duration,
    /// The file for the console's output.
    pub(crate) console: PathBuf,
}

/// The output of a finished run.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    /// The lines of the console up to the end mark.
    pub(crate) lines: Vec<String>,
    pub(crate) took: Duration,
}

impl Run {
    /// Runs the machine until its end mark.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::Ended`] if the mark does not come.
    pub(crate) fn go(&self, tools: &Tools) -> Result<Finished, Error> {
        let begin = Instant::now();
        let mut command = tools.command("nice");
        command.args(["-n", "10", self.program]).args(&self.arguments);
        if let Some(data) = tools.shared("qemu") {
            command.arg("-L").arg(data);
        }
        let mut machine = Machine::start(command, &self.console)?;
        machine.wait(self.limit, "its end mark", |line| (line == self.end_mark).then_some(()))?;
        let mut lines = machine.seen().to_vec();
        lines.pop();
        Ok(Finished { lines, took: begin.elapsed() })
    }
}
