//! `prereg serve`: devices for guests, joined from the server, the controller, the disks and the pin back end.
//!
//! - `config`: the options, from a file or the command line; `run`: the server, until a signal; `check`:
//!   what it would serve; `pin_limits`: its memory limits; [`fit`]:
//!   whether a guest fits them;
//! - [`status`]: its state as data, made by `collect`; `print`, `page` and `metrics` turn it into text;
//! - [`control`] and `http`: the sockets that return it, and `advert`: how they are found;
//! - `log`: events as lines on standard error.

pub(crate) mod advert;
mod cgroup;
pub(crate) mod check;
pub(crate) mod collect;
pub(crate) mod config;
pub mod control;
pub mod fit;
pub(crate) mod http;
pub(crate) mod log;
pub(crate) mod metrics;
pub(crate) mod page;
mod pin_limits;
pub(crate) mod print;
pub(crate) mod run;
pub mod status;

/// Whether this process runs as root.
#[must_use]
pub fn is_root() -> bool {
    // Unless the process is not dumpable, its folder belongs to its effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
