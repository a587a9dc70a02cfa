//! One run of QEMU: started niced, read until its console says the end mark, then stopped.
//!
//! Powering off takes an emulated machine longer than most of the tests, so it is killed instead, by its own handle. A
//! run that ends in any other way than by its end mark is an error with its console kept.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::console::Machine;
use crate::error::Error;
use crate::tool::Tools;

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

impl Run {
    /// Runs the machine to its end mark.
    ///
    /// # Errors
    /// [`Error::Timeout`] and [`Error::Ended`] when it never says the mark.
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
