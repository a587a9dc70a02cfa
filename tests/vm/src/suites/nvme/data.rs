//! Written data is read back: with every kind of interrupt, under an IOMMU, without shared memory, on two disks at once, and
//! from the guest's user space.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::case::{Case, Failure, Requirement, Stage, Suite, Verdict, ensure};
use super::super::guest::{Booted, Guest, Ram};
use super::super::server::{Controller, Server, Setup, number};
use super::disk::{DISK, LIMIT, PinnedMemory, compare, compare_with, device, disk, guest, serve, sum};
use crate::error::Error;

pub(super) const CASES: &[Case] = &[
    case("nvme-plain", "`prereg serve nvme`, and the arguments for QEMU that it prints", plain),
    case("nvme-msix", "the guest's own driver with MSI-X, two processors and queues", |stage| {
        interrupts(stage, "msix", 2)
    }),
    case("nvme-msi", "the same with MSI", |stage| interrupts(stage, "msi", 1)),
    case("nvme-intx", "the same with INTx", |stage| interrupts(stage, "intx", 1)),
    case("nvme-doorbells", "the same with doorbells in a shared page", doorbells),
    case("nvme-private", "the same in memory that the server cannot map", private),
    case("nvme-iommu", "thousands of maps of 4 KiB under a guest's IOMMU, nothing pinned twice", iommu),
    case("nvme-two", "two disks on one guest, its memory pinned once", two),
    case(
        "nvme-namespaces",
        "a namespace that may only be read, one of 4096 byte blocks, discard",
        namespaces,
    ),
    case("nvme-statuses", "commands, right and wrong, beside QEMU's own NVMe in the same guest", statuses),
    case("nvme-nested", "the guest passes the disk on to its own user space", nested),
];

const fn case(name: &'static str, shows: &'static str, run: fn(&Stage<'_>) -> Verdict) -> Case {
    Case { suite: Suite::Nvme, requires: Requirement::Disk, name, shows, run }
}

/// Adds an IOMMU: every map of the guest's kernel becomes one for the server.
pub(super) fn behind_iommu(guest: &mut Guest) {
    guest.qemu_args("-device intel-iommu,intremap=on,caching-mode=on");
    guest.kernel_args("intel_iommu=on iommu.strict=1");
}

/// Runs the script `data` to its end; returns the server's status just before.
pub(super) fn data(
    stage: &Stage<'_>,
    server: &Server,
    guest: &Guest,
) -> Result<(Booted, serde_json::Value), Failure> {
    let mut booted = guest.boot(stage, "guest")?;
    booted.mark("look", LIMIT)?;
    let status = server.status()?;
    booted.reply("go")?;
    booted.finish(LIMIT)?;
    Ok((booted, status))
}

fn plain(stage: &Stage<'_>) -> Verdict {
    let disk = disk(stage, "disk")?;
    let server = Server::start_plainly(stage, &stage.socket("nvme"), &disk)?;
    let mut guest = guest(stage, "data")?;
    guest.device(&server.printed_device()?);
    let (booted, _) = data(stage, &server, &guest)?;
    compare(stage, &disk, &booted)?;
    server.stop()?;
    Ok("one command, a working disk".to_owned())
}

fn interrupts(stage: &Stage<'_>, kind: &str, cpus: u32) -> Verdict {
    let (server, disk) = serve(stage, &format!("interrupts = [\"{kind}\"]"))?;
    let mut guest = guest(stage, "data")?;
    guest.cpus = cpus;
    guest.kernel_args(&format!("interrupts={kind}"));
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    compare(stage, &disk, &booted)?;
    PinnedMemory::of_files(&status, 1)?;
    server.stop()?;
    Ok(booted.marks("seen").collect::<Vec<_>>().join("; "))
}

fn doorbells(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "doorbells = \"mmap\"")?;
    let mut guest = guest(stage, "data")?;
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    compare(stage, &disk, &booted)?;
    let of = |name: &str| number(&status, &format!("/clients/0/{name}"));
    let commands = of("device/read_commands")? + of("device/write_commands")?;
    let messages = of("requests/completed_total/REGION_WRITE")?;
    // With doorbells as messages there would be one for almost every command.
    ensure(messages < commands / 4, || {
        format!("{messages} messages that write registers for {commands} commands: doorbells came by message")
    })?;
    server.stop()?;
    Ok(format!("{commands} commands, {messages} messages that write registers"))
}

fn private(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "data")?;
    guest.ram = Ram::Private;
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    compare(stage, &disk, &booted)?;
    let kept = PinnedMemory::of_files(&status, 0)?;
    ensure(kept.pins == 0, || format!("{} pins of memory that has no descriptor", kept.pins))?;
    server.stop()?;
    Ok("nothing was pinned".to_owned())
}

fn iommu(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "data")?;
    behind_iommu(&mut guest);
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    compare(stage, &disk, &booted)?;
    let kept = PinnedMemory::of_files(&status, 1)?;
    let maps = number(&status, "/clients/0/maps_total")?;
    ensure(maps >= 2000, || format!("only {maps} maps: the guest's IOMMU did not translate"))?;
    ensure(kept.pins == kept.pieces, || {
        format!("{} pins made of {} pieces in {maps} maps: some were made again", kept.pins, kept.pieces)
    })?;
    server.stop()?;
    Ok(format!("{maps} maps, {} pieces of memory pinned once in the whole run", kept.pins))
}

fn two(stage: &Stage<'_>) -> Verdict {
    let names = ["nvme", "other"];
    let (mut setup, mut disks) = (Setup::default(), Vec::new());
    for name in names {
        let disk = disk(stage, &format!("disk-{name}"))?;
        setup.controllers.push(Controller::new(stage.socket(name), &disk, ""));
        disks.push(disk);
    }
    let server = Server::start(stage, &setup)?;
    let mut guest = guest(stage, "data")?;
    guest.kernel_args("disks=2");
    for name in names {
        guest.device(&device(stage, name));
    }
    let (booted, status) = data(stage, &server, &guest)?;
    // The order of the guest's disks is random: each checksum belongs to one of the two, and they differ.
    let sums: Vec<&str> = booted.marks("random").collect();
    let [first, second] = sums[..] else {
        return Err(Failure::Check(format!("{} sums of random bytes instead of two", sums.len())));
    };
    let turned = compare_with(stage, &disks[0], first).is_err();
    compare_with(stage, &disks[usize::from(turned)], first)?;
    compare_with(stage, &disks[usize::from(!turned)], second)?;
    let kept = PinnedMemory::of_files(&status, 1)?;
    let clients = status["clients"].as_array().map_or(0, Vec::len);
    ensure(clients == 2, || format!("{clients} clients instead of two: {status}"))?;
    server.stop()?;
    Ok(format!("2 clients, 1 file of memory, {} pins made", kept.pins))
}

fn namespaces(stage: &Stage<'_>) -> Verdict {
    let (first, second) = (disk(stage, "disk-first")?, disk(stage, "disk-second")?);
    let before = sum(&first, 0, DISK >> 20)?;
    let namespace = format!(
        "[[nvme.namespace]]\nfile = {:?}\nread-only = true\n\n[[nvme.namespace]]\nfile = {:?}\nblock-size = 4096\n",
        first.display().to_string(),
        second.display().to_string()
    );
    let controller = Controller { socket: stage.socket("nvme"), namespaces: namespace, lines: String::new() };
    let server = Server::start(stage, &Setup { controllers: vec![controller], ..Setup::default() })?;
    let mut guest = guest(stage, "namespaces")?;
    guest.device(&device(stage, "nvme"));
    let mut booted = guest.boot(stage, "guest")?;
    booted.mark("look", LIMIT)?;
    let full = allocated(&second)?;
    booted.reply("go")?;
    booted.mark("look", LIMIT)?;
    let empty = allocated(&second)?;
    booted.reply("go")?;
    booted.finish(LIMIT)?;
    server.stop()?;
    ensure(sum(&first, 0, DISK >> 20)? == before, || "the disk that may only be read changed".to_owned())?;
    // Some file systems keep a few blocks allocated.
    ensure(full >= 32 << 20 && empty <= 1 << 20, || {
        format!("the file has {full} bytes before the discard and {empty} after it")
    })?;
    Ok(format!("{} MiB freed by a discard", (full - empty) >> 20))
}

/// The controller's statuses must be as recorded; QEMU's are only counted, because QEMU changes.
fn statuses(stage: &Stage<'_>) -> Verdict {
    let (server, _) = serve(stage, "")?;
    let peer = stage.file("peer");
    let file = std::fs::File::create(&peer).map_err(Error::file(&peer))?;
    file.set_len(DISK).map_err(Error::file(&peer))?;
    let mut guest = guest(stage, "statuses")?;
    guest.qemu_args(&format!("-drive file={},if=none,id=peer,format=raw", peer.display()));
    guest.qemu_args("-device nvme,drive=peer,serial=peer");
    guest.device(&device(stage, "nvme"));
    let mut booted = guest.boot(stage, "guest")?;
    booted.finish(LIMIT)?;
    server.stop()?;
    let path = stage.artifacts.data().join("nvme-statuses");
    let recorded = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
    let recorded: Vec<(&str, &str)> = recorded
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' ')?.0.rsplit_once(": "))
        .collect();
    let said = |word| booted.marks(word).filter_map(|line| line.rsplit_once(": ")).collect::<Vec<_>>();
    let (ours, theirs) = (said("ours"), said("theirs"));
    ensure(!recorded.is_empty() && ours.len() == recorded.len() && theirs.len() == recorded.len(), || {
        format!("{} and {} commands were answered of {}", ours.len(), theirs.len(), recorded.len())
    })?;
    let wrong: Vec<String> = ours
        .iter()
        .zip(&recorded)
        .filter(|(now, then)| now != then)
        .map(|((name, now), (_, then))| format!("{name}: {now} instead of {then}"))
        .collect();
    ensure(wrong.is_empty(), || wrong.join("; "))?;
    let equal = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours == theirs).count();
    Ok(format!("{equal} of {} commands end as with QEMU's, the others as recorded", ours.len()))
}

/// Bytes that the file system has allocated for `path`.
fn allocated(path: &Path) -> Result<u64, Failure> {
    let facts = std::fs::metadata(path).map_err(Error::file(path))?;
    Ok(facts.blocks() * 512)
}

fn nested(stage: &Stage<'_>) -> Verdict {
    let (server, _) = serve(stage, "")?;
    let mut guest = guest(stage, "nested")?;
    guest.drivers = vec!["vfio_pci", "vfio_iommu_type1"];
    behind_iommu(&mut guest);
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    let kept = PinnedMemory::of_files(&status, 1)?;
    let maps = number(&status, "/clients/0/maps_total")?;
    server.stop()?;
    let seen = booted.marks("seen").collect::<Vec<_>>().join("; ");
    Ok(format!("{seen}; {maps} maps, {} pieces of memory pinned", kept.pieces))
}
