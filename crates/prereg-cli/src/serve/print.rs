//! Prints a status as text.

use std::io::{self, Write};

use super::status::{ClientStatus, MemoryStatus, Status};
use crate::units::{Bytes, Count, Number};

/// Regions that are listed.
const MAX_REGIONS: usize = 16;

/// Writes `status` as text.
///
/// # Errors
/// If `out` cannot be written.
pub(crate) fn print(status: &Status, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "prereg {}, process {}, up {}",
        status.version,
        status.pid,
        Duration(status.uptime_seconds)
    )?;
    memory(&status.memory, out)?;
    writeln!(out, "\nSockets")?;
    for socket in &status.sockets {
        writeln!(out, "  {}  {}, {} connected", socket.path, socket.model, Number(socket.clients, "client"))?;
    }
    for client in &status.clients {
        self::client(client, out)?;
    }
    Ok(())
}

/// Writes the limits of QEMU with a served device; `docs/qemu.md` has the details.
///
/// # Errors
/// If `out` cannot be written.
pub(crate) fn qemu_limits(has_msix: bool, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "QEMU cannot:")?;
    writeln!(out, "  migrate: QEMU reports success, but the device's state is lost")?;
    if has_msix {
        writeln!(out, "  unplug it with MSI-X: QEMU 11.1 aborts; serve with --interrupts msi instead")?;
    }
    writeln!(
        out,
        "  stop when memory is refused: it continues with the device, whose I/O to that memory fails; read this log"
    )?;
    writeln!(
        out,
        "  run code that the disk loads into shared memory under TCG reliably: use KVM, or boot with -kernel"
    )
}

fn memory(memory: &MemoryStatus, out: &mut impl Write) -> io::Result<()> {
    let limit =
        memory.memlock_limit_bytes.map_or("no limit".to_owned(), |limit| format!("limit {}", Bytes(limit)));
    writeln!(out, "\nMemory")?;
    writeln!(
        out,
        "  pinned {} by {}, charged {} ({limit})",
        Bytes(memory.pinned_bytes),
        memory.backend,
        Bytes(memory.charged_bytes)
    )?;
    writeln!(
        out,
        "  {}; {} pinned and {} unpinned since the start, {} of registered memory",
        Number(memory.registrations, "live registration"),
        Number(memory.pins_total, "range"),
        Count(memory.unpins_total),
        Number(memory.map_cache_hits_total, "map")
    )?;
    let total =
        memory.total_limit_bytes.map_or("no limit".to_owned(), |limit| format!("limit {}", Bytes(limit)));
    writeln!(
        out,
        "  promised {}: mapped and not pinned yet{}; for all clients {total}",
        Bytes(memory.promised_bytes),
        match (memory.promised_bytes, memory.pinning_mappings) {
            (0, 0) => String::new(),
            (_, 0) => ", to be pinned at the device's first access".to_owned(),
            (_, pinning) => format!(", {} being pinned in the background", Number(pinning, "mapping")),
        }
    )?;
    if memory.refused_maps_total + memory.failed_pins_total > 0 {
        writeln!(
            out,
            "  {} refused because of a limit, {} failed after the reply",
            Number(memory.refused_maps_total, "map"),
            Number(memory.failed_pins_total, "pin")
        )?;
    }
    for file in &memory.files {
        write!(
            out,
            "  file {} inode {}  {}, {} registered in {}, shared by {}",
            file.device,
            file.inode,
            Bytes(file.bytes),
            Bytes(file.registered_bytes),
            Number(file.extents, "piece"),
            Number(file.clients, "client")
        )?;
        match file.stale_extents {
            0 => writeln!(out)?,
            stale => writeln!(out, "; {stale} stale, released with their last mapping")?,
        }
    }
    for region in memory.regions.iter().take(MAX_REGIONS) {
        let holders: Vec<String> = region
            .holders
            .iter()
            .map(|holder| format!("client {} {}", holder.client, Count(holder.mappings)))
            .collect();
        writeln!(
            out,
            "  region {:#x}  {}, registrations {}, mappings {}{}{}",
            region.user_address,
            Bytes(region.bytes),
            region.registrations,
            Count(region.mappings),
            if holders.is_empty() { String::new() } else { format!(" ({})", holders.join(", ")) },
            if region.draining { ", released with its last mapping" } else { "" }
        )?;
    }
    if let Some(more) = memory.regions.len().checked_sub(MAX_REGIONS).filter(|more| *more > 0) {
        writeln!(out, "  and {}; --json lists all", Number(more as u64, "more region"))?;
    }
    Ok(())
}

fn client(client: &ClientStatus, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "\nClient {}  {} at {}, process {}, user {}",
        client.id, client.model, client.socket, client.pid, client.uid
    )?;
    writeln!(
        out,
        "  {} of {}, {} in flight; {}, {}",
        Number(client.mappings, "mapping"),
        Bytes(client.mapped_bytes),
        Number(client.inflight_accesses, "access"),
        Number(client.maps_total, "map"),
        Number(client.unmaps_total, "unmap")
    )?;
    for unmap in &client.pending_unmaps {
        for mapping in &unmap.mappings {
            writeln!(
                out,
                "  unmap pending for {}: {} at {:#x} is in use by {} of the device",
                Duration(unmap.age_seconds),
                Bytes(mapping.bytes),
                mapping.iova,
                Number(mapping.inflight_accesses, "access")
            )?;
        }
    }
    let requests = &client.requests;
    list(out, "requests", requests.completed_total.iter().map(|(name, count)| (name.clone(), *count)))?;
    let rejected = requests.rejected_total.iter().flat_map(|(command, reasons)| {
        reasons.iter().map(move |(reason, count)| (format!("{command} ({reason})"), *count))
    });
    list(out, "rejected", rejected)?;
    list(out, "device", client.device.iter().map(|(name, count)| (name.clone(), *count)))
}

/// Writes the counts that are not zero.
fn list(out: &mut impl Write, what: &str, counts: impl Iterator<Item = (String, u64)>) -> io::Result<()> {
    let some: Vec<String> = counts
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {}", Count(count)))
        .collect();
    if some.is_empty() { Ok(()) } else { writeln!(out, "  {what}: {}", some.join(", ")) }
}

/// A duration in seconds, printed in its two largest units.
pub(super) struct Duration(pub(super) f64);

impl std::fmt::Display for Duration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Saturating, and a duration is never negative.
        let seconds = self.0 as u64;
        match seconds {
            0..60 => write!(f, "{:.1} s", self.0),
            60..3600 => write!(f, "{} min {} s", seconds / 60, seconds % 60),
            3600..86400 => write!(f, "{} h {} min", seconds / 3600, seconds % 3600 / 60),
            _ => write!(f, "{} d {} h", seconds / 86400, seconds % 86400 / 3600),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::status::{MappingInUse, PendingUnmap, RegionStatus};

    #[test]
    fn limits_of_qemu_are_printed_where_they_apply() {
        for has_msix in [false, true] {
            let mut text = Vec::new();
            qemu_limits(has_msix, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(["migrate", "refused", "TCG"].iter().all(|word| text.contains(word)), "{text}");
            assert_eq!(text.contains("--interrupts msi"), has_msix, "{text}");
        }
    }

    #[test]
    fn holders_of_memory_are_printed() {
        let status = Status {
            version: "1".to_owned(),
            uptime_seconds: 3725.0,
            memory: MemoryStatus {
                pinned_bytes: 512 << 20,
                regions: vec![RegionStatus {
                    bytes: 512 << 20,
                    registrations: 1,
                    mappings: 7,
                    ..RegionStatus::default()
                }],
                ..MemoryStatus::default()
            },
            clients: vec![ClientStatus {
                id: 3,
                pending_unmaps: vec![PendingUnmap {
                    age_seconds: 0.25,
                    mappings: vec![MappingInUse { iova: 0x1000, bytes: 4096, inflight_accesses: 2 }],
                }],
                ..ClientStatus::default()
            }],
            ..Status::default()
        };
        let mut text = Vec::new();
        print(&status, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        for part in [
            "up 1 h 2 min",
            "pinned 512 MiB",
            "mappings 7",
            "Client 3",
            "unmap pending for 0.2 s: 4 KiB at 0x1000 is in use by 2 accesses of the device",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }
}
