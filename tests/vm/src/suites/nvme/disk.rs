//! Parts that the cases share: a disk with known contents, its server, a guest, and the final comparison.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::case::{Failure, Stage, ensure};
use super::super::guest::{Board, Booted, Guest};
use super::super::server::{Controller, Server, Setup, number};
use crate::error::Error;
use crate::tool::run;

/// Time limit for one step of a script. On an idle machine most take seconds; next to a load of eight processes on two busy
/// processors, minutes.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);

/// Bytes of a disk. The file has holes.
pub(crate) const DISK: u64 = 512 << 20;

/// Blocks of 4096 bytes that are written before the guest boots, and their seed.
pub(crate) const BEFORE: (u64, u64) = (2048, 1);

/// Blocks that the script `data` leaves at the beginning of the disk, and their seed.
pub(crate) const AFTER: (u64, u64) = (8192, 3);

/// Offset and size in MiB of the random bytes of the script `data`.
pub(crate) const RANDOM: (u64, u64) = (128, 8);

/// The guest's drivers for the disk.
pub(crate) const DRIVERS: [&str; 1] = ["nvme"];

/// Makes the disk `name` and writes its first blocks.
pub(crate) fn disk(stage: &Stage<'_>, name: &str) -> Result<PathBuf, Failure> {
    let path = stage.file(name);
    let file = File::create(&path).map_err(Error::file(&path))?;
    file.set_len(DISK).map_err(Error::file(&path))?;
    let mut tool = Command::new(stage.artifacts.guest_tool()?);
    run(tool.arg("fill").arg(&path).args([&(BEFORE.0 / 256).to_string(), "128", &BEFORE.1.to_string()]))?;
    Ok(path)
}

/// A server with one controller and one disk; `lines` are added to the controller's configuration.
pub(crate) fn serve(stage: &Stage<'_>, lines: &str) -> Result<(Server, PathBuf), Failure> {
    let disk = disk(stage, "disk")?;
    let controller = Controller::new(stage.socket("nvme"), &disk, lines);
    Ok((Server::start(stage, &Setup { controllers: vec![controller], ..Setup::default() })?, disk))
}

/// A guest with guest-tool, without a disk yet.
pub(crate) fn guest(stage: &Stage<'_>, script: &'static str) -> Result<Guest, Failure> {
    let mut guest = Guest::new(Board::Pc, script);
    guest.drivers = DRIVERS.to_vec();
    guest.files.push(("bin/guest-tool".to_owned(), stage.artifacts.guest_tool()?));
    Ok(guest)
}

/// The device of the socket `name`, as QEMU's JSON.
pub(crate) fn device(stage: &Stage<'_>, name: &str) -> Value {
    let path = stage.socket(name).display().to_string();
    json!({ "driver": "vfio-user-pci", "id": name, "socket": { "type": "unix", "path": path } })
}

/// Memory of guests that the server has pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PinnedMemory {
    /// Files, independent of the number of clients and maps.
    pub(crate) files: u64,
    /// Pinned pieces of them.
    pub(crate) pieces: u64,
    /// Pins made so far.
    pub(crate) pins: u64,
}

impl PinnedMemory {
    /// Reads `status`.
    ///
    /// # Errors
    /// [`Failure::Check`] if a piece is registered more than once.
    pub(crate) fn of(status: &Value) -> Result<Self, Failure> {
        let files = status.pointer("/memory/files").and_then(Value::as_array);
        let files = files.ok_or_else(|| Failure::check(format!("prereg status has no files: {status}")))?;
        let pieces = files.iter().map(|file| number(file, "/extents")).sum::<Result<u64, Failure>>()?;
        let registrations = number(status, "/memory/registrations")?;
        ensure(registrations == pieces, || format!("{registrations} registrations of {pieces} pieces"))?;
        Ok(Self { files: files.len() as u64, pieces, pins: number(status, "/memory/pins_total")? })
    }

    /// Reads `status`, which must list `files` files.
    pub(crate) fn of_files(status: &Value, files: u64) -> Result<Self, Failure> {
        let kept = Self::of(status)?;
        ensure(kept.files == files, || format!("{} files of guest memory instead of {files}", kept.files))?;
        Ok(kept)
    }
}

/// Compares the disk with the contents that the script `data` wrote, after the guest and the server have released it.
pub(crate) fn compare(stage: &Stage<'_>, disk: &Path, booted: &Booted) -> Result<(), Failure> {
    compare_with(stage, disk, booted.marks("random").last().unwrap_or_default())
}

/// Compares the disk; `guests` is the checksum of the random bytes.
pub(crate) fn compare_with(stage: &Stage<'_>, disk: &Path, guests: &str) -> Result<(), Failure> {
    let mut tool = Command::new(stage.artifacts.guest_tool()?);
    run(tool.arg("verify").arg(disk).args([AFTER.0.to_string(), AFTER.1.to_string()]))?;
    let ours = sum(disk, RANDOM.0, RANDOM.1)?;
    ensure(guests == ours, || {
        format!("the random bytes in the disk's file ({ours}) are not the guest's ({guests})")
    })
}

/// The SHA-256 checksum of `count` MiB of `path` from offset `skip` MiB.
pub(crate) fn sum(path: &Path, skip: u64, count: u64) -> Result<String, Failure> {
    let script = "dd if=\"$0\" bs=1M skip=\"$1\" count=\"$2\" status=none | sha256sum";
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(path).args([skip.to_string(), count.to_string()]);
    Ok(run(&mut command)?.split_whitespace().next().unwrap_or_default().to_owned())
}
