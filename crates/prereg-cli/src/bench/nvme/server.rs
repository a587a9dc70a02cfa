//! The server under measurement: this program in a process of its own, and what the kernel says that it used.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::serve::config::{Buffers, Doorbells};

/// A `prereg serve` that ends with this.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    /// Its socket.
    pub socket: PathBuf,
}

impl ServerProcess {
    /// Serves `disk` at a socket in `folder`.
    ///
    /// # Errors
    /// [`Failure::Host`] when it does not come up within 10 seconds.
    pub fn start(
        folder: &Path,
        disk: &Path,
        buffers: Buffers,
        doorbells: Doorbells,
    ) -> Result<Self, Failure> {
        let what = "starting the server";
        let program = std::env::current_exe().map_err(|error| Failure::host(what, error))?;
        let name = match buffers {
            Buffers::Fixed => "fixed",
            Buffers::Plain => "plain",
        };
        let socket = folder.join(format!("{name}.sock"));
        let mut command = Command::new(program);
        command
            .args(["serve", "nvme", "--quiet", "--threads", "1", "--buffers", name])
            .args(["--doorbells", if doorbells == Doorbells::Mmap { "mmap" } else { "socket" }])
            .args(["--control", "none", "--socket"])
            .arg(&socket)
            .arg("--disk")
            .arg(disk)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let child = command.spawn().map_err(|error| Failure::host(what, error))?;
        let mut server = Self { child, socket };
        let until = Instant::now() + Duration::from_secs(10);
        while !server.socket.exists() {
            if let Ok(Some(status)) = server.child.try_wait() {
                return Err(Failure::host(what, format!("it ended with {status}; its own words are above")));
            }
            if Instant::now() > until {
                return Err(Failure::host(what, "it has no socket after 10 s"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Processor time that all its threads have used.
    ///
    /// # Errors
    /// As [`cpu_time_of`].
    pub fn cpu_time(&self) -> Result<Duration, Failure> {
        cpu_time_of(self.child.id())
    }
}

/// Processor time that all threads of a process have used that live now.
///
/// # Errors
/// [`Failure::Host`] where the kernel does not say (CONFIG_SCHED_INFO), or the process is gone.
pub fn cpu_time_of(process: u32) -> Result<Duration, Failure> {
    let tasks = PathBuf::from(format!("/proc/{process}/task"));
    let wrong = |error: std::io::Error| Failure::host("reading a server's processor time", error);
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir(tasks).map_err(wrong)? {
        let statistics = std::fs::read_to_string(task.map_err(wrong)?.path().join("schedstat"));
        // A thread that ended meanwhile; those that matter live as long as their client.
        let Ok(statistics) = statistics else { continue };
        let nanoseconds = statistics.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
        sum += Duration::from_nanos(nanoseconds);
    }
    Ok(sum)
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // Gone already if it failed; what it said is printed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
