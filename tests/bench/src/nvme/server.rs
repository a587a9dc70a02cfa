//! The measured server: `prereg serve` in its own process, and the processor time that it used.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::BenchError;

/// The server's `--buffers` option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Buffers {
    /// Registered buffers: the kernel pins nothing per I/O.
    Fixed,
    /// Plain addresses: the kernel pins the pages of each I/O.
    Plain,
}

/// A running `prereg serve`, killed when dropped.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    /// Its socket.
    pub socket: PathBuf,
}

impl ServerProcess {
    /// Starts `program` as a server of `disk` at a socket in `folder`.
    ///
    /// # Errors
    /// [`BenchError::Failed`] if it does not listen within 10 seconds.
    pub fn start(
        program: &Path,
        folder: &Path,
        disk: &Path,
        buffers: Buffers,
        mapped_doorbells: bool,
    ) -> Result<Self, BenchError> {
        let what = "starting the server";
        let name = match buffers {
            Buffers::Fixed => "fixed",
            Buffers::Plain => "plain",
        };
        let socket = folder.join(format!("{name}.sock"));
        let mut command = Command::new(program);
        command
            .args(["serve", "nvme", "--quiet", "--threads", "1", "--buffers", name])
            .args(["--doorbells", if mapped_doorbells { "mmap" } else { "socket" }])
            .args(["--control", "none", "--socket"])
            .arg(&socket)
            .arg("--disk")
            .arg(disk)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().map_err(|error| BenchError::failed(what, error))?;
        let mut server = Self { child, socket };
        let until = Instant::now() + Duration::from_secs(10);
        while !server.socket.exists() {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(BenchError::failed(
                    what,
                    format!("it ended with {status}; its own words are above"),
                ));
            }
            if Instant::now() > until {
                return Err(BenchError::failed(what, "it has no socket after 10 s"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }
}

/// Processor time of all live threads of a process.
///
/// # Errors
/// [`BenchError::Failed`] if the kernel does not count it (CONFIG_SCHED_INFO), or the process is gone.
pub fn cpu_time_of(process: u32) -> Result<Duration, BenchError> {
    let tasks = PathBuf::from(format!("/proc/{process}/task"));
    let wrong = |error: std::io::Error| BenchError::failed("reading a server's processor time", error);
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir(tasks).map_err(wrong)? {
        let statistics = std::fs::read_to_string(task.map_err(wrong)?.path().join("schedstat"));
        // The thread ended meanwhile; the measured ones live as long as their client.
        let Ok(statistics) = statistics else { continue };
        let nanoseconds = statistics.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
        sum += Duration::from_nanos(nanoseconds);
    }
    Ok(sum)
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
