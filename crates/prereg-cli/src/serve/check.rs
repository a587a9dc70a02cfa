//! `prereg serve --check`: what would be served and what would fail, without serving it. Disks are opened and closed again, and nothing
//! is left behind.

use std::fs;
use std::io::{self, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use tracing::Dispatch;

use super::config::Config;
use super::control::{self, LONGEST_PATH};
use super::log::Log;
use super::pin_limits::PinLimits;
use super::run::{Control, ServedConfig, ServedController, pins};
use crate::error::CommandError;
use crate::units::Bytes;

/// Writes what would be served and what would fail; returns whether nothing would. Notes about the disks go to `output`.
///
/// # Errors
/// If `out` cannot be written, or the memory limits cannot be served with.
pub(crate) fn print(
    config: &Config,
    control: &Control,
    output: Dispatch,
    out: &mut impl Write,
) -> Result<bool, CommandError> {
    let limits = PinLimits::of(&config.memory)?;
    let log = Arc::new(Log::new(output, Arc::new(ServedConfig::new(limits.clone(), config))));
    let mut problems = Vec::new();
    match limits.lowest() {
        Some(lowest) => writeln!(out, "guest memory: at most {} for all clients", Bytes(lowest))?,
        None => writeln!(out, "guest memory: no limit")?,
    }
    problems.extend(limits.warning());
    match pins(&Arc::default()) {
        Err(error) => problems.push(error.to_string()),
        Ok(pins) => {
            for device in &config.nvme {
                match ServedController::open(device, &pins, &log) {
                    Ok(controller) => controller.print_banner(out)?,
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
    }
    for device in &config.nvme {
        problems.extend(socket_problem(&device.socket, false));
    }
    match control {
        Control::At(path) => problems.extend(socket_problem(path, true)),
        Control::Default => {
            problems.extend(control::default_path().and_then(|path| socket_problem(&path, true)));
        }
        Control::None => {}
    }
    if let Some(address) = config.metrics {
        if let Err(error) = TcpListener::bind(address) {
            problems
                .push(format!("nothing can listen at {address}: {error}; choose another --metrics address"));
        }
    }
    for problem in &problems {
        writeln!(out, "fails: {problem}")?;
    }
    writeln!(out, "{}", if problems.is_empty() { "ok" } else { "not ok" })?;
    Ok(problems.is_empty())
}

/// The reason for which no server could listen at `path`. `makes_folder`: the folder is made if it is missing.
fn socket_problem(path: &Path, makes_folder: bool) -> Option<String> {
    let name = path.display();
    let bytes = path.as_os_str().len();
    if bytes > LONGEST_PATH {
        return Some(format!(
            "the path of a socket has at most {LONGEST_PATH} bytes, and {name} has {bytes}; choose a shorter one"
        ));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        let why = format!("the folder of {name} does not exist; create it, or choose another path");
        return (!makes_folder).then_some(why);
    }
    if let Ok(found) = fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Some(format!("{name} exists and is no socket; remove it, or choose another path"));
        }
        if UnixStream::connect(path).is_ok() {
            return Some(format!("another server listens at {name}; stop it, or choose another path"));
        }
    }
    let error = try_to_listen(folder).err()?;
    Some(format!("no socket can be made in {}: {error}; give this user the permission", folder.display()))
}

/// Listens in `folder` for a moment.
fn try_to_listen(folder: &Path) -> io::Result<()> {
    let place = folder.join(format!(".{}", std::process::id()));
    // Of a longer path than the socket's own: nothing is learnt.
    if place.as_os_str().len() > LONGEST_PATH {
        return Ok(());
    }
    drop(UnixListener::bind(&place)?);
    fs::remove_file(&place)
}
