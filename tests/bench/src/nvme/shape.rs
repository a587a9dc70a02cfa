//! A batch of I/Os: its shape and its duration.

use std::time::Duration;

use super::driver::Direction;

/// The shape of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// To or from the disk.
    pub direction: Direction,
    /// Bytes of each I/O.
    pub bytes: u64,
    /// Queue depth.
    pub depth: u32,
}

/// The duration of a batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// From the first command to the last completion.
    pub wall: Duration,
    /// The server's processor time.
    pub cpu: Duration,
    /// From writing each command to taking its completion.
    pub latencies: Vec<Duration>,
}
