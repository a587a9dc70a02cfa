//! A status as a web page that a person can read: clients, devices, memory, throughput, and what waits for what. It needs no script
//! and loads nothing; the browser requests it again every few seconds.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::status::{ClientStatus, MemoryStatus, Status};
use crate::units::{Bytes, Count, Number};

/// Seconds until the browser requests the page again.
const REFRESH_SECONDS: u32 = 2;
/// The time over which throughput is measured: the shortest and the longest.
const MEASURED: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(10);
/// Samples kept, however often the page is requested.
const MAX_SAMPLES: usize = 64;

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem}\
h1{font-size:1.5rem;margin:0}h2{font-size:1.1rem;margin:1.8rem 0 .5rem}\
p{margin:.3rem 0}.muted{opacity:.7}\
table{border-collapse:collapse;width:100%}\
th,td{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884;vertical-align:top}\
th{font-weight:600;opacity:.75;white-space:nowrap}\
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
td.path{overflow-wrap:anywhere}td .muted{white-space:nowrap}\
.wide{overflow-x:auto}\
meter{width:16rem;height:1rem;vertical-align:middle}\
.bad{color:#c33;font-weight:600}";

/// The work of a client's device at one time.
#[derive(Clone, Copy, Default)]
struct Work {
    read_commands: u64,
    read_bytes: u64,
    write_commands: u64,
    write_bytes: u64,
}

impl Work {
    fn of(client: &ClientStatus) -> Self {
        let counter = |name: &str| client.device.get(name).copied().unwrap_or_default();
        Self {
            read_commands: counter("read_commands"),
            read_bytes: counter("read_bytes"),
            write_commands: counter("write_commands"),
            write_bytes: counter("write_bytes"),
        }
    }
}

/// Throughput per second.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Rates {
    read_commands: f64,
    read_bytes: f64,
    write_commands: f64,
    write_bytes: f64,
}

/// Measures throughput between requests of the page.
#[derive(Default)]
pub(crate) struct Throughput(Mutex<VecDeque<(Instant, BTreeMap<u64, Work>)>>);

impl Throughput {
    /// The throughput of each client at `now`, since the oldest sample that is not too old; empty at the first request.
    pub(crate) fn measure(&self, status: &Status, now: Instant) -> BTreeMap<u64, Rates> {
        let work: BTreeMap<u64, Work> =
            status.clients.iter().map(|client| (client.id, Work::of(client))).collect();
        // A poisoned list has whole samples.
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|(at, _)| now.saturating_duration_since(*at) <= *MEASURED.end());
        let rates = samples.front().map(|(at, before)| (now.saturating_duration_since(*at), before));
        let rates = rates.filter(|(elapsed, _)| elapsed >= MEASURED.start()).map(|(elapsed, before)| {
            let per_second =
                |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed.as_secs_f64();
            let rates = |(id, now): (&u64, &Work)| {
                let before = before.get(id).copied().unwrap_or_default();
                let rates = Rates {
                    read_commands: per_second(now.read_commands, before.read_commands),
                    read_bytes: per_second(now.read_bytes, before.read_bytes),
                    write_commands: per_second(now.write_commands, before.write_commands),
                    write_bytes: per_second(now.write_bytes, before.write_bytes),
                };
                (*id, rates)
            };
            work.iter().map(rates).collect()
        });
        let rates = rates.unwrap_or_default();
        let is_new =
            samples.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= *MEASURED.start());
        if is_new && samples.len() < MAX_SAMPLES {
            samples.push_back((now, work));
        }
        rates
    }
}

impl fmt::Debug for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throughput").finish_non_exhaustive()
    }
}

/// The page of `status`, with the throughput of its clients.
#[must_use]
pub(crate) fn html(status: &Status, rates: &BTreeMap<u64, Rates>) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write_page(&mut out, status, rates);
    out
}

fn write_page(out: &mut String, status: &Status, rates: &BTreeMap<u64, Rates>) -> fmt::Result {
    let clients = Number(status.clients.len() as u64, "client");
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"refresh\" content=\"{REFRESH_SECONDS}\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>prereg: {clients}</title><style>{STYLE}</style></head><body>\n"
    )?;
    writeln!(
        out,
        "<h1>prereg</h1><p class=\"muted\">version {}, process {}, up {}; {clients} on {}; \
         <a href=\"/metrics\">metrics</a></p>",
        Text(&status.version),
        status.pid,
        super::print::Duration(status.uptime_seconds),
        Number(status.sockets.len() as u64, "socket"),
    )?;
    devices(out, status)?;
    throughput(out, status, rates)?;
    memory(out, &status.memory)?;
    waiting(out, status)?;
    refusals(out, status)?;
    out.push_str("</body></html>\n");
    Ok(())
}

fn devices(out: &mut String, status: &Status) -> fmt::Result {
    out.push_str("<h2>Devices</h2>\n<div class=\"wide\"><table>");
    head(out, &["Socket", "Device"], &["Clients"])?;
    for socket in &status.sockets {
        write!(out, "<tr><td class=\"path\">{}</td><td>{}</td>", Text(&socket.path), Text(&socket.model))?;
        number(out, "socket-clients", Count(socket.clients))?;
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    Ok(())
}

fn throughput(out: &mut String, status: &Status, rates: &BTreeMap<u64, Rates>) -> fmt::Result {
    out.push_str("<h2>Clients</h2>\n");
    if status.clients.is_empty() {
        out.push_str("<p class=\"muted\">none is connected</p>\n");
        return Ok(());
    }
    out.push_str("<div class=\"wide\"><table>");
    let numbers = [
        "Reads/s",
        "Read",
        "Writes/s",
        "Written",
        "In flight",
        "Mean latency",
        "Errors",
        "Mapped",
        "Mappings",
    ];
    head(out, &["Client", "Socket"], &numbers)?;
    for client in &status.clients {
        let fatal = client.device.get("csts").is_some_and(|csts| csts & 2 != 0);
        write!(
            out,
            "<tr><td>{} <span class=\"muted\">process {}, user {}</span>{}</td><td class=\"path\">{}</td>",
            client.id,
            client.pid,
            client.uid,
            if fatal { " <span class=\"bad\">controller failed</span>" } else { "" },
            Text(&client.socket)
        )?;
        match rates.get(&client.id) {
            Some(rates) => {
                number(out, "reads-per-second", format_args!("{:.0}", rates.read_commands))?;
                number(out, "read-rate", format_args!("{}/s", Bytes(rates.read_bytes as u64)))?;
                number(out, "writes-per-second", format_args!("{:.0}", rates.write_commands))?;
                number(out, "write-rate", format_args!("{}/s", Bytes(rates.write_bytes as u64)))?;
            }
            None => {
                for name in ["reads-per-second", "read-rate", "writes-per-second", "write-rate"] {
                    number(out, name, "…")?;
                }
            }
        }
        number(out, "in-flight", Count(client.device.get("in_flight").copied().unwrap_or_default()))?;
        number(out, "latency", Latency::of(client))?;
        number(out, "errors", Count(errors(client)))?;
        number(out, "mapped", Bytes(client.mapped_bytes))?;
        number(out, "mappings", Count(client.mappings))?;
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    Ok(())
}

/// Commands of the client that ended with an error.
fn errors(client: &ClientStatus) -> u64 {
    client.device.iter().filter(|(name, _)| name.starts_with("status_")).map(|(_, count)| count).sum()
}

/// The mean latency of all commands since the client connected.
struct Latency(Option<f64>);

impl Latency {
    fn of(client: &ClientStatus) -> Self {
        let count: u64 =
            client.latencies.iter().flat_map(|latency| &latency.buckets).map(|(_, count)| count).sum();
        let sum: u64 = client.latencies.iter().map(|latency| latency.nanoseconds_total).sum();
        Self((count > 0).then(|| sum as f64 / count as f64))
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("–"),
            Some(nanoseconds) if nanoseconds < 1e6 => write!(f, "{:.0} µs", nanoseconds / 1e3),
            Some(nanoseconds) => write!(f, "{:.1} ms", nanoseconds / 1e6),
        }
    }
}

fn memory(out: &mut String, memory: &MemoryStatus) -> fmt::Result {
    out.push_str("<h2>Guest memory</h2>\n");
    let used = memory.pinned_bytes.saturating_add(memory.promised_bytes);
    match memory.total_limit_bytes {
        Some(limit) => writeln!(
            out,
            "<p><meter min=\"0\" max=\"{limit}\" high=\"{}\" value=\"{used}\"></meter> {} of {} for all clients</p>",
            limit / 10 * 9,
            Bytes(used),
            Bytes(limit)
        )?,
        None => writeln!(out, "<p>{} in use, without a limit</p>", Bytes(used))?,
    }
    out.push_str("<div class=\"wide\"><table>");
    let columns =
        ["Pinned", "Promised", "Charged", "Lockable", "For one client", "Files", "Registrations", "Pins"];
    head(out, &[], &columns)?;
    out.push_str("<tr>");
    let limit = |limit: Option<u64>| limit.map_or("no limit".to_owned(), |limit| Bytes(limit).to_string());
    number(out, "pinned", Bytes(memory.pinned_bytes))?;
    number(out, "promised", Bytes(memory.promised_bytes))?;
    number(out, "charged", Bytes(memory.charged_bytes))?;
    number(out, "memlock-limit", limit(memory.memlock_limit_bytes))?;
    number(out, "client-limit", limit(memory.client_limit_bytes))?;
    number(out, "files", Count(memory.files.len() as u64))?;
    number(out, "registrations", Count(memory.registrations))?;
    number(out, "pins", Count(memory.pins_total))?;
    out.push_str("</tr></table></div>\n");
    if memory.refused_maps_total + memory.failed_pins_total > 0 {
        writeln!(
            out,
            "<p class=\"bad\">{} refused because of a limit, {} failed after the reply: a device cannot reach memory of \
             its guest; the log says why</p>",
            Number(memory.refused_maps_total, "map"),
            Number(memory.failed_pins_total, "pin")
        )?;
    }
    Ok(())
}

fn waiting(out: &mut String, status: &Status) -> fmt::Result {
    out.push_str("<h2>Waiting</h2>\n");
    let before = out.len();
    if status.memory.pinning_mappings > 0 {
        writeln!(
            out,
            "<p>{} being pinned in the background</p>",
            Number(status.memory.pinning_mappings, "mapping")
        )?;
    }
    for client in &status.clients {
        for unmap in &client.pending_unmaps {
            for mapping in &unmap.mappings {
                writeln!(
                    out,
                    "<p>An unmap of client {} has waited for {}: {} at {:#x} is in use by {} of the device</p>",
                    client.id,
                    super::print::Duration(unmap.age_seconds),
                    Bytes(mapping.bytes),
                    mapping.iova,
                    Number(mapping.inflight_accesses, "access")
                )?;
            }
        }
    }
    if out.len() == before {
        out.push_str("<p class=\"muted\">nothing waits</p>\n");
    }
    Ok(())
}

fn refusals(out: &mut String, status: &Status) -> fmt::Result {
    out.push_str("<h2>Since the start</h2>\n<div class=\"wide\"><table>");
    head(out, &["Event"], &["Count"])?;
    let mut row = |what: &str, count: u64| -> fmt::Result {
        write!(out, "<tr><td>{}</td>", Text(what))?;
        number(out, "count", Count(count))?;
        out.push_str("</tr>\n");
        Ok(())
    };
    row("connections accepted", status.accepted_connections_total)?;
    row("connections rejected, because there were too many", status.rejected_connections_total)?;
    for (reason, count) in &status.disconnects_total {
        row(&format!("connections ended: {reason}"), *count)?;
    }
    for (command, reasons) in &status.requests.rejected_total {
        for (reason, count) in reasons {
            row(&format!("requests refused: {command} ({reason})"), *count)?;
        }
    }
    out.push_str("</table></div>\n");
    Ok(())
}

fn head(out: &mut String, texts: &[&str], numbers: &[&str]) -> fmt::Result {
    out.push_str("<tr>");
    texts.iter().try_for_each(|name| write!(out, "<th>{name}</th>"))?;
    numbers.iter().try_for_each(|name| write!(out, "<th class=\"number\">{name}</th>"))?;
    out.push_str("</tr>\n");
    Ok(())
}

/// A cell with a number; `name` is for programs that read the page.
fn number(out: &mut String, name: &str, value: impl fmt::Display) -> fmt::Result {
    write!(out, "<td class=\"number\" data-name=\"{name}\">{value}</td>")
}

/// Text in which markup means nothing.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                other => f.write_char(other)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::status::{LatencyStatus, MappingInUse, PendingUnmap, SocketStatus};

    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];

    /// Checks that every element is closed in order; returns the cells by name.
    fn cells(page: &str) -> BTreeMap<String, Vec<String>> {
        let (mut open, mut cells) = (Vec::new(), BTreeMap::<_, Vec<_>>::new());
        for piece in page.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').unwrap();
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "{tag}"),
                None if VOID.contains(&name) => {}
                None => open.push(name),
            }
            if let Some((_, rest)) = tag.split_once("data-name=\"") {
                cells.entry(rest.trim_end_matches('"').to_owned()).or_default().push(text.to_owned());
            }
        }
        assert!(open.is_empty(), "not closed: {open:?}");
        cells
    }

    fn client(id: u64, socket: &str, reads: u64) -> ClientStatus {
        let device =
            [("read_commands", reads), ("read_bytes", reads * 4096), ("in_flight", 3), ("status_2_80", 5)];
        ClientStatus {
            id,
            socket: socket.to_owned(),
            mappings: 7,
            mapped_bytes: 1 << 30,
            device: device.map(|(name, value)| (name.to_owned(), value)).into(),
            latencies: vec![LatencyStatus {
                command: "read".to_owned(),
                nanoseconds_total: 80_000,
                buckets: vec![(1 << 16, 2)],
            }],
            ..ClientStatus::default()
        }
    }

    #[test]
    fn the_page_has_the_numbers_of_the_status() {
        let memory = MemoryStatus {
            pinned_bytes: 3 << 30,
            total_limit_bytes: Some(8 << 30),
            refused_maps_total: 2,
            ..MemoryStatus::default()
        };
        let pending_unmaps = vec![PendingUnmap {
            age_seconds: 4.0,
            mappings: vec![MappingInUse { iova: 0x1000, bytes: 4096, inflight_accesses: 1 }],
        }];
        let status = Status {
            memory,
            sockets: vec![SocketStatus { path: "a.sock".to_owned(), clients: 1, ..SocketStatus::default() }],
            clients: vec![ClientStatus { pending_unmaps, ..client(0, "a.sock", 10) }],
            ..Status::default()
        };
        let page = html(&status, &BTreeMap::new());
        let cells = cells(&page);
        for (name, value) in [
            ("pinned", "3 GiB"),
            ("client-limit", "no limit"),
            ("socket-clients", "1"),
            ("mapped", "1 GiB"),
            ("mappings", "7"),
            ("in-flight", "3"),
            ("errors", "5"),
            ("latency", "40 µs"),
            ("reads-per-second", "…"),
        ] {
            assert_eq!(cells[name], [value], "{name}");
        }
        assert!(page.contains("3 GiB of 8 GiB") && page.contains("2 maps refused"), "{page}");
        assert!(page.contains("An unmap of client 0 has waited for 4.0 s: 4 KiB at 0x1000"), "{page}");
    }

    #[test]
    fn throughput_is_measured_between_requests_of_several_viewers() {
        let (throughput, start) = (Throughput::default(), Instant::now());
        let status = |reads| Status { clients: vec![client(4, "a", reads)], ..Status::default() };
        assert!(throughput.measure(&status(1000), start).is_empty(), "nothing to compare with");
        for half_seconds in 1..=8u32 {
            let now = start + Duration::from_millis(500) * half_seconds;
            let rates = throughput.measure(&status(1000 + 50 * u64::from(half_seconds)), now)[&4];
            assert_eq!((rates.read_commands.round(), rates.read_bytes.round()), (100.0, 409_600.0));
        }
        let later = start + Duration::from_secs(3600);
        assert!(throughput.measure(&status(1_000_000), later).is_empty(), "not an average of an hour");
    }

    #[test]
    fn names_are_text_and_never_markup() {
        let name = "<script>alert('x')&\"";
        let sockets = vec![SocketStatus { path: name.to_owned(), ..SocketStatus::default() }];
        let status = Status { sockets, clients: vec![client(0, name, 1)], ..Status::default() };
        let page = html(&status, &BTreeMap::new());
        cells(&page);
        assert!(!page.contains("<script>") && page.matches("&lt;script&gt;").count() == 2, "{page}");
    }
}
