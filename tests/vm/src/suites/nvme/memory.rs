//! Guests whose memory is plugged and unplugged: a DIMM, and virtio-mem that grows, shrinks and grows.
//!
//! The I/O in between uses more memory than the guest has without the plugged part, and compares all of it: a server that kept
//! stale pins would read and write removed pages.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::case::{Case, Failure, Requirement, Stage, Suite, Verdict, ensure};
use super::super::guest::{Booted, Guest};
use super::super::server::{Server, number};
use super::disk::{LIMIT, PinnedMemory, device, guest, serve};

pub(super) const CASES: &[Case] = &[
    case("nvme-dimm", "a DIMM is plugged, used for I/O, unplugged, and plugged again", dimm),
    case("nvme-virtio-mem", "virtio-mem grows, shrinks and grows, with I/O in between", virtio_mem),
    case("nvme-virtio-mem-iommu", "the same under the guest's IOMMU", virtio_mem_behind_iommu),
];

const fn case(name: &'static str, shows: &'static str, run: fn(&Stage<'_>) -> Verdict) -> Case {
    Case { suite: Suite::Nvme, requires: Requirement::Disk, name, shows, run }
}

/// Bytes that are plugged and unplugged.
const MORE: u64 = 256 << 20;

/// MiB of memory that one I/O uses: more than the guest has without `MORE`.
const USED: &str = "fill=400";

fn small(stage: &Stage<'_>) -> Result<Guest, Failure> {
    let mut guest = guest(stage, "memory")?;
    guest.memory = "384M,slots=2,maxmem=4G";
    // Memory to be unplugged must not contain unmovable pages.
    guest.kernel_args("memhp_default_state=online_movable");
    guest.kernel_args(USED);
    guest.device(&device(stage, "nvme"));
    Ok(guest)
}

/// Lets the guest's script do its I/O with its current memory.
fn fill(booted: &mut Booted, word: &str) -> Result<(), Failure> {
    booted.mark("ready", LIMIT)?;
    booted.reply(word)?;
    booted.mark("filled", LIMIT).map(|_| ())
}

fn dimm(stage: &Stage<'_>) -> Verdict {
    let (server, _) = serve(stage, "")?;
    let mut booted = small(stage)?.boot(stage, "guest")?;
    for _ in 0..2 {
        let monitor = booted.monitor()?;
        monitor.execute(
            "object-add",
            json!({ "qom-type": "memory-backend-memfd", "id": "more", "size": MORE, "share": true }),
        )?;
        monitor.execute("device_add", json!({ "driver": "pc-dimm", "id": "dimm", "memdev": "more" }))?;
        fill(&mut booted, "more")?;
        PinnedMemory::of_files(&server.status()?, 2)?;
        booted.mark("ready", LIMIT)?;
        let monitor = booted.monitor()?;
        monitor.execute("device_del", json!({ "id": "dimm" }))?;
        monitor.event("DEVICE_DELETED", |event| event["data"]["device"] == "dimm")?;
        server.becomes(Duration::from_secs(5), "without the DIMM's pin", |status| {
            status["memory"]["files"].as_array().is_some_and(|files| files.len() == 1)
        })?;
        monitor.execute("object-del", json!({ "id": "more" }))?;
        booted.reply("less")?;
        booted.mark("filled", LIMIT)?;
    }
    booted.mark("ready", LIMIT)?;
    booted.reply("end")?;
    booted.finish(LIMIT)?;
    server.stop()?;
    Ok("2 rounds; its pin came and went with it".to_owned())
}

fn virtio_mem(stage: &Stage<'_>) -> Verdict {
    grow_and_shrink(stage, |_| {})
}

fn virtio_mem_behind_iommu(stage: &Stage<'_>) -> Verdict {
    grow_and_shrink(stage, super::data::behind_iommu)
}

fn grow_and_shrink(stage: &Stage<'_>, more: impl FnOnce(&mut Guest)) -> Verdict {
    let (server, _) = serve(stage, "")?;
    let mut guest = small(stage)?;
    guest.drivers.push("virtio_mem");
    more(&mut guest);
    guest.qemu_args(&format!("-object memory-backend-memfd,id=more,size={MORE},share=on,reserve=off"));
    guest.qemu_args("-device virtio-mem-pci,id=vm,memdev=more,requested-size=0,block-size=2M");
    let mut booted = guest.boot(stage, "guest")?;
    for _ in 0..2 {
        resize(&mut booted, MORE)?;
        fill(&mut booted, "more")?;
        booted.mark("ready", LIMIT)?;
        resize(&mut booted, 0)?;
        booted.reply("less")?;
        booted.mark("filled", LIMIT)?;
    }
    // Half of the DMA maps came and went next to the other half.
    for size in [MORE, MORE / 2, MORE] {
        resize(&mut booted, size)?;
    }
    fill(&mut booted, "more")?;
    let said = memory(&server)?;
    booted.mark("ready", LIMIT)?;
    booted.reply("end")?;
    booted.finish(LIMIT)?;
    server.stop()?;
    Ok(said)
}

/// Requests `size` bytes of virtio-mem and waits until the guest has plugged them.
fn resize(booted: &mut Booted, size: u64) -> Result<(), Failure> {
    let monitor = booted.monitor()?;
    let path = "/machine/peripheral/vm";
    monitor.execute("qom-set", json!({ "path": path, "property": "requested-size", "value": size }))?;
    let begin = Instant::now();
    loop {
        let now = monitor.execute("qom-get", json!({ "path": path, "property": "size" }))?;
        if now.as_u64() == Some(size) {
            return Ok(());
        }
        ensure(begin.elapsed() < Duration::from_secs(120), || {
            format!("virtio-mem has {now} bytes instead of {size}")
        })?;
        thread::sleep(Duration::from_millis(50));
    }
}

/// The server's counters of the guest's memory.
fn memory(server: &Server) -> Result<String, Failure> {
    let status = server.status()?;
    let number = |name: &str| number(&status, &format!("/memory/{name}"));
    let maps = status["clients"][0]["maps_total"].as_u64().map_or(Value::Null, Value::from);
    Ok(format!(
        "{} registrations, {} pins made, {} stale extents, {maps} maps",
        number("registrations")?,
        number("pins_total")?,
        number("stale_extents_total")?
    ))
}
