//! `prereg serve`: devices for guests, joined from the server, the controller, the disks and the pin back end.
//!
//! - [`config`]: what is to be served, from a file or the command line; [`run`]: the server that does it, until told to stop;
//! - [`status`]: what it is doing, as data; [`observe`] makes it, [`mod@print`] and [`metrics`] show it;
//! - [`control`] and [`http`]: where it is asked for.

mod cgroup;
pub mod config;
pub mod control;
pub mod http;
mod memory;
pub mod metrics;
pub mod observe;
pub mod print;
pub mod run;
pub mod status;

/// Whether this process has root's files and folders.
#[must_use]
pub fn is_root() -> bool {
    // The owner of a process's own folder is its effective user, for a process that was not made undumpable.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
