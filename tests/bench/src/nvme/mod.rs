//! Cost of one I/O of the NVMe controller, next to plain I/O: the driver in this process, the server in another one, with
//! shared memory.
//!
//! The candidates take turns: each repetition runs one batch against each of them. A batch is a number of random aligned I/Os
//! with a fixed queue depth. The server's processor time is that of all its threads, including the kernel's work in their
//! context.

pub mod comparison;
mod connection;
pub mod driver;
pub mod pinning;
pub mod server;
pub mod shape;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;

use self::connection::Connection;
use self::driver::Direction;
use self::pinning::PerIo;
use self::server::{Buffers, ServerProcess};
use self::shape::{Batch, Shape};
use crate::error::{BenchError, check};
use crate::stats::{Summary, median_ratio};

/// A plan.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The folder of the disks.
    pub folder: PathBuf,
    /// Bytes of each disk.
    pub disk: u64,
    /// Repetitions.
    pub repetitions: u32,
    /// I/Os of 4 KiB in a batch; those of 128 KiB are a quarter of it.
    pub batch: u32,
    /// Whether doorbells are rung through a shared page instead of messages.
    pub mapped_doorbells: bool,
    /// The program `prereg`, which runs as the servers.
    pub program: PathBuf,
}

/// A row of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `read` or `write`.
    pub operation: &'static str,
    /// Bytes of each I/O.
    pub bytes: u64,
    /// Queue depth.
    pub depth: u32,
    /// `fixed`, `plain`, `pin-per-io`.
    #[serde(rename = "subject")]
    pub candidate: &'static str,
    /// I/Os per second, the median of the repetitions.
    pub iops: f64,
    /// Microseconds of the server's processor time per I/O: the median.
    pub cpu_us: f64,
    /// The minimum.
    pub cpu_us_low: f64,
    /// The maximum.
    pub cpu_us_high: f64,
    /// Processor time relative to plain I/O, the median of the repetitions' ratios.
    pub ratio_to_plain: f64,
}

/// The results.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Whether the file system allows O_DIRECT.
    pub direct: bool,
    /// Whether doorbells are written in memory.
    pub doorbell_page: bool,
    /// Repetitions.
    pub repetitions: u32,
    /// The rows.
    pub rows: Vec<Row>,
}

const SUBJECTS: [&str; 3] = ["fixed", "plain", "pin-per-io"];
const SHAPES: [(Direction, u64, u32); 8] = [
    (Direction::Read, 4 << 10, 1),
    (Direction::Read, 4 << 10, 32),
    (Direction::Read, 128 << 10, 1),
    (Direction::Read, 128 << 10, 32),
    (Direction::Write, 4 << 10, 1),
    (Direction::Write, 4 << 10, 32),
    (Direction::Write, 128 << 10, 1),
    (Direction::Write, 128 << 10, 32),
];

/// A server of its own and the driver connected to it, which is dropped first.
struct Served {
    connection: Connection,
    _server: ServerProcess,
}

impl Served {
    fn start(plan: &Plan, folder: &Path, disk: &Path, buffers: Buffers) -> Result<Self, BenchError> {
        let server = ServerProcess::start(&plan.program, folder, disk, buffers, plan.mapped_doorbells)?;
        let connection = Connection::open(&server.socket)?;
        Ok(Self { _server: server, connection })
    }
}

impl Plan {
    /// Makes the disks, measures all shapes, removes the disks.
    ///
    /// # Errors
    /// [`BenchError::Failed`], [`BenchError::Interrupted`].
    pub fn measure(&self, cancel: &AtomicBool) -> Result<Results, BenchError> {
        let folder = Folder::make(&self.folder)?;
        let disks: Vec<PathBuf> = SUBJECTS.iter().map(|name| folder.0.join(format!("{name}.img"))).collect();
        for disk in &disks {
            fill(disk, self.disk)
                .map_err(|error| BenchError::failed(format!("making {}", disk.display()), error))?;
        }
        let [fixed_disk, plain_disk, own_disk] = &disks[..] else {
            return Err(BenchError::failed("making the disks", "one is missing"));
        };
        let mut fixed = Served::start(self, &folder.0, fixed_disk, Buffers::Fixed)?;
        let mut plain = Served::start(self, &folder.0, plain_disk, Buffers::Plain)?;
        let mut pinning = PerIo::open(own_disk)?;
        let mut rows = Vec::new();
        for (direction, bytes, depth) in SHAPES {
            let shape = Shape { direction, bytes, depth };
            let count = if bytes > 4 << 10 { self.batch / 4 } else { self.batch };
            let mut batches: [Vec<Batch>; 3] = [Vec::new(), Vec::new(), Vec::new()];
            // The first round is a warm-up.
            for round in 0..=self.repetitions {
                check(cancel)?;
                let blocks = random_places(u64::from(round), count, self.disk / bytes);
                let three = [
                    fixed.connection.batch(&shape, &blocks)?,
                    plain.connection.batch(&shape, &blocks)?,
                    pinning.batch(&shape, &blocks)?,
                ];
                if round > 0 {
                    batches.iter_mut().zip(three).for_each(|(batches, batch)| batches.push(batch));
                }
            }
            let cpu = |batches: &[Batch]| batches.iter().map(|batch| batch.cpu).collect::<Vec<_>>();
            let plain_cpu = cpu(&batches[1]);
            for (candidate, batches) in SUBJECTS.into_iter().zip(&batches) {
                let cpu = cpu(batches);
                let walls: Vec<Duration> = batches.iter().map(|batch| batch.wall).collect();
                let (Some(each), Some(wall), Some(ratio)) = (
                    Summary::of(&cpu, u64::from(count)),
                    Summary::of(&walls, u64::from(count)),
                    median_ratio(&cpu, &plain_cpu),
                ) else {
                    continue;
                };
                rows.push(Row {
                    operation: if direction == Direction::Read { "read" } else { "write" },
                    bytes,
                    depth,
                    candidate,
                    iops: 1e9 / wall.median,
                    cpu_us: each.median / 1e3,
                    cpu_us_low: each.min / 1e3,
                    cpu_us_high: each.max / 1e3,
                    ratio_to_plain: ratio,
                });
            }
        }
        Ok(Results {
            direct: pinning.is_direct(),
            doorbell_page: fixed.connection.has_doorbell_page(),
            repetitions: self.repetitions,
            rows,
        })
    }
}

/// A folder that is removed with its contents.
struct Folder(PathBuf);

impl Folder {
    fn make(within: &Path) -> Result<Self, BenchError> {
        let folder = within.join(format!("prereg-bench-{}", std::process::id()));
        std::fs::create_dir(&folder)
            .map_err(|error| BenchError::failed(format!("making {}", folder.display()), error))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The folder's name says to which program leftovers belong.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes every block: holes would be read without the disk.
fn fill(path: &Path, bytes: u64) -> std::io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::File::create(path)?;
    let block: Vec<u8> = (0..1 << 20).map(|index: u32| (index % 251) as u8).collect();
    for _ in 0..bytes >> 20 {
        file.write_all(&block)?;
    }
    file.sync_all()
}

/// `count` random block numbers below `places`, determined by `seed` (a linear congruential generator with Knuth's MMIX
/// constants).
fn random_places(seed: u64, count: u32, places: u64) -> Vec<u64> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % places.max(1)
        })
        .collect()
}
