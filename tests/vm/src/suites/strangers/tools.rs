//! Debian's programs for disks and file systems, in a guest with its file system in memory.

use super::super::case::{Case, Failure, Requirement, Stage, Suite, Verdict, ensure};
use super::super::guest::{BOOT, Booted, Guest};
use super::super::nvme::disk::{self, LIMIT, compare, device, serve};
use crate::error::Error;

pub(super) const CASES: &[Case] = &[
    case(
        "strangers-nvme-cli",
        "nvme-cli: lists, logs, features, passthrough, a format that is refused",
        nvme_cli,
    ),
    case(
        "strangers-fio",
        "fio with crc32c verification in eight shapes, and a damaged block that it finds",
        fio,
    ),
    case("strangers-xfs", "mkfs.xfs, its files compared after a remount, xfs_repair", |stage| {
        file_system(stage, "xfs", &["usr/sbin/mkfs.xfs", "usr/sbin/xfs_repair"])
    }),
    case("strangers-btrfs", "mkfs.btrfs, its files compared after a remount, btrfs check", |stage| {
        file_system(stage, "btrfs", &["usr/sbin/mkfs.btrfs", "usr/bin/btrfs"])
    }),
    case("strangers-f2fs", "mkfs.f2fs, its files compared after a remount, fsck.f2fs", |stage| {
        file_system(stage, "f2fs", &["usr/sbin/mkfs.f2fs", "usr/sbin/fsck.f2fs"])
    }),
    case(
        "strangers-kexec",
        "another kernel started by kexec under load: all that was flushed is there",
        kexec,
    ),
];

const fn case(name: &'static str, shows: &'static str, run: fn(&Stage<'_>) -> Verdict) -> Case {
    Case { suite: Suite::Strangers, requires: Requirement::Strangers, name, shows, run }
}

/// A guest with a disk and with `programs` of the suite's packages.
fn guest(stage: &Stage<'_>, script: &'static str, programs: &[&str]) -> Result<Guest, Failure> {
    let mut guest = disk::guest(stage, script)?;
    guest.memory = "1G";
    for program in programs {
        for needed in stage.artifacts.strangers()?.program_with_dependencies(program)? {
            guest.files.push((needed.place, needed.source));
        }
    }
    // Programs share libraries, and an archive has each file once.
    guest.files.sort();
    guest.files.dedup();
    guest.device(&device(stage, "nvme"));
    Ok(guest)
}

/// The script's summary.
fn seen(booted: &Booted) -> String {
    booted.marks("seen").collect::<Vec<_>>().join("; ")
}

fn nvme_cli(stage: &Stage<'_>) -> Verdict {
    let (server, _) = serve(stage, "")?;
    let mut guest = guest(stage, "nvme-cli", &["usr/sbin/nvme"])?;
    // Some commands map the controller's registers, which Debian's kernel refuses otherwise.
    guest.kernel_args("iomem=relaxed");
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(LIMIT)?;
    server.stop()?;
    Ok(seen(&booted))
}

fn fio(stage: &Stage<'_>) -> Verdict {
    let (server, _) = serve(stage, "")?;
    let mut guest = guest(stage, "fio", &["usr/bin/fio"])?;
    guest.cpus = 2;
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(LIMIT)?;
    server.stop()?;
    Ok(seen(&booted))
}

fn file_system(stage: &Stage<'_>, kind: &'static str, programs: &[&str]) -> Verdict {
    let (server, _) = serve(stage, "")?;
    let mut guest = guest(stage, "filesystem", programs)?;
    guest.drivers.push(kind);
    guest.kernel_args(&format!("fs={kind}"));
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(LIMIT)?;
    server.stop()?;
    Ok(seen(&booted))
}

/// Flushes before the other kernel is started.
const FLUSHES: usize = 20;

fn kexec(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "kexec", &["usr/sbin/kexec"])?;
    guest.cpus = 2;
    let next = stage.file("next.cpio");
    std::fs::write(&next, guest.initramfs(stage.artifacts)?).map_err(Error::file(&next))?;
    guest.files.push(("kexec/initrd".to_owned(), next));
    guest.files.push(("kexec/vmlinuz".to_owned(), stage.artifacts.pc_packed_kernel().to_owned()));
    let mut booted = guest.boot(stage, "guest")?;
    booted.mark("loaded", LIMIT)?;
    for _ in 0..FLUSHES {
        booted.mark("flushed", LIMIT)?;
    }
    booted.reply("go")?;
    booted.mark("begin", BOOT)?;
    let flushed = booted.marks("flushed").filter_map(|count| count.parse::<u64>().ok()).max().unwrap_or(0);
    ensure(flushed > 0, || "nothing was flushed before the other kernel came".to_owned())?;
    booted.mark("count", LIMIT)?;
    booted.reply(&flushed.to_string())?;
    booted.mark("look", LIMIT)?;
    booted.reply("go")?;
    booted.finish(LIMIT)?;
    compare(stage, &disk, &booted)?;
    server.stop()?;
    Ok(format!("{flushed} numbered blocks were there after it"))
}
