//! A status as OpenMetrics text, for Prometheus, and in Prometheus's own text format.
//!
//! Names begin with `prereg_`; counters end in `_total`; sizes are in bytes, times in seconds. Series of clients have the label
//! `socket` and are sums over the clients of that socket; a counter starts again at 0 when a client disconnects.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::status::{ClientStatus, LatencyStatus, Status};

/// The metrics of `status` as text.
#[must_use]
pub(crate) fn text(status: Status) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(status)));
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

/// OpenMetrics text in the older text format of Prometheus, in which `HELP` and `TYPE` of a counter have its whole name.
#[must_use]
pub(crate) fn in_prometheus_format(open_metrics: &str) -> String {
    let name_of_counter =
        |line: &str| Some(line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?.to_owned());
    let counters: Vec<String> = open_metrics.lines().filter_map(name_of_counter).collect();
    let mut text = String::new();
    for line in open_metrics.lines().filter(|line| *line != "# EOF") {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        match described.and_then(|rest| rest.split_once(' ')) {
            Some((name, rest)) if counters.iter().any(|counter| counter == name) => {
                let keyword = &line[..7];
                text.push_str(&format!("{keyword}{name}_total {rest}\n"));
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[derive(Debug)]
struct Snapshot(Status);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for Family { name, help, kind, series } in FAMILIES {
            let series = series(&self.0);
            if !series.is_empty() {
                encode(&mut encoder, (name, help, kind), &series)?;
            }
        }
        for Family { name, help, kind, series } in CLIENT_FAMILIES {
            encode(&mut encoder, (name, help, kind), &by_socket(&self.0.clients, series))?;
        }
        latencies(&mut encoder, &self.0.clients)
    }
}

type Labels = Vec<(&'static str, String)>;
/// The values of one metric by their labels.
type Series = BTreeMap<Labels, u64>;

/// One metric, with its values in `T`.
struct Family<T> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    series: fn(&T) -> Series,
}

macro_rules! families {
    ($($kind:ident $name:literal $help:literal $series:expr;)*) => {
        [$(Family { name: $name, help: $help, kind: MetricType::$kind, series: $series }),*]
    };
}

const FAMILIES: [Family<Status>; 24] = families! {
    Gauge "prereg_build_info" "Version of the server" |status| {
        Series::from([(vec![("version", status.version.clone())], 1)])
    };
    Gauge "prereg_regions" "Pinned ranges" |status| one(len(&status.memory.regions));
    Gauge "prereg_registrations" "Live registrations of pinned ranges" |status| one(status.memory.registrations);
    Gauge "prereg_pinned_bytes" "Memory pinned" |status| one(status.memory.pinned_bytes);
    Gauge "prereg_charged_bytes" "Memory charged against the locked-memory limit" |status| {
        one(status.memory.charged_bytes)
    };
    Gauge "prereg_memlock_limit_bytes" "The locked-memory limit" |status| any(status.memory.memlock_limit_bytes);
    Gauge "prereg_memory_limit_bytes" "Limit on memory pinned or promised for all clients" |status| {
        any(status.memory.total_limit_bytes)
    };
    Gauge "prereg_client_memory_limit_bytes" "Limit on memory pinned or promised for one client" |status| {
        any(status.memory.client_limit_bytes)
    };
    Gauge "prereg_clients_limit" "Clients that are served at a time" |status| one(status.clients_limit);
    Gauge "prereg_open_descriptors" "Open descriptors" |status| any(status.open_descriptors);
    Gauge "prereg_descriptors_limit" "Limit on open descriptors" |status| any(status.descriptors_limit);
    Gauge "prereg_promised_bytes" "Memory mapped and promised, and not pinned yet" |status| {
        one(status.memory.promised_bytes)
    };
    Gauge "prereg_pinning_mappings" "Mappings whose memory is being pinned in the background" |status| {
        one(status.memory.pinning_mappings)
    };
    Counter "prereg_refused_maps" "DMA_MAPs refused because of a limit" |status| one(status.memory.refused_maps_total);
    Counter "prereg_failed_pins" "Pins that failed after the reply to DMA_MAP" |status| {
        one(status.memory.failed_pins_total)
    };
    Counter "prereg_pins" "Ranges pinned" |status| one(status.memory.pins_total);
    Counter "prereg_unpins" "Ranges unpinned" |status| one(status.memory.unpins_total);
    Counter "prereg_map_cache_hits" "DMA_MAPs of memory that was registered already" |status| {
        one(status.memory.map_cache_hits_total)
    };
    Counter "prereg_stale_extents" "Registered pieces whose pages a client had replaced" |status| {
        one(status.memory.stale_extents_total)
    };
    Gauge "prereg_memory_files" "Memory files of clients" |status| one(len(&status.memory.files));
    Counter "prereg_connections_accepted" "Connections accepted" |status| one(status.accepted_connections_total);
    Counter "prereg_connections_rejected" "Connections rejected because there were too many" |status| {
        one(status.rejected_connections_total)
    };
    Gauge "prereg_clients" "Connected clients" |status| {
        let sockets = status.sockets.iter();
        sockets.map(|socket| (vec![("socket", socket.path.clone())], socket.clients)).collect()
    };
    Counter "prereg_disconnects" "Ended connections" |status| by("reason", &status.disconnects_total);
};

const CLIENT_FAMILIES: [Family<ClientStatus>; 17] = families! {
    Gauge "prereg_mappings" "Live mappings" |client| one(client.mappings);
    Gauge "prereg_mapped_bytes" "Bytes mapped" |client| one(client.mapped_bytes);
    Gauge "prereg_inflight_accesses" "Accesses in flight" |client| one(client.inflight_accesses);
    Gauge "prereg_pending_unmaps" "DMA_UNMAPs without a reply, because the device still uses the memory" |client| {
        one(len(&client.pending_unmaps))
    };
    Counter "prereg_maps" "DMA_MAPs" |client| one(client.maps_total);
    Counter "prereg_unmaps" "DMA_UNMAPs" |client| one(client.unmaps_total);
    Counter "prereg_requests" "Completed requests" |client| by("command", &client.requests.completed_total);
    Counter "prereg_rejected_requests" "Rejected requests" |client| {
        let mut sums = BTreeMap::new();
        for (reason, count) in client.requests.rejected_total.values().flatten() {
            *sums.entry(reason.clone()).or_default() += count;
        }
        by("reason", &sums)
    };
    Counter "prereg_nvme_commands" "Commands completed" |client| by_op(client, "_commands");
    Counter "prereg_nvme_bytes" "Bytes transferred by commands" |client| by_op(client, "_bytes");
    Counter "prereg_nvme_errors" "Commands completed with an error, by status code type and status code" |client| {
        let errors = client.device.iter().filter_map(|(name, count)| {
            let (sct, sc) = name.strip_prefix("status_")?.split_once('_')?;
            Some((vec![("sct", sct.to_owned()), ("sc", sc.to_owned())], *count))
        });
        errors.collect()
    };
    Gauge "prereg_nvme_inflight_commands" "Commands in flight" |client| device(client, "in_flight");
    Counter "prereg_nvme_interrupts" "Interrupts signalled" |client| device(client, "interrupts");
    Gauge "prereg_nvme_io_queues" "Pairs of I/O queues" |client| device(client, "io_queues");
    Counter "prereg_nvme_doorbell_messages" "Doorbell writes that arrived as messages" |client| device(client, "doorbells");
    Counter "prereg_nvme_error_log_entries" "Entries of the error log" |client| device(client, "errors");
    Gauge "prereg_nvme_csts" "The register CSTS" |client| device(client, "csts");
};

fn len<T>(items: &[T]) -> u64 {
    u64::try_from(items.len()).unwrap_or(u64::MAX)
}

fn one(value: u64) -> Series {
    Series::from([(Labels::new(), value)])
}

fn any(value: Option<u64>) -> Series {
    value.map(one).unwrap_or_default()
}

fn by(label: &'static str, values: &BTreeMap<String, u64>) -> Series {
    values.iter().map(|(name, value)| (vec![(label, name.clone())], *value)).collect()
}

/// The counter `name` of the device.
fn device(client: &ClientStatus, name: &str) -> Series {
    any(client.device.get(name).copied())
}

/// The counters of the device whose names are a command and `suffix`.
fn by_op(client: &ClientStatus, suffix: &str) -> Series {
    let counters = client
        .device
        .iter()
        .filter_map(|(name, value)| Some((name.strip_suffix(suffix)?.to_owned(), *value)));
    by("op", &counters.collect())
}

/// The values of all clients, summed by socket.
fn by_socket(clients: &[ClientStatus], series: fn(&ClientStatus) -> Series) -> Series {
    let mut sums = Series::new();
    for client in clients {
        for (labels, value) in series(client) {
            let labels = [vec![("socket", client.socket.clone())], labels].concat();
            *sums.entry(labels).or_default() += value;
        }
    }
    sums
}

fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    series: &Series,
) -> fmt::Result {
    let write = |metric: MetricEncoder<'_>, value: u64| match kind {
        MetricType::Counter => ConstCounter::new(value).encode(metric),
        // Gauges are signed; nothing here is near the sign.
        _ => ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX)).encode(metric),
    };
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in series {
        if labels.is_empty() {
            // A family would write empty braces.
            return write(family, *value);
        }
        write(family.encode_family(labels)?, *value)?;
    }
    Ok(())
}

/// The buckets of every histogram: (lower bound, upper bound) in nanoseconds, powers of two from 1 microsecond to 8 seconds, and a
/// last one without an upper bound.
fn buckets() -> impl Iterator<Item = (u64, u64)> {
    let ends = (10..=33).map(|power| 1u64 << power).chain([u64::MAX]);
    ends.scan(0, |below, bound| Some((std::mem::replace(below, bound), bound)))
}

fn latencies(encoder: &mut DescriptorEncoder<'_>, clients: &[ClientStatus]) -> fmt::Result {
    let name = "prereg_nvme_command_duration_seconds";
    let mut family = encoder.encode_descriptor(name, "Latency of commands", None, MetricType::Histogram)?;
    let mut histograms: BTreeMap<Labels, Vec<&LatencyStatus>> = BTreeMap::new();
    for client in clients {
        for latency in &client.latencies {
            let labels = vec![("socket", client.socket.clone()), ("op", latency.command.clone())];
            histograms.entry(labels).or_default().push(latency);
        }
    }
    let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
    for (labels, latencies) in histograms {
        let counts = |below: u64, bound: u64| {
            let all = latencies.iter().flat_map(|latency| &latency.buckets);
            all.filter(|(at, _)| (below + 1..=bound).contains(at)).map(|(_, count)| count).sum::<u64>()
        };
        let buckets: Vec<(f64, u64)> = buckets()
            .map(|(below, bound)| {
                let end = if bound == u64::MAX { f64::INFINITY } else { seconds(bound) };
                (end, counts(below, bound))
            })
            .collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = latencies.iter().map(|latency| latency.nanoseconds_total).sum();
        family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(seconds(sum), count, &buckets, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::serve::status::{MemoryStatus, SocketStatus};

    fn client(id: u64, socket: &str) -> ClientStatus {
        ClientStatus { id, socket: socket.to_owned(), ..ClientStatus::default() }
    }

    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|have| have == *line), "no `{line}` in:\n{text}");
        }
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_metrics_that_there_are() {
        let memory = MemoryStatus {
            total_limit_bytes: Some(1),
            memlock_limit_bytes: Some(1),
            ..MemoryStatus::default()
        };
        let latencies = vec![LatencyStatus { buckets: vec![(512, 1)], ..LatencyStatus::default() }];
        let device =
            [("csts", 1), ("in_flight", 1), ("read_commands", 1), ("read_bytes", 1), ("status_2_80", 1)]
                .map(|(name, value)| (name.to_owned(), value));
        let client = ClientStatus { device: device.into(), latencies, ..client(7, "disk.sock") };
        let disconnects_total = [("closed".to_owned(), 1)].into();
        let sockets = vec![SocketStatus { path: "disk.sock".to_owned(), ..SocketStatus::default() }];
        let text =
            text(Status { memory, sockets, clients: vec![client], disconnects_total, ..Status::default() });
        for file in ["grafana-dashboard.json", "prometheus-rules.yml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(file);
            let queries = std::fs::read_to_string(path).unwrap();
            let mut names = 0;
            for (at, _) in queries.match_indices("prereg_") {
                let is_name = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
                let name = queries[at..].split(|byte| !is_name(byte)).next().unwrap();
                names += 1;
                assert!(
                    text.lines().any(|line| line.split(['{', ' ']).next() == Some(name)),
                    "{file}: {name}"
                );
            }
            assert!(names > 8, "{file} has {names} names");
        }
    }

    #[test]
    fn a_scrape_has_every_family_with_its_labels() {
        let client = ClientStatus {
            mappings: 3,
            maps_total: 4000,
            device: [("read_commands", 9), ("read_bytes", 4096), ("status_2_80", 1), ("in_flight", 2)]
                .map(|(name, value)| (name.to_owned(), value))
                .into(),
            latencies: vec![LatencyStatus {
                command: "read".to_owned(),
                nanoseconds_total: 5_000_000_000,
                buckets: vec![(512, 1), (1 << 17, 2), (1 << 40, 1)],
            }],
            ..client(7, "disk.sock")
        };
        let status = Status {
            version: "1.2".to_owned(),
            memory: MemoryStatus { registrations: 1, pinned_bytes: 1 << 30, ..MemoryStatus::default() },
            clients: vec![client],
            ..Status::default()
        };
        let text = text(status);
        assert_lines(
            &text,
            &[
                "prereg_build_info{version=\"1.2\"} 1",
                "prereg_registrations 1",
                "prereg_pinned_bytes 1073741824",
                "prereg_mappings{socket=\"disk.sock\"} 3",
                "prereg_maps_total{socket=\"disk.sock\"} 4000",
                "prereg_nvme_commands_total{socket=\"disk.sock\",op=\"read\"} 9",
                "prereg_nvme_bytes_total{socket=\"disk.sock\",op=\"read\"} 4096",
                "prereg_nvme_errors_total{socket=\"disk.sock\",sct=\"2\",sc=\"80\"} 1",
                "prereg_nvme_inflight_commands{socket=\"disk.sock\"} 2",
                "prereg_nvme_command_duration_seconds_sum{socket=\"disk.sock\",op=\"read\"} 5.0",
                "prereg_nvme_command_duration_seconds_count{socket=\"disk.sock\",op=\"read\"} 4",
                "# EOF",
            ],
        );
        assert!(!text.contains("prereg_memlock_limit_bytes"), "no limit is no series");
        let of = |bound: &str| {
            let wanted = format!("le=\"{bound}\"");
            let line = text.lines().find(|line| line.contains(&wanted));
            line.and_then(|line| line.rsplit(' ').next()).and_then(|count| count.parse::<u64>().ok())
        };
        assert_eq!(of("0.000001024"), Some(1));
        assert_eq!(of("0.000131072"), Some(3));
        assert_eq!(of("+Inf"), Some(4));
    }

    #[test]
    fn the_older_format_names_counters_in_full_and_promtool_accepts_it() {
        let text = in_prometheus_format(&text(Status { version: "1.2".to_owned(), ..Status::default() }));
        assert_lines(
            &text,
            &[
                "# HELP prereg_pins_total Ranges pinned",
                "# TYPE prereg_pins_total counter",
                "prereg_pins_total 0",
                "# TYPE prereg_pinned_bytes gauge",
            ],
        );
        assert!(!text.contains("EOF"), "{text}");
        use std::io::Write as _;
        use std::process::{Command, Stdio};
        let promtool = Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let Ok(mut promtool) = promtool else { return eprintln!("skipped in part: no promtool") };
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout.is_empty(), "{output:?}");
    }

    #[test]
    fn clients_of_one_socket_are_one_series() {
        let clients = [(1, "a"), (2, "b"), (3, "a")];
        let clients = clients.map(|(id, socket)| ClientStatus { mappings: id, ..client(id, socket) });
        let text = text(Status { clients: clients.into(), ..Status::default() });
        assert_lines(&text, &["prereg_mappings{socket=\"a\"} 4", "prereg_mappings{socket=\"b\"} 2"]);
    }
}
