//! Collects a [`Status`] from the state of a server.

use std::collections::BTreeMap;
use std::time::Instant;

use prereg_linux::MemlockAccount;
use prereg_vfio_user::server::{ClientState, RequestCounts, ServerState, StoreState};

use super::fit::descriptor_limits;
use super::status::{
    ClientStatus, FileStatus, HolderStatus, LatencyStatus, MappingInUse, MemoryStatus, PendingUnmap,
    RegionStatus, RequestStatus, SocketStatus, Status,
};

/// The constant part of the status.
#[derive(Debug)]
pub(crate) struct Collector {
    /// Start of the server.
    pub started: Instant,
    /// The pin back end.
    pub backend: &'static str,
    /// The host's page size.
    pub granule: prereg::Granule,
    /// Clients that the server takes at a time.
    pub clients_limit: usize,
}

impl Collector {
    /// The status of a server in `state`.
    #[must_use]
    pub(crate) fn status(&self, state: ServerState) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            memory: self.memory(&state.store),
            sockets: state
                .sockets
                .iter()
                .map(|(path, model)| SocketStatus {
                    path: path.display().to_string(),
                    model: model.clone(),
                    clients: count(
                        state.clients.iter().filter(|client| client.socket.as_ref() == Some(path)),
                    ),
                })
                .collect(),
            accepted_connections_total: state.accepted,
            rejected_connections_total: state.rejected,
            disconnects_total: state.disconnects,
            requests: requests(state.requests),
            clients: state.clients.into_iter().map(client).collect(),
            clients_limit: self.clients_limit as u64,
            // Without the one of the list itself.
            open_descriptors: std::fs::read_dir("/proc/self/fd")
                .ok()
                .map(|open| (open.count() as u64).saturating_sub(1)),
            descriptors_limit: descriptor_limits().map(|(soft, _)| soft),
        }
    }

    fn memory(&self, store: &StoreState) -> MemoryStatus {
        let shift = self.granule.shift().get();
        let space = &store.space;
        MemoryStatus {
            backend: self.backend.to_owned(),
            pinned_bytes: space.pinned_pages << shift,
            charged_bytes: space.charged_pages << shift,
            memlock_limit_bytes: MemlockAccount::new(self.granule).limit().map(|pages| pages << shift),
            total_limit_bytes: store.total_bytes_limit,
            client_limit_bytes: store.client_bytes_limit,
            promised_bytes: store.files.iter().map(|file| file.promised_bytes).sum(),
            pinning_mappings: store.pinning_mappings,
            refused_maps_total: store.refused_maps,
            failed_pins_total: store.failed_pins,
            registrations: space.regions.iter().map(|region| region.used).sum(),
            pins_total: space.pins,
            unpins_total: space.unpins,
            map_cache_hits_total: store.shared,
            stale_extents_total: store.stale,
            files: store
                .files
                .iter()
                .map(|file| FileStatus {
                    device: format!("{}:{}", file.dev.0, file.dev.1),
                    inode: file.ino,
                    bytes: file.bytes,
                    registered_bytes: file.registered_bytes,
                    promised_bytes: file.promised_bytes,
                    extents: file.extents,
                    stale_extents: file.stale_extents,
                    clients: file.clients,
                })
                .collect(),
            regions: space
                .regions
                .iter()
                .map(|region| RegionStatus {
                    user_address: region.ua.raw(),
                    bytes: region.bytes,
                    registrations: region.used,
                    mappings: region.mapped,
                    holders: region
                        .mappings
                        .iter()
                        .map(|held| HolderStatus { client: held.holder.container, mappings: held.count })
                        .collect(),
                    draining: region.draining,
                })
                .collect(),
        }
    }
}

fn client(state: ClientState) -> ClientStatus {
    let iova = &state.dma.iova;
    ClientStatus {
        id: state.client,
        socket: state.socket.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        model: state.model,
        pid: state.pid,
        uid: state.uid,
        mappings: iova.mappings,
        mapped_bytes: u64::try_from(iova.bytes).unwrap_or(u64::MAX),
        inflight_accesses: iova.accesses,
        maps_total: state.dma.maps,
        unmaps_total: state.dma.unmaps,
        requests: requests(state.requests),
        pending_unmaps: state
            .unmaps
            .iter()
            .map(|unmap| PendingUnmap {
                age_seconds: unmap.waited.as_secs_f64(),
                mappings: unmap
                    .mappings
                    .iter()
                    .map(|held| MappingInUse {
                        iova: held.iova.raw(),
                        bytes: held.bytes,
                        inflight_accesses: held.accesses,
                    })
                    .collect(),
            })
            .collect(),
        latencies: latencies(&state.metrics),
        device: state.metrics.into_iter().filter(|(name, _)| bucket(name).is_none()).collect(),
    }
}

/// The kind and the bound in nanoseconds, if the fact is a histogram's bucket: `read_latency_lt_2_17_ns`.
fn bucket(name: &str) -> Option<(&str, u64)> {
    let (kind, rest) = name.split_once("_latency_lt_2_")?;
    let power: u32 = rest.strip_suffix("_ns")?.parse().ok()?;
    Some((kind, 1u64.checked_shl(power)?))
}

fn latencies(facts: &[(String, u64)]) -> Vec<LatencyStatus> {
    let mut latencies: BTreeMap<&str, LatencyStatus> = BTreeMap::new();
    for (name, count) in facts {
        let Some((kind, bound)) = bucket(name) else { continue };
        let latency = latencies.entry(kind).or_default();
        latency.buckets.push((bound, *count));
    }
    for (kind, latency) in &mut latencies {
        latency.command = (*kind).to_owned();
        latency.buckets.sort_unstable();
        let sum = format!("{kind}_nanoseconds");
        latency.nanoseconds_total = facts.iter().find(|(name, _)| *name == sum).map_or(0, |(_, sum)| *sum);
    }
    latencies.into_values().collect()
}

fn requests(counts: RequestCounts) -> RequestStatus {
    let mut status = RequestStatus {
        transfers_total: counts.transfers,
        transferred_bytes_total: counts.transferred_bytes,
        ..RequestStatus::default()
    };
    for (command, counts) in counts.commands {
        status.completed_total.insert(command.to_owned(), counts.performed);
        if !counts.refused.is_empty() {
            let refused: BTreeMap<String, u64> = counts.refused.into_iter().collect();
            status.rejected_total.insert(command.to_owned(), refused);
        }
    }
    status
}

fn count<T>(items: impl Iterator<Item = T>) -> u64 {
    u64::try_from(items.count()).unwrap_or(u64::MAX)
}
