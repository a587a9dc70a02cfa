//! `prereg serve` for the cases: configured by a file, queried over its control socket, stopped or killed.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::case::{Failure, Stage, ensure};
use crate::error::Error;
use crate::tool::{run, unstarted};

/// Time limit for a server to listen, and to stop.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Poll interval.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A controller.
#[derive(Clone, Debug)]
pub(crate) struct Controller {
    pub(crate) socket: PathBuf,
    /// Further lines of the controller's configuration.
    pub(crate) lines: String,
    /// Its namespaces, in the format of the configuration file.
    pub(crate) namespaces: String,
}

impl Controller {
    /// A controller with one disk.
    pub(crate) fn new(socket: PathBuf, disk: &Path, lines: &str) -> Self {
        let namespaces = format!("[[nvme.namespace]]\nfile = {:?}\n", disk.display().to_string());
        Self { socket, lines: lines.to_owned(), namespaces }
    }
}

/// The configuration of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setup {
    pub(crate) controllers: Vec<Controller>,
    /// Lines of the memory section.
    pub(crate) memory: String,
}

impl Setup {
    /// The configuration file.
    fn text(&self, control: &Path) -> String {
        let mut text =
            format!("control = {:?}\n\n[memory]\n{}\n", control.display().to_string(), self.memory);
        for Controller { socket, lines, namespaces } in &self.controllers {
            let socket = socket.display().to_string();
            // Writing to a string cannot fail.
            let _ = write!(text, "\n[[nvme]]\nsocket = {socket:?}\n{lines}\n{namespaces}");
        }
        text
    }
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    program: PathBuf,
    control: PathBuf,
    log: PathBuf,
    sockets: Vec<PathBuf>,
}

impl Server {
    /// Starts a server and waits until all its sockets exist.
    pub(crate) fn start(stage: &Stage<'_>, setup: &Setup) -> Result<Self, Failure> {
        let control = stage.socket("control");
        let config = stage.file("serve.toml");
        fs::write(&config, setup.text(&control)).map_err(Error::file(&config))?;
        let sockets = setup.controllers.iter().map(|controller| controller.socket.clone()).collect();
        Self::spawn(stage, sockets, control, |command| {
            command.arg("serve").arg("--config").arg(&config);
        })
    }

    /// Starts a server for one disk by the command of the README.
    pub(crate) fn start_plainly(stage: &Stage<'_>, socket: &Path, disk: &Path) -> Result<Self, Failure> {
        let control = stage.socket("control");
        Self::spawn(stage, vec![socket.to_owned()], control.clone(), |command| {
            command.args(["serve", "nvme", "--socket"]).arg(socket).arg("--disk").arg(disk);
            command.arg("--control").arg(control);
        })
    }

    /// The `-device` argument for QEMU that it printed.
    pub(crate) fn printed_device(&self) -> Result<Value, Failure> {
        let said = fs::read_to_string(&self.log).map_err(Error::file(&self.log))?;
        let device = said.lines().find_map(printed);
        device.ok_or_else(|| Failure::Check(format!("prereg serve prints no -device for QEMU:\n{said}")))
    }

    fn spawn(
        stage: &Stage<'_>,
        sockets: Vec<PathBuf>,
        control: PathBuf,
        words: impl FnOnce(&mut Command),
    ) -> Result<Self, Failure> {
        let program = stage.artifacts.prereg()?;
        let log = stage.file("server.log");
        let file = File::create(&log).map_err(Error::file(&log))?;
        let errors = file.try_clone().map_err(Error::file(&log))?;
        let mut command = Command::new(&program);
        words(&mut command);
        command.stdin(Stdio::null()).stdout(file).stderr(errors).env("NO_COLOR", "1");
        let child = command.spawn().map_err(|source| unstarted(&command, source))?;
        let mut server = Self { child, program, control, log, sockets };
        server.listening()?;
        Ok(server)
    }

    fn listening(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                let said = fs::read_to_string(&self.log).unwrap_or_default();
                return Err(Failure::Check(format!("prereg serve ended ({status}):\n{}", said.trim_end())));
            }
            if self.sockets.iter().chain([&self.control]).all(|socket| socket.exists()) {
                return Ok(());
            }
            ensure(begin.elapsed() < TIMEOUT, || {
                format!("prereg serve does not listen after {} s", TIMEOUT.as_secs())
            })?;
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Its status.
    pub(crate) fn status(&self) -> Result<Value, Failure> {
        let mut command = Command::new(&self.program);
        let text = run(command.args(["status", "--json", "--control"]).arg(&self.control))?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::Check(format!("prereg status: {error} in {text}")))
    }

    /// Polls the status until `wanted`, at most for `limit`; returns the duration.
    pub(crate) fn becomes(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Duration, Failure> {
        let begin = Instant::now();
        loop {
            let asked = begin.elapsed();
            let status = self.status()?;
            if wanted(&status) {
                return Ok(begin.elapsed());
            }
            ensure(asked < limit, || format!("after {:.1} s not {what}: {status}", asked.as_secs_f64()))?;
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// The server's pinned memory in KiB, as the kernel counts it.
    pub(crate) fn pinned_kilobytes(&self) -> Result<u64, Failure> {
        let path = PathBuf::from(format!("/proc/{}/status", self.child.id()));
        let text = fs::read_to_string(&path).map_err(Error::file(&path))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmPin:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| Failure::Check(format!("{} has no VmPin", path.display())))
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it by SIGTERM; it must succeed and remove its sockets.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let begin = Instant::now();
        let status = loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                break status;
            }
            ensure(begin.elapsed() < TIMEOUT, || {
                format!("prereg serve does not stop in {} s after SIGTERM", TIMEOUT.as_secs())
            })?;
            thread::sleep(POLL_INTERVAL);
        };
        ensure(status.success(), || format!("prereg serve ended with {status} after SIGTERM"))?;
        let left = self.sockets.iter().chain([&self.control]).find(|socket| socket.exists());
        ensure(left.is_none(), || "prereg serve left a socket behind".to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The device in a line such as `  -device '{...}' \`.
fn printed(line: &str) -> Option<Value> {
    let (_, rest) = line.split_once("-device '")?;
    serde_json::from_str(rest.rsplit_once('\'')?.0).ok()
}

/// The number at `path` of a status, such as `/memory/registrations`.
pub(crate) fn number(status: &Value, path: &str) -> Result<u64, Failure> {
    let found = status.pointer(path).and_then(Value::as_u64);
    found.ok_or_else(|| Failure::Check(format!("prereg status has no {path}: {status}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_is_written_as_toml() {
        let controller = |name: &str| {
            let socket = PathBuf::from(format!("/s/{name} \"x\""));
            Controller::new(socket, Path::new("/d"), "interrupts = [\"msi\"]")
        };
        let setup = Setup {
            controllers: vec![controller("a"), controller("b")],
            memory: "extent = \"2M\"".to_owned(),
        };
        let read: toml::Value = toml::from_str(&setup.text(Path::new("/c"))).expect("TOML");
        assert_eq!(read["control"].as_str(), Some("/c"));
        assert_eq!(read["memory"]["extent"].as_str(), Some("2M"));
        assert_eq!(read["nvme"][1]["socket"].as_str(), Some("/s/b \"x\""));
        assert_eq!(read["nvme"][0]["interrupts"][0].as_str(), Some("msi"));
        assert_eq!(read["nvme"][0]["namespace"][0]["file"].as_str(), Some("/d"));
    }

    #[test]
    fn a_printed_device_is_found() {
        assert_eq!(printed("  -device '{\"driver\":\"d\"}' \\"), Some(serde_json::json!({ "driver": "d" })));
        assert_eq!(printed("  -device '{\"driver\":\"d\"}'"), Some(serde_json::json!({ "driver": "d" })));
        assert_eq!(printed("  -device edu"), None);
    }

    #[test]
    fn numbers_are_found_by_their_path() {
        let status = serde_json::json!({ "memory": { "registrations": 1 } });
        assert_eq!(number(&status, "/memory/registrations").ok(), Some(1));
        assert!(number(&status, "/memory/none").is_err());
    }
}
