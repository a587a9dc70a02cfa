//! Guests with unusual memory: 7 GiB on a loaded machine, two nodes, huge pages.

use std::fs;

use super::super::case::{Case, Failure, Requirement, Stage, Suite, Verdict, ensure};
use super::super::guest::Ram;
use super::super::huge_pages::HugePages;
use super::super::load::Load;
use super::super::server::number;
use super::data::data;
use super::disk::{PinnedMemory, compare, device, guest, serve};
use crate::error::Error;

pub(super) const CASES: &[Case] = &[
    case("nvme-7-gib-beside-load", "7 GiB at QEMU's defaults on a machine with a load of 8", beside_load),
    case("nvme-two-nodes", "two memory nodes, each a memfd of its own, both used for I/O", two_nodes),
    case("nvme-hugetlb", "memory in huge pages", hugetlb),
];

const fn case(name: &'static str, shows: &'static str, run: fn(&Stage<'_>) -> Verdict) -> Case {
    Case { suite: Suite::Nvme, requires: Requirement::Disk, name, shows, run }
}

/// Busy processes next to the guest.
const LOAD: usize = 8;

/// QEMU's messages when a server does not answer within five seconds.
const LATE: [&str; 2] = ["timed out", "unexpected reply"];

fn beside_load(stage: &Stage<'_>) -> Verdict {
    let load = Load::of(LOAD)?;
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "data")?;
    guest.memory = "7G";
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    load.end()?;
    compare(stage, &disk, &booted)?;
    server.stop()?;
    let console = stage.file("guest.console");
    let said = fs::read_to_string(&console).map_err(Error::file(&console))?;
    let late = said.lines().find(|line| LATE.iter().any(|words| line.contains(words)));
    ensure(late.is_none(), || format!("QEMU waited in vain for an answer: {}", late.unwrap_or_default()))?;
    let mib = |name: &str| Ok::<_, Failure>(number(&status, &format!("/memory/{name}"))? >> 20);
    let (pinned, promised) = (mib("pinned_bytes")?, mib("promised_bytes")?);
    ensure(pinned + promised >= 7 << 10, || {
        format!("{pinned} MiB pinned and {promised} MiB promised: not 7 GiB")
    })?;
    Ok(format!("{pinned} MiB pinned, {promised} MiB not touched yet"))
}

fn two_nodes(stage: &Stage<'_>) -> Verdict {
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "nodes")?;
    guest.ram = Ram::TwoNodes;
    // More than either node has.
    guest.kernel_args("fill=300 fresh=no");
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    compare(stage, &disk, &booted)?;
    PinnedMemory::of_files(&status, 2)?;
    server.stop()?;
    Ok(booted.marks("seen").collect::<Vec<_>>().join("; "))
}

fn hugetlb(stage: &Stage<'_>) -> Verdict {
    let pages = HugePages::free(256)?;
    let (server, disk) = serve(stage, "")?;
    let mut guest = guest(stage, "data")?;
    guest.ram = Ram::Huge;
    guest.device(&device(stage, "nvme"));
    let (booted, status) = data(stage, &server, &guest)?;
    compare(stage, &disk, &booted)?;
    let kept = PinnedMemory::of_files(&status, 1)?;
    server.stop()?;
    drop(booted);
    drop(pages);
    Ok(format!("{} pieces of memory pinned", kept.pieces))
}
