//! Pinning per I/O: memory is pinned when an I/O starts and unpinned when it completes.
//!
//! Runs in this process, without queues, messages or a client: the cost is that of registering, the transfer and unregistering,
//! the minimum for a server of this kind.
#![expect(unsafe_code, reason = "an I/O ring is given guest memory on its owner's promise")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use prereg::{AddressKind, AddressSpace, Registration, Translator};
use prereg_linux::{GuestMemory, IoRing, IoSegment, IoSegments, IoUring, IoWait, SlotAddress, Transfer};

use super::driver::Direction;
use super::server::cpu_time_of;
use super::shape::{Batch, Shape};
use crate::error::BenchError;

/// A disk, a ring, and memory that is pinned for each I/O.
#[derive(Debug)]
pub struct PerIo {
    ring: IoRing<Held>,
    space: AddressSpace,
    translator: Translator,
    buffers: Vec<GuestMemory>,
    direct: bool,
}

/// State of an I/O in flight.
#[derive(Debug)]
struct Held {
    slot: u32,
    registration: Registration,
}

impl PerIo {
    /// Opens `disk`, with O_DIRECT if the file system allows it.
    ///
    /// # Errors
    /// [`BenchError::Failed`].
    pub fn open(disk: &Path) -> Result<Self, BenchError> {
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(disk);
        let (file, direct): (File, bool) = match open(libc::O_DIRECT) {
            Ok(file) => (file, true),
            Err(_) => (
                open(0).map_err(|error| BenchError::failed(format!("opening {}", disk.display()), error))?,
                false,
            ),
        };
        let pins = IoUring::builder()
            .addresses(AddressKind::SlotOffset)
            .build()
            .map_err(|error| BenchError::failed("making the pin back end", error))?;
        let pins = Arc::new(pins);
        let ring = IoRing::new(64, Arc::new(file), Some(&pins))
            .map_err(|error| BenchError::failed("making the I/O ring", error))?;
        let space = AddressSpace::builder(pins).build()?;
        let translator = space.translator();
        Ok(Self { ring, space, translator, buffers: Vec::new(), direct })
    }

    /// Whether the file bypasses the page cache.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// One I/O per element of `places`.
    ///
    /// # Errors
    /// [`BenchError::Failed`].
    pub fn batch(&mut self, shape: &Shape, places: &[u64]) -> Result<Batch, BenchError> {
        self.make_buffers(shape)?;
        let cpu = cpu_time_of(std::process::id())?;
        let start = Instant::now();
        let mut free: Vec<u32> = (0..shape.depth).collect();
        let mut waiting = places.iter();
        let mut left = places.len();
        while left > 0 {
            while let Some(slot) = free.pop() {
                let Some(place) = waiting.next() else { break };
                self.begin(shape, slot, place * shape.bytes)?;
            }
            self.ring.enter(IoWait::One).map_err(|errno| BenchError::failed("io_uring_enter", errno))?;
            while let Some(completed) = self.ring.next_completed() {
                let bytes = completed.result.map_err(|errno| BenchError::failed("a transfer", errno))?;
                if u64::from(bytes) != shape.bytes {
                    return Err(BenchError::failed(
                        "a transfer",
                        format!("{bytes} bytes of {}", shape.bytes),
                    ));
                }
                let Held { slot, registration } = completed.token;
                registration
                    .unregister()
                    .map_err(|error| BenchError::failed("unregistering a buffer", error))?;
                free.push(slot);
                left -= 1;
            }
        }
        let cpu = cpu_time_of(std::process::id())?.saturating_sub(cpu);
        Ok(Batch { wall: start.elapsed(), cpu, latencies: Vec::new() })
    }

    /// Allocates a buffer per I/O in flight.
    fn make_buffers(&mut self, shape: &Shape) -> Result<(), BenchError> {
        self.buffers = (0..shape.depth)
            .map(|_| GuestMemory::anonymous(shape.bytes))
            .collect::<Result<_, _>>()
            .map_err(|error| BenchError::failed("making the buffers", error))?;
        Ok(())
    }

    fn begin(&mut self, shape: &Shape, slot: u32, offset: u64) -> Result<(), BenchError> {
        let what = "pinning a buffer";
        let buffer =
            self.buffers.get(slot as usize).ok_or_else(|| BenchError::failed(what, "too many at a time"))?;
        let registration = self.space.register(buffer).map_err(|error| BenchError::failed(what, error))?;
        let mapping = self
            .translator
            .map_range(registration.ua(), shape.bytes)
            .map_err(|error| BenchError::failed(what, error))?;
        let at = mapping.runs().next().and_then(|run| SlotAddress::of(run.host));
        self.translator.unmap_range(mapping);
        let piece = IoSegment { ua: registration.ua(), plain: registration.ua(), bytes: shape.bytes };
        let transfer = match shape.direction {
            Direction::Read => Transfer::Read(offset),
            Direction::Write => Transfer::Write(offset),
        };
        // SAFETY: the buffer stays mapped as long as `self` lives, there are no references into it, and the ring is dropped
        // before it.
        let begun =
            unsafe { self.ring.transfer(transfer, IoSegments::new(at, piece), Held { slot, registration }) };
        begun.map(drop).map_err(|_| BenchError::failed("an I/O", "the ring is full"))
    }
}
