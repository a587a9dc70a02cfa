//! A status as Prometheus reads it: OpenMetrics text.
//!
//! Names begin with `prereg_`; counters end in `_total`; sizes are bytes, times seconds. A series belongs to a client
//! (`client`, `socket`) and ends with it, as its counters do.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::status::{ClientStatus, Status};

/// The metrics of `status` as text.
#[must_use]
pub fn text(status: Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(status)));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Snapshot(Status);

/// The labels of a client's series.
type Labels<'a> = Vec<(&'static str, String)>;

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = &self.0;
        let memory = &status.memory;
        let mut single = |name: &str, help: &str, kind: MetricType, value: u64| match kind {
            MetricType::Counter => {
                let metric = ConstCounter::new(value);
                metric.encode(encoder.encode_descriptor(name, help, None, kind)?)
            }
            _ => {
                let metric = ConstGauge::new(as_gauge(value));
                metric.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
            }
        };
        let count = |items: usize| u64::try_from(items).unwrap_or(u64::MAX);
        single("prereg_regions", "Pinned ranges", MetricType::Gauge, count(memory.regions.len()))?;
        single(
            "prereg_registrations",
            "Live registrations of pinned ranges",
            MetricType::Gauge,
            memory.registrations,
        )?;
        single("prereg_pinned_bytes", "Memory pinned", MetricType::Gauge, memory.pinned_bytes)?;
        single(
            "prereg_charged_bytes",
            "Memory charged against the locked-memory limit",
            MetricType::Gauge,
            memory.charged_bytes,
        )?;
        if let Some(limit) = memory.limit_bytes {
            single("prereg_charge_limit_bytes", "The locked-memory limit", MetricType::Gauge, limit)?;
        }
        if let Some(limit) = memory.total_limit_bytes {
            single(
                "prereg_memory_limit_bytes",
                "Memory that may be pinned or promised for all clients",
                MetricType::Gauge,
                limit,
            )?;
        }
        single(
            "prereg_promised_bytes",
            "Memory that is mapped and promised, and not pinned yet",
            MetricType::Gauge,
            memory.promised_bytes,
        )?;
        single(
            "prereg_pinning_mappings",
            "Mappings whose memory is being pinned in the background",
            MetricType::Gauge,
            memory.pinning_mappings,
        )?;
        single(
            "prereg_refused_maps",
            "Maps refused because there was no room for their memory",
            MetricType::Counter,
            memory.refused_maps_total,
        )?;
        single(
            "prereg_failed_pins",
            "Pins that failed after their map was answered",
            MetricType::Counter,
            memory.failed_pins_total,
        )?;
        single("prereg_pins", "Ranges pinned", MetricType::Counter, memory.pins_total)?;
        single("prereg_unpins", "Ranges unpinned", MetricType::Counter, memory.unpins_total)?;
        single(
            "prereg_shared_maps",
            "Maps that found their memory registered",
            MetricType::Counter,
            memory.shared_maps_total,
        )?;
        single(
            "prereg_stale_extents",
            "Registered pieces that a client had dropped behind our back",
            MetricType::Counter,
            memory.stale_extents_total,
        )?;
        single(
            "prereg_memory_files",
            "Files that clients handed over",
            MetricType::Gauge,
            count(memory.files.len()),
        )?;
        single("prereg_clients", "Clients connected", MetricType::Gauge, count(status.clients.len()))?;
        single(
            "prereg_clients_accepted",
            "Clients that ever came",
            MetricType::Counter,
            status.accepted_total,
        )?;
        single(
            "prereg_clients_turned_away",
            "Clients that were too many",
            MetricType::Counter,
            status.turned_away_total,
        )?;
        endings(&mut encoder, status)?;
        clients(&mut encoder, &status.clients)?;
        latencies(&mut encoder, &status.clients)
    }
}

/// Gauges are signed; nothing here comes near the sign.
fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The values of one client, each with the label that tells it from the client's others.
type Series = Vec<(Option<(&'static str, String)>, u64)>;

/// One metric, with the series it has for a client.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    series: fn(&ClientStatus) -> Series,
}

fn one(value: u64) -> Series {
    vec![(None, value)]
}

fn by(label: &'static str, values: &BTreeMap<String, u64>) -> Series {
    values.iter().map(|(name, value)| (Some((label, name.clone())), *value)).collect()
}

/// Over all commands.
fn reasons(refused: &BTreeMap<String, BTreeMap<String, u64>>) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for (reason, count) in refused.values().flatten() {
        *sums.entry(reason.clone()).or_default() += count;
    }
    sums
}

const FAMILIES: [Family; 9] = [
    Family {
        name: "prereg_mappings",
        help: "Live mappings of a device",
        kind: MetricType::Gauge,
        series: |client| one(client.mappings),
    },
    Family {
        name: "prereg_mapped_bytes",
        help: "What its mappings cover",
        kind: MetricType::Gauge,
        series: |client| one(client.mapped_bytes),
    },
    Family {
        name: "prereg_accesses",
        help: "Accesses under way",
        kind: MetricType::Gauge,
        series: |client| one(client.accesses),
    },
    Family {
        name: "prereg_unmaps_waiting",
        help: "Unmapped ranges not answered yet, because the device still uses them",
        kind: MetricType::Gauge,
        series: |client| one(u64::try_from(client.waiting.len()).unwrap_or(u64::MAX)),
    },
    Family {
        name: "prereg_maps",
        help: "DMA_MAPs",
        kind: MetricType::Counter,
        series: |client| one(client.maps_total),
    },
    Family {
        name: "prereg_unmaps",
        help: "DMA_UNMAPs",
        kind: MetricType::Counter,
        series: |client| one(client.unmaps_total),
    },
    Family {
        name: "prereg_requests",
        help: "Requests by command",
        kind: MetricType::Counter,
        series: |client| by("command", &client.requests.performed_total),
    },
    Family {
        name: "prereg_refusals",
        help: "Refused requests by reason",
        kind: MetricType::Counter,
        series: |client| by("reason", &reasons(&client.requests.refused_total)),
    },
    Family {
        name: "prereg_device",
        help: "The device's own counters",
        kind: MetricType::Gauge,
        series: |client| by("fact", &client.device),
    },
];

fn clients(encoder: &mut DescriptorEncoder<'_>, clients: &[ClientStatus]) -> fmt::Result {
    for Family { name, help, kind, series } in FAMILIES {
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for client in clients {
            for (extra, value) in series(client) {
                let labels = labels(client, extra);
                let metric = family.encode_family(&labels)?;
                match kind {
                    MetricType::Counter => ConstCounter::new(value).encode(metric)?,
                    _ => ConstGauge::new(as_gauge(value)).encode(metric)?,
                }
            }
        }
    }
    Ok(())
}

fn endings(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> fmt::Result {
    let kind = MetricType::Counter;
    let mut family =
        encoder.encode_descriptor("prereg_clients_ended", "Clients gone, by reason", None, kind)?;
    for (reason, count) in &status.endings_total {
        let labels = [("reason", reason.clone())];
        ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// The same buckets for every series and scrape: powers of two from 1 microsecond to 8 seconds, each with what it begins
/// above, in nanoseconds. The last one has no end.
fn bounds() -> impl Iterator<Item = (u64, u64)> {
    let ends = (10..=33).map(|power| 1u64 << power).chain([u64::MAX]);
    ends.scan(0, |below, bound| Some((std::mem::replace(below, bound), bound)))
}

/// Seconds, as the convention wants; the device counts in nanoseconds.
fn latencies(encoder: &mut DescriptorEncoder<'_>, clients: &[ClientStatus]) -> fmt::Result {
    let name = "prereg_command_duration_seconds";
    let help = "How long the device's commands took, by kind";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for client in clients {
        for latency in &client.latencies {
            let labels = labels(client, Some(("command", latency.command.clone())));
            let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
            let buckets: Vec<(f64, u64)> = bounds()
                .map(|(below, bound)| {
                    let within = latency.buckets.iter().filter(|(at, _)| (below + 1..=bound).contains(at));
                    (
                        if bound == u64::MAX { f64::INFINITY } else { seconds(bound) },
                        within.map(|(_, count)| count).sum(),
                    )
                })
                .collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                seconds(latency.nanoseconds_total),
                count,
                &buckets,
                None,
            )?;
        }
    }
    Ok(())
}

fn labels(client: &ClientStatus, extra: Option<(&'static str, String)>) -> Labels<'static> {
    let mut labels = vec![("client", client.id.to_string()), ("socket", client.socket.clone())];
    labels.extend(extra);
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::status::{LatencyStatus, MemoryStatus};

    #[test]
    fn a_scrape_has_every_family_with_its_labels() {
        let client = ClientStatus {
            id: 7,
            socket: "disk.sock".to_owned(),
            mappings: 3,
            maps_total: 4000,
            latencies: vec![LatencyStatus {
                command: "read".to_owned(),
                nanoseconds_total: 5_000_000_000,
                buckets: vec![(512, 1), (1 << 17, 2), (1 << 40, 1)],
            }],
            ..ClientStatus::default()
        };
        let status = Status {
            memory: MemoryStatus { registrations: 1, pinned_bytes: 1 << 30, ..MemoryStatus::default() },
            clients: vec![client],
            ..Status::default()
        };
        let text = text(status);
        for line in [
            "prereg_registrations 1",
            "prereg_pinned_bytes 1073741824",
            "prereg_mappings{client=\"7\",socket=\"disk.sock\"} 3",
            "prereg_maps_total{client=\"7\",socket=\"disk.sock\"} 4000",
            "prereg_command_duration_seconds_sum{client=\"7\",socket=\"disk.sock\",command=\"read\"} 5.0",
            "prereg_command_duration_seconds_count{client=\"7\",socket=\"disk.sock\",command=\"read\"} 4",
            "# EOF",
        ] {
            assert!(text.lines().any(|have| have == line), "no `{line}` in:\n{text}");
        }
        let of = |bound: &str| {
            let wanted = format!("le=\"{bound}\"");
            let line = text.lines().find(|line| line.contains(&wanted));
            line.and_then(|line| line.rsplit(' ').next()).and_then(|count| count.parse::<u64>().ok())
        };
        assert_eq!(of("0.000001024"), Some(1));
        assert_eq!(of("0.000131072"), Some(3));
        assert_eq!(of("+Inf"), Some(4));
    }
}
