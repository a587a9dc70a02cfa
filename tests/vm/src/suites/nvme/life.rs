//! Reset, reboot and unplug of guests, and kills of either end.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::super::case::{Case, Requirement, Stage, Suite, Verdict, ensure};
use super::disk::{LIMIT, PinnedMemory, compare, device, guest, serve};
use crate::tool::run;

pub(super) const CASES: &[Case] = &[
    case("nvme-ext4", "ext4 made, mounted and filled, its files checked after a reboot", ext4),
    case("nvme-reset", "the machine is reset in the middle of its I/O", reset),
    case("nvme-unplug", "unplugged behind a root port, and plugged in again", unplug),
    case(
        "nvme-kill-guest",
        "kill -9 of QEMU under load: pins back in a second, the next guest served",
        kill_guest,
    ),
    case("nvme-kill-server", "kill -9 of the server under load: all that was flushed is there", kill_server),
];

const fn case(name: &'static str, shows: &'static str, run: fn(&Stage<'_>) -> Verdict) -> Case {
    Case { suite: Suite::Nvme, requires: Requirement::Disk, name, shows, run }
}

/// Time limit for releasing the resources of a client.
const SECOND: Duration = Duration::from_secs(1);

/// The seed of numbered blocks.
const NUMBERED: &str = "77";

fn ext4(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "ext4")?;
    guest.drivers.push("ext4");
    guest.reboots = true;
    for program in ["usr/sbin/mke2fs", "usr/sbin/e2fsck"] {
        guest.files.extend(stage.artifacts.guest_program(program)?);
    }
    // Both need the same libraries, and an archive has each file once.
    guest.files.sort();
    guest.files.dedup();
    guest.device(&device(stage, "nvme"));
    let mut booted = guest.boot(stage, "guest")?;
    booted.mark("which", LIMIT)?;
    booted.reply("first")?;
    booted.mark("begin", LIMIT)?;
    booted.mark("which", LIMIT)?;
    booted.reply("second")?;
    booted.finish(LIMIT)?;
    run(stage.artifacts.root().command("usr/sbin/e2fsck")?.arg("-fn").arg(&disk))?;
    // The same file must be equal in the guest and in the image.
    let copy = stage.file("copy");
    let mut debugfs = stage.artifacts.root().command("usr/sbin/debugfs")?;
    run(debugfs.arg("-R").arg(format!("dump /second/file7 {}", copy.display())).arg(&disk))?;
    let ours = run(Command::new("sha256sum").arg(&copy))?;
    let guests = booted.marks("file7").last().unwrap_or_default();
    ensure(!guests.is_empty() && ours.starts_with(guests), || {
        format!("file7 in the image is {ours}, in the guest {guests}")
    })?;
    server.stop()?;
    Ok(booted.marks("seen").collect::<Vec<_>>().join("; "))
}

fn reset(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "reset")?;
    guest.reboots = true;
    guest.device(&device(stage, "nvme"));
    let mut booted = guest.boot(stage, "guest")?;
    for _ in 0..2 {
        booted.mark("which", LIMIT)?;
        booted.reply("load")?;
        booted.mark("flushed", LIMIT)?;
        booted.monitor()?.execute("system_reset", json!({}))?;
        booted.mark("begin", LIMIT)?;
    }
    booted.mark("which", LIMIT)?;
    booted.reply("data")?;
    booted.mark("look", LIMIT)?;
    let status = server.status()?;
    booted.reply("go")?;
    booted.finish(LIMIT)?;
    compare(stage, &disk, &booted)?;
    PinnedMemory::of_files(&status, 1)?;
    server.stop()?;
    Ok("2 resets under load, then all data right".to_owned())
}

fn unplug(stage: &Stage<'_>) -> Verdict {
    // Not MSI-X: QEMU 11.1 aborts when a vfio-user device with MSI-X is unplugged, because of its pending bits region.
    let (server, disk) = serve(stage, "interrupts = [\"msi\", \"intx\"]")?;
    let mut guest = guest(stage, "unplug")?;
    guest.qemu_args("-device pcie-root-port,id=slot1,chassis=1,slot=1");
    let mut plugged = device(stage, "nvme");
    plugged["bus"] = json!("slot1");
    guest.device(&plugged);
    let mut booted = guest.boot(stage, "guest")?;
    booted.mark("unplug", LIMIT)?;
    let monitor = booted.monitor()?;
    monitor.execute("device_del", json!({ "id": "nvme" }))?;
    monitor.event("DEVICE_DELETED", |event| event["data"]["device"] == "nvme")?;
    let took = server.becomes(SECOND, "without client and pins", |status| {
        status["clients"].as_array().is_some_and(Vec::is_empty) && status["memory"]["registrations"] == 0
    })?;
    booted.reply("gone")?;
    booted.mark("plug", LIMIT)?;
    booted.monitor()?.execute("device_add", plugged)?;
    booted.reply("there")?;
    booted.mark("look", LIMIT)?;
    booted.reply("go")?;
    booted.finish(LIMIT)?;
    compare(stage, &disk, &booted)?;
    server.stop()?;
    Ok(format!("pins back in {} ms, then plugged in again", took.as_millis()))
}

fn kill_guest(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "")?;
    let before = server.pinned_kilobytes()?;
    let mut guest = guest(stage, "load")?;
    guest.cpus = 2;
    guest.device(&device(stage, "nvme"));
    let mut booted = guest.boot(stage, "first")?;
    for _ in 0..20 {
        booted.mark("flushed", LIMIT)?;
    }
    let pinned = server.pinned_kilobytes()?;
    ensure(pinned > before, || format!("{pinned} KiB are pinned with a guest at work, {before} without"))?;
    booted.machine.kill();
    let took = server.becomes(SECOND, "without client and pins", |status| {
        status["clients"].as_array().is_some_and(Vec::is_empty) && status["memory"]["registrations"] == 0
    })?;
    let after = server.pinned_kilobytes()?;
    ensure(after == before, || format!("{after} KiB are pinned after the guest, {before} before"))?;

    let mut next = super::disk::guest(stage, "data")?;
    next.kernel_args("fresh=no");
    next.device(&device(stage, "nvme"));
    let mut booted = next.boot(stage, "second")?;
    booted.mark("look", LIMIT)?;
    booted.reply("go")?;
    booted.finish(LIMIT)?;
    compare(stage, &disk, &booted)?;
    server.stop()?;
    Ok(format!("{pinned} KiB unpinned after {} ms, the next guest served", took.as_millis()))
}

fn kill_server(stage: &Stage<'_>) -> Verdict {
    let (mut server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "load")?;
    guest.cpus = 2;
    guest.device(&device(stage, "nvme"));
    let mut booted = guest.boot(stage, "guest")?;
    for _ in 0..60 {
        booted.mark("flushed", LIMIT)?;
    }
    server.kill();
    // Marks printed before the kill may still arrive; all of them count.
    let _ = booted.machine.wait(SECOND * 2, "nothing", |_| None::<()>);
    let last = booted.marks("flushed").filter_map(|count| count.parse::<u64>().ok()).max().unwrap_or(0);
    booted.machine.kill();
    let mut tool = Command::new(stage.artifacts.guest_tool()?);
    run(tool.arg("verify").arg(&disk).args([&last.to_string(), NUMBERED]))?;
    Ok(format!("{last} numbered blocks were flushed and are there"))
}
