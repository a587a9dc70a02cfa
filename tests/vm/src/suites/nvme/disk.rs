//! What the cases share: a disk whose contents are known, a server for it, a guest with it, and the comparison in the end.

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

/// The longest that a script may take for one thing. On an idle machine most take seconds; beside a load of eight on two
/// processors that others use too, minutes.
pub(crate) const LIMIT: Duration = Duration::from_secs(900);

/// Bytes of a disk. The file has holes.
pub(crate) const DISK: u64 = 512 << 20;

/// Blocks of 4096 bytes that are on the disk before the guest comes, and the seed of their contents.
pub(crate) const BEFORE: (u64, u64) = (2048, 1);

/// Blocks that the script `data` leaves at the disk's begin, and their seed.
pub(crate) const AFTER: (u64, u64) = (8192, 3);

/// Where the script `data` puts random bytes, in MiB, and how many.
pub(crate) const RANDOM: (u64, u64) = (128, 8);

/// A guest's drivers for the disk.
pub(crate) const DRIVERS: [&str; 1] = ["nvme"];

/// Makes the disk `name` with its first blocks written.
pub(crate) fn disk(stage: &Stage<'_>, name: &str) -> Result<PathBuf, Failure> {
    let path = stage.file(name);
    let file = File::create(&path).map_err(Error::file(&path))?;
    file.set_len(DISK).map_err(Error::file(&path))?;
    let mut tool = Command::new(stage.artifacts.guest_tool()?);
    run(tool.arg("fill").arg(&path).args([&(BEFORE.0 / 256).to_string(), "128", &BEFORE.1.to_string()]))?;
    Ok(path)
}

/// A server with one controller and one disk; more `lines` for the controller.
pub(crate) fn serve(stage: &Stage<'_>, lines: &str) -> Result<(Server, PathBuf), Failure> {
    let disk = disk(stage, "disk")?;
    let controller = Controller::new(stage.socket("nvme"), &disk, lines);
    Ok((Server::start(stage, &Setup { controllers: vec![controller], ..Setup::default() })?, disk))
}

/// A guest with the program for disks, without a disk yet.
pub(crate) fn guest(stage: &Stage<'_>, script: &'static str) -> Result<Guest, Failure> {
    let mut guest = Guest::new(Board::Pc, script);
    guest.drivers = DRIVERS.to_vec();
    guest.files.push(("bin/guest-tool".to_owned(), stage.artifacts.guest_tool()?));
    Ok(guest)
}

/// The disk behind the socket `name`, as QEMU takes it.
pub(crate) fn device(stage: &Stage<'_>, name: &str) -> Value {
    let path = stage.socket(name).display().to_string();
    json!({ "driver": "vfio-user-pci", "id": name, "socket": { "type": "unix", "path": path } })
}

/// What the server keeps of its guests' memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PinnedMemory {
    /// Files, whatever the number of clients and maps.
    pub(crate) files: u64,
    /// Pieces of them that are pinned.
    pub(crate) pieces: u64,
    /// Pins that were made so far.
    pub(crate) pins: u64,
}

impl PinnedMemory {
    /// What `status` says.
    ///
    /// # Errors
    /// [`Failure::Check`] when a piece is registered more than once.
    pub(crate) fn of(status: &Value) -> Result<Self, Failure> {
        let files = status.pointer("/memory/files").and_then(Value::as_array);
        let files = files.ok_or_else(|| Failure::check(format!("prereg status has no files: {status}")))?;
        let pieces = files.iter().map(|file| number(file, "/extents")).sum::<Result<u64, Failure>>()?;
        let registrations = number(status, "/memory/registrations")?;
        ensure(registrations == pieces, || format!("{registrations} registrations of {pieces} pieces"))?;
        Ok(Self { files: files.len() as u64, pieces, pins: number(status, "/memory/pins_total")? })
    }

    /// The same for the memory of `files` files.
    pub(crate) fn of_files(status: &Value, files: u64) -> Result<Self, Failure> {
        let kept = Self::of(status)?;
        ensure(kept.files == files, || format!("{} files of guest memory instead of {files}", kept.files))?;
        Ok(kept)
    }
}

/// Compares on the host what the script `data` wrote, once nobody has the disk.
pub(crate) fn compare(stage: &Stage<'_>, disk: &Path, booted: &Booted) -> Result<(), Failure> {
    compare_with(stage, disk, booted.marks("random").last().unwrap_or_default())
}

/// The same with the sum of the random bytes.
pub(crate) fn compare_with(stage: &Stage<'_>, disk: &Path, guests: &str) -> Result<(), Failure> {
    let mut tool = Command::new(stage.artifacts.guest_tool()?);
    run(tool.arg("verify").arg(disk).args([AFTER.0.to_string(), AFTER.1.to_string()]))?;
    let ours = sum(disk, RANDOM.0, RANDOM.1)?;
    ensure(guests == ours, || {
        format!("the random bytes in the disk's file ({ours}) are not the guest's ({guests})")
    })
}

/// The SHA-256 sum of `count` MiB of `path`, `skip` MiB from its begin.
pub(crate) fn sum(path: &Path, skip: u64, count: u64) -> Result<String, Failure> {
    let script = "dd if=\"$0\" bs=1M skip=\"$1\" count=\"$2\" status=none | sha256sum";
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(path).args([skip.to_string(), count.to_string()]);
    Ok(run(&mut command)?.split_whitespace().next().unwrap_or_default().to_owned())
}
