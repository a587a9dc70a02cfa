//! Processor load: busy processes for the duration of a case.
//!
//! They are as nice as the emulators, so that the scheduler treats both alike. Each ends when this process does, even if it was
//! killed.

use std::process::{Child, Command, Stdio};

use super::case::Failure;
use crate::tool::unstarted;

/// Counts, and regularly checks that the process with the given number exists.
const BUSY: &str = "while kill -0 \"$0\"; do n=0; while [ $n -lt 100000 ]; do n=$((n + 1)); done; done";

/// Busy processes; killed when dropped.
#[derive(Debug)]
pub(crate) struct Load {
    processes: Vec<Child>,
}

impl Load {
    /// Starts `count` of them.
    pub(crate) fn of(count: usize) -> Result<Self, Failure> {
        let mut load = Self { processes: Vec::new() };
        for _ in 0..count {
            let mut command = Command::new("nice");
            command.args(["-n", "5", "sh", "-c", BUSY, &std::process::id().to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            load.processes.push(command.spawn().map_err(|error| unstarted(&command, error))?);
        }
        Ok(load)
    }

    /// Ends them, after checking that all are still running.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        for process in &mut self.processes {
            if let Ok(Some(status)) = process.try_wait() {
                return Err(Failure::check(format!("a process of the load ended early: {status}")));
            }
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It may have ended already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_that_lasts_ends_with_its_owner_and_one_that_does_not_is_noticed() {
        let load = Load::of(2).expect("there is a shell");
        let processes: Vec<u32> = load.processes.iter().map(Child::id).collect();
        load.end().expect("both are busy");
        for process in processes {
            assert!(!std::path::Path::new("/proc").join(process.to_string()).exists(), "{process} is left");
        }
        let mut load = Load::of(1).expect("there is a shell");
        load.processes[0].kill().and_then(|()| load.processes[0].wait()).expect("it can be ended");
        assert!(load.end().is_err());
    }
}
