//! A driver connected to a server, and batches of I/Os on it.

use std::path::Path;
use std::time::{Duration, Instant};

use super::driver::{Driver, MOST_LARGE};
use super::server::cpu_time_of;
use super::shape::{Batch, Shape};
use crate::error::BenchError;

/// After this time without a completion the server is given up.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A driver and the process that serves it.
pub(super) struct Connection {
    driver: Driver,
    process: u32,
}

impl Connection {
    pub(super) fn open(socket: &Path) -> Result<Self, BenchError> {
        let driver = Driver::start(socket, MOST_LARGE)?;
        let process = driver.server_process()?;
        Ok(Self { driver, process })
    }

    pub(super) fn has_doorbell_page(&self) -> bool {
        self.driver.has_doorbell_page()
    }

    /// Bytes of the disk.
    pub(super) fn bytes(&self) -> u64 {
        self.driver.blocks.saturating_mul(self.driver.block)
    }

    /// One I/O per element of `places`, in units of the shape's bytes.
    pub(super) fn batch(&mut self, shape: &Shape, places: &[u64]) -> Result<Batch, BenchError> {
        let driver = &mut self.driver;
        let cpu = cpu_time_of(self.process)?;
        let mut latencies = Vec::with_capacity(places.len());
        let start = Instant::now();
        let mut begun = vec![start; shape.depth as usize];
        let mut free: Vec<u32> = (0..shape.depth).collect();
        let mut waiting = places.iter();
        let mut last = start;
        while latencies.len() < places.len() {
            let mut put = false;
            while let (Some(slot), true) = (free.last().copied(), waiting.len() > 0) {
                let Some(place) = waiting.next() else { break };
                free.pop();
                driver.put_command(
                    shape.direction,
                    slot,
                    place * (shape.bytes / driver.block),
                    shape.bytes,
                )?;
                begun[slot as usize] = Instant::now();
                put = true;
            }
            if put {
                driver.ring()?;
            }
            while driver.take(|slot| {
                last = Instant::now();
                latencies.push(last - begun[slot as usize]);
                free.push(slot);
            })? == 0
            {
                if last.elapsed() > TIME_LIMIT {
                    return Err(BenchError::failed("an I/O command", "no completion within 60 s"));
                }
                std::thread::yield_now();
            }
        }
        let wall = start.elapsed();
        Ok(Batch { wall, cpu: cpu_time_of(self.process)?.saturating_sub(cpu), latencies })
    }
}
