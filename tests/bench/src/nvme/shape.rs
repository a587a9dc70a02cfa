//! A batch of I/Os: what each is like, and what all of them took.

use std::time::Duration;

use super::driver::Direction;

/// What every I/O of a batch is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// To or from the disk.
    pub direction: Direction,
    /// How long.
    pub bytes: u64,
    /// How many at a time.
    pub depth: u32,
}

/// What a batch took.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// From the first command to the last completion.
    pub wall: Duration,
    /// The server's processor time.
    pub cpu: Duration,
}
