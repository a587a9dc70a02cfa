//! Servers that run already, by their sockets: I/Os per second, latencies and processor time, side by side.
//!
//! The servers take turns, as the candidates of [`Plan`](super::Plan) do, and ratios are those of neighbours in time. Any vfio-user
//! server with an NVMe controller will do; each needs room for one more client.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;

use super::connection::Connection;
use super::driver::Direction;
use super::random_places;
use super::shape::{Batch, Shape};
use crate::error::{BenchError, check};
use crate::stats::{Summary, median_ratio};

/// A server to compare.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name in the result.
    pub name: String,
    /// Its socket.
    pub socket: PathBuf,
}

/// A plan.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The servers; ratios are to the first.
    pub servers: Vec<Server>,
    /// Repetitions.
    pub repetitions: u32,
    /// I/Os of 4 KiB in a batch at depth 32 and 128; fewer of 128 KiB (a quarter) and at depth 1 (a quarter).
    pub batch: u32,
    /// Whether to write, too: random blocks of the disks are overwritten.
    pub writes: bool,
}

/// A row of the result. Times are microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct ServerRow {
    /// `read` or `write`.
    pub operation: &'static str,
    /// Bytes of each I/O.
    pub bytes: u64,
    /// Queue depth.
    pub depth: u32,
    /// The server.
    pub server: String,
    /// I/Os per second, the median of the repetitions.
    pub iops: f64,
    /// The mean latency.
    pub mean_us: f64,
    /// The median latency.
    pub p50_us: f64,
    /// The latency that 99 % do not exceed.
    pub p99_us: f64,
    /// Processor time of the server's process per I/O, the median of the repetitions.
    pub cpu_us: f64,
    /// I/Os per second relative to the first server, the median of the repetitions' ratios.
    pub iops_ratio: f64,
    /// Processor time relative to the first server, likewise.
    pub cpu_ratio: f64,
}

/// The results.
#[derive(Clone, Debug, Serialize)]
pub struct ServerResults {
    /// Repetitions.
    pub repetitions: u32,
    /// By server, whether doorbells are written in memory.
    pub doorbell_pages: Vec<bool>,
    /// The rows.
    pub rows: Vec<ServerRow>,
}

const SHAPES: [(u64, u32); 5] =
    [(4 << 10, 1), (4 << 10, 32), (4 << 10, 128), (128 << 10, 1), (128 << 10, 32)];

impl Comparison {
    /// Connects to every server, then measures all shapes.
    ///
    /// # Errors
    /// [`BenchError::Failed`], for instance for a disk smaller than 1 MiB; [`BenchError::Interrupted`].
    pub fn measure(&self, cancel: &AtomicBool) -> Result<ServerResults, BenchError> {
        let mut connections = Vec::new();
        for server in &self.servers {
            let connection = Connection::open(&server.socket)?;
            if connection.bytes() < 1 << 20 {
                let found = format!("a disk of {} bytes; at least 1 MiB is needed", connection.bytes());
                return Err(BenchError::failed(format!("measuring {}", server.name), found));
            }
            connections.push(connection);
        }
        let directions =
            if self.writes { &[Direction::Read, Direction::Write][..] } else { &[Direction::Read] };
        let mut rows = Vec::new();
        for &direction in directions {
            for (bytes, depth) in SHAPES {
                let shape = Shape { direction, bytes, depth };
                let batches = self.batches(&shape, &mut connections, cancel)?;
                self.rows(&shape, &batches, &mut rows);
            }
        }
        let doorbell_pages = connections.iter().map(Connection::has_doorbell_page).collect();
        Ok(ServerResults { repetitions: self.repetitions, doorbell_pages, rows })
    }

    /// The batches of each server.
    fn batches(
        &self,
        shape: &Shape,
        connections: &mut [Connection],
        cancel: &AtomicBool,
    ) -> Result<Vec<Vec<Batch>>, BenchError> {
        let divisor = if shape.bytes > 4 << 10 { 4 } else { 1 } * if shape.depth == 1 { 4 } else { 1 };
        let count = (self.batch / divisor).max(1);
        let mut batches: Vec<Vec<Batch>> = connections.iter().map(|_| Vec::new()).collect();
        // The first round is a warm-up.
        for round in 0..=self.repetitions {
            for (connection, batches) in connections.iter_mut().zip(&mut batches) {
                check(cancel)?;
                let places = random_places(u64::from(round), count, connection.bytes() / shape.bytes);
                let batch = connection.batch(shape, &places)?;
                if round > 0 {
                    batches.push(batch);
                }
            }
        }
        Ok(batches)
    }

    fn rows(&self, shape: &Shape, batches: &[Vec<Batch>], rows: &mut Vec<ServerRow>) {
        let walls = |batches: &[Batch]| batches.iter().map(|batch| batch.wall).collect::<Vec<_>>();
        let cpus = |batches: &[Batch]| batches.iter().map(|batch| batch.cpu).collect::<Vec<_>>();
        let Some(first) = batches.first() else { return };
        for (server, batches) in self.servers.iter().zip(batches) {
            let mut latencies: Vec<Duration> =
                batches.iter().flat_map(|batch| batch.latencies.iter().copied()).collect();
            latencies.sort_unstable();
            let count = batches.first().map_or(0, |batch| batch.latencies.len() as u64);
            let (Some(wall), Some(cpu), Some(iops_ratio), Some(cpu_ratio)) = (
                Summary::of(&walls(batches), count),
                Summary::of(&cpus(batches), count),
                median_ratio(&walls(first), &walls(batches)),
                median_ratio(&cpus(batches), &cpus(first)),
            ) else {
                continue;
            };
            let sum: Duration = latencies.iter().sum();
            rows.push(ServerRow {
                operation: if shape.direction == Direction::Read { "read" } else { "write" },
                bytes: shape.bytes,
                depth: shape.depth,
                server: server.name.clone(),
                iops: 1e9 / wall.median,
                mean_us: sum.as_secs_f64() * 1e6 / latencies.len().max(1) as f64,
                p50_us: percentile(&latencies, 50),
                p99_us: percentile(&latencies, 99),
                cpu_us: cpu.median / 1e3,
                iops_ratio,
                cpu_ratio,
            });
        }
    }
}

/// The smallest of the sorted times that `percent` of them do not exceed, in microseconds.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(rank).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_so_many_do_not_exceed() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_micros).collect();
        let rounded = |percent| percentile(&times, percent).round();
        assert_eq!([50, 99, 100].map(rounded), [100.0, 198.0, 200.0]);
        assert_eq!(percentile(&times[..1], 99).round(), 1.0);
        assert!(percentile(&[], 50).abs() < f64::EPSILON);
    }
}
