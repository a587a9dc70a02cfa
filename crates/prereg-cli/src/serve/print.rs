//! A status as people read it.

use std::io::{self, Write};

use super::status::{ClientStatus, MemoryStatus, Status};
use crate::quantity::{Bytes, Count, Number};

/// Regions that are listed for people.
const REGIONS: usize = 16;

/// Writes `status` as text.
///
/// # Errors
/// When `out` cannot be written.
pub fn print(status: &Status, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "prereg {}, process {}, up {}", status.version, status.pid, Span(status.uptime_seconds))?;
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

/// Writes what QEMU cannot do with a served device, for who starts a guest; `docs/qemu.md` has the details.
///
/// # Errors
/// When `out` cannot be written.
pub fn qemu_limits(has_msix: bool, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "What QEMU cannot do with it:")?;
    writeln!(out, "  migrate: QEMU reports success, but the device's state is lost")?;
    if has_msix {
        writeln!(out, "  unplug it with MSI-X: QEMU 11.1 aborts; serve with --interrupts msi instead")?;
    }
    writeln!(
        out,
        "  stop at memory that is refused: it goes on with the device, whose I/O there fails; read this log"
    )?;
    writeln!(out, "  see code that the disk puts into shared memory under TCG: use KVM, or boot with -kernel")
}

fn memory(memory: &MemoryStatus, out: &mut impl Write) -> io::Result<()> {
    let limit = memory.limit_bytes.map_or("no limit".to_owned(), |limit| format!("limit {}", Bytes(limit)));
    writeln!(out, "\nMemory")?;
    writeln!(
        out,
        "  pinned {} by {}, charged {} ({limit})",
        Bytes(memory.pinned_bytes),
        memory.back_end,
        Bytes(memory.charged_bytes)
    )?;
    writeln!(
        out,
        "  {}; {} pinned and {} unpinned since the start, {} found their memory registered",
        Number(memory.registrations, "live registration"),
        Number(memory.pins_total, "range"),
        Count(memory.unpins_total),
        Number(memory.shared_maps_total, "map")
    )?;
    let total =
        memory.total_limit_bytes.map_or("no limit".to_owned(), |limit| format!("limit {}", Bytes(limit)));
    writeln!(
        out,
        "  promised {}: mapped and not pinned yet{}; for all clients {total}",
        Bytes(memory.promised_bytes),
        match (memory.promised_bytes, memory.pinning_mappings) {
            (0, 0) => String::new(),
            (_, 0) => ", because it waits for the device's first access".to_owned(),
            (_, pinning) => format!(", {} being pinned in the background", Number(pinning, "mapping")),
        }
    )?;
    if memory.refused_maps_total + memory.failed_pins_total > 0 {
        writeln!(
            out,
            "  {} refused for want of room, {} failed after their map",
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
            stale => writeln!(out, "; {stale} stale, going with their last mapping")?,
        }
    }
    for region in memory.regions.iter().take(REGIONS) {
        let holders: Vec<String> = region
            .holders
            .iter()
            .map(|holder| format!("client {} {}", holder.client, Count(holder.mappings)))
            .collect();
        writeln!(
            out,
            "  region {:#x}  {}, used {}, mappings {}{}{}",
            region.ua,
            Bytes(region.bytes),
            region.used,
            Count(region.mappings),
            if holders.is_empty() { String::new() } else { format!(" ({})", holders.join(", ")) },
            if region.draining { ", waits for its last mapping" } else { "" }
        )?;
    }
    if let Some(more) = memory.regions.len().checked_sub(REGIONS).filter(|more| *more > 0) {
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
        "  {} of {}, {} under way; {}, {}",
        Number(client.mappings, "mapping"),
        Bytes(client.mapped_bytes),
        Number(client.accesses, "access"),
        Number(client.maps_total, "map"),
        Number(client.unmaps_total, "unmap")
    )?;
    for waiting in &client.waiting {
        for held in &waiting.mappings {
            writeln!(
                out,
                "  unmap waits for {}: {} at {:#x} is held by {} of the device",
                Span(waiting.seconds),
                Bytes(held.bytes),
                held.iova,
                Number(held.accesses, "access")
            )?;
        }
    }
    let requests = &client.requests;
    list(out, "requests", requests.performed_total.iter().map(|(name, count)| (name.clone(), *count)))?;
    let refused = requests.refused_total.iter().flat_map(|(command, reasons)| {
        reasons.iter().map(move |(reason, count)| (format!("{command} ({reason})"), *count))
    });
    list(out, "refused", refused)?;
    list(out, "device", client.device.iter().map(|(name, count)| (name.clone(), *count)))
}

/// What there is some of.
fn list(out: &mut impl Write, what: &str, counts: impl Iterator<Item = (String, u64)>) -> io::Result<()> {
    let some: Vec<String> = counts
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| format!("{name} {}", Count(count)))
        .collect();
    if some.is_empty() { Ok(()) } else { writeln!(out, "  {what}: {}", some.join(", ")) }
}

/// Seconds in the two units that matter.
struct Span(f64);

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Saturating: a duration is never negative, and 2^64 seconds are enough.
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
    use crate::serve::status::{HeldStatus, RegionStatus, WaitingStatus};

    #[test]
    fn what_qemu_cannot_do_is_said_where_it_applies() {
        for has_msix in [false, true] {
            let mut text = Vec::new();
            qemu_limits(has_msix, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(["migrate", "refused", "TCG"].iter().all(|word| text.contains(word)), "{text}");
            assert_eq!(text.contains("--interrupts msi"), has_msix, "{text}");
        }
    }

    #[test]
    fn what_holds_what_is_said_in_words() {
        let status = Status {
            version: "1".to_owned(),
            uptime_seconds: 3725.0,
            memory: MemoryStatus {
                pinned_bytes: 512 << 20,
                regions: vec![RegionStatus {
                    bytes: 512 << 20,
                    used: 1,
                    mappings: 7,
                    ..RegionStatus::default()
                }],
                ..MemoryStatus::default()
            },
            clients: vec![ClientStatus {
                id: 3,
                waiting: vec![WaitingStatus {
                    seconds: 0.25,
                    mappings: vec![HeldStatus { iova: 0x1000, bytes: 4096, accesses: 2 }],
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
            "unmap waits for 0.2 s: 4 KiB at 0x1000 is held by 2 accesses of the device",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }
}
