//! A disk in this process's memory, for temporary data, tests and fuzzing.
//!
//! Memory is allocated in chunks when they are first written and freed when they are discarded whole. [`poll`](DiskQueue::poll)
//! performs requests one after the other, so a client that is slow to copy its data slows down the queue's thread. Each chunk
//! has a lock; a request is not atomic across chunks, nor is a real disk's.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use prereg::Errno;

use super::{
    Changed, Disk, DiskCounters, DiskError, DiskFault, DiskQueue, Done, Operation, Request, Segment, Wait,
    bytes_of, system,
};

/// Bytes of a chunk.
const CHUNK: usize = 64 << 10;
/// Requests in flight at most.
const MAX_IN_FLIGHT: usize = 1024;

type Chunk = RwLock<Option<Box<[u8]>>>;

/// A disk in memory.
///
/// ```
/// use prereg_nvme::disk::{Disk, MemoryDisk};
/// let disk = MemoryDisk::new(64 << 20, 12)?;
/// assert_eq!((disk.bytes(), disk.block_shift()), (64 << 20, 12));
/// assert!(MemoryDisk::new(100, 9).is_err());
/// # Ok::<(), prereg_nvme::disk::DiskError>(())
/// ```
#[derive(Debug)]
pub struct MemoryDisk {
    store: Arc<Store>,
}

struct Store {
    bytes: u64,
    block_shift: u8,
    chunks: Box<[Chunk]>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    writes: AtomicU64,
    bytes_written: AtomicU64,
    flushes: AtomicU64,
    zeroes: AtomicU64,
    discards: AtomicU64,
    compares: AtomicU64,
    faults: AtomicU64,
}

struct MemoryQueue {
    store: Arc<Store>,
    waiting: VecDeque<Request>,
    kick: Arc<OwnedFd>,
}

impl MemoryDisk {
    /// A disk of `bytes`, rounded down to whole blocks of `1 << block_shift` bytes (9 to 12).
    ///
    /// # Errors
    /// [`DiskError::Memory`] for another block size, for less than one block, and without memory for the list of
    /// chunks.
    pub fn new(bytes: u64, block_shift: u8) -> Result<Self, DiskError> {
        let refused = |errno| DiskError::Memory { bytes, block_shift, errno };
        if !(9..=12).contains(&block_shift) || bytes >> block_shift == 0 {
            return Err(refused(Errno::EINVAL));
        }
        let bytes_used = bytes >> block_shift << block_shift;
        let count = usize::try_from(bytes_used.div_ceil(CHUNK as u64)).map_err(|_| refused(Errno::ENOMEM))?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(count).map_err(|_| refused(Errno::ENOMEM))?;
        chunks.resize_with(count, Chunk::default);
        let chunks = chunks.into_boxed_slice();
        let store = Store { bytes: bytes_used, block_shift, chunks, counts: Counts::default() };
        Ok(Self { store: Arc::new(store) })
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("bytes", &self.bytes)
            .field("counts", &self.counts)
            .finish_non_exhaustive()
    }
}

impl Disk for MemoryDisk {
    fn bytes(&self) -> u64 {
        self.store.bytes
    }

    fn block_shift(&self) -> u8 {
        self.store.block_shift
    }

    fn read_only(&self) -> bool {
        false
    }

    fn discard_zeroes(&self) -> bool {
        true
    }

    fn queue(&self, kick: Arc<OwnedFd>) -> Result<Box<dyn DiskQueue>, DiskError> {
        Ok(Box::new(MemoryQueue { store: Arc::clone(&self.store), waiting: VecDeque::new(), kick }))
    }

    fn refresh(&self) -> Result<Changed, DiskError> {
        Ok(Changed::No)
    }

    fn counters(&self) -> DiskCounters {
        let counts = &self.store.counts;
        // Relaxed: numbers for reports.
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskCounters {
            reads: value(&counts.reads),
            bytes_read: value(&counts.bytes_read),
            writes: value(&counts.writes),
            bytes_written: value(&counts.bytes_written),
            flushes: value(&counts.flushes),
            zeroes: value(&counts.zeroes),
            discards: value(&counts.discards),
            compares: value(&counts.compares),
            faults: value(&counts.faults),
            ..DiskCounters::default()
        }
    }
}

impl Store {
    /// Checks that a range has whole blocks and is inside the disk.
    fn check(&self, offset: u64, bytes: u64) -> Result<(), DiskFault> {
        let whole = (offset | bytes).trailing_zeros() >= u32::from(self.block_shift);
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        if whole && inside { Ok(()) } else { Err(DiskFault::Range) }
    }

    /// Calls `each` with the parts of a checked range that lie in one chunk: the chunk, the range in it, and the range in the
    /// whole.
    fn parts(
        &self,
        offset: u64,
        bytes: u64,
        mut each: impl FnMut(&Chunk, Range<usize>, Range<usize>) -> Result<(), DiskFault>,
    ) -> Result<(), DiskFault> {
        let mut done = 0;
        while done < bytes {
            let at = offset + done;
            let within = (at % CHUNK as u64) as usize;
            let len = usize::try_from(bytes - done).map_or(CHUNK, |left| left.min(CHUNK)).min(CHUNK - within);
            let chunk = self.chunks.get((at / CHUNK as u64) as usize).ok_or(DiskFault::Range)?;
            let from = done as usize;
            each(chunk, within..within + len, from..from + len)?;
            done += len as u64;
        }
        Ok(())
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), DiskFault> {
        self.parts(offset, into.len() as u64, |chunk, within, part| {
            match &*chunk.read().unwrap_or_else(PoisonError::into_inner) {
                Some(memory) => into[part].copy_from_slice(&memory[within]),
                None => into[part].fill(0),
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), DiskFault> {
        self.parts(offset, from.len() as u64, |chunk, within, part| {
            let mut chunk = chunk.write().unwrap_or_else(PoisonError::into_inner);
            if chunk.is_none() {
                *chunk = Some(new_chunk().ok_or(DiskFault::NoSpace)?);
            }
            if let Some(memory) = &mut *chunk {
                memory[within].copy_from_slice(&from[part]);
            }
            Ok(())
        })
    }

    fn zero(&self, offset: u64, bytes: u64) -> Result<(), DiskFault> {
        self.parts(offset, bytes, |chunk, within, _| {
            let mut chunk = chunk.write().unwrap_or_else(PoisonError::into_inner);
            if within.len() == CHUNK {
                *chunk = None;
            } else if let Some(memory) = &mut *chunk {
                memory[within].fill(0);
            }
            Ok(())
        })
    }

    /// Calls `each` for all data in order, a buffer at a time: the offset on the disk, the buffer, the segment and the offset
    /// in it.
    fn move_data(
        &self,
        offset: u64,
        data: &[Segment],
        mut each: impl FnMut(u64, &mut [u8], &Segment, u64) -> Result<(), DiskFault>,
    ) -> Result<u64, DiskFault> {
        let total = bytes_of(data).ok_or(DiskFault::Range)?;
        self.check(offset, total)?;
        let mut buffer = vec![0; usize::try_from(total).map_or(CHUNK, |total| total.min(CHUNK))];
        let mut at = offset;
        for segment in data {
            let mut done = 0;
            while done < segment.bytes {
                let len =
                    usize::try_from(segment.bytes - done).map_or(buffer.len(), |left| left.min(buffer.len()));
                each(at, &mut buffer[..len], segment, segment.offset + done)?;
                done += len as u64;
                at += len as u64;
            }
        }
        Ok(total)
    }

    fn perform(&self, operation: &Operation, data: &[Segment]) -> Result<(), DiskFault> {
        let counts = &self.counts;
        // Relaxed: numbers for reports.
        let add = |counter: &AtomicU64, by: u64| {
            counter.fetch_add(by, Ordering::Relaxed);
        };
        match operation {
            Operation::Read { offset } => {
                let bytes = self.move_data(*offset, data, |at, buffer, segment, from| {
                    self.read(at, buffer)?;
                    segment.hold.write(from, buffer).map_err(DiskFault::Data)
                })?;
                add(&counts.reads, 1);
                add(&counts.bytes_read, bytes);
            }
            Operation::Write { offset, .. } => {
                let bytes = self.move_data(*offset, data, |at, buffer, segment, from| {
                    segment.hold.read(from, buffer).map_err(DiskFault::Data)?;
                    self.write(at, buffer)
                })?;
                add(&counts.writes, 1);
                add(&counts.bytes_written, bytes);
            }
            Operation::Compare { offset } => {
                let mut guest = Vec::new();
                let result = self.move_data(*offset, data, |at, buffer, segment, from| {
                    self.read(at, buffer)?;
                    guest.resize(buffer.len(), 0);
                    segment.hold.read(from, &mut guest).map_err(DiskFault::Data)?;
                    if guest == buffer { Ok(()) } else { Err(DiskFault::Mismatch) }
                });
                if matches!(result, Ok(_) | Err(DiskFault::Mismatch)) {
                    add(&counts.compares, 1);
                }
                result?;
            }
            Operation::Flush => add(&counts.flushes, 1),
            Operation::WriteZeroes { offset, bytes, .. } => {
                self.check(*offset, *bytes)?;
                self.zero(*offset, *bytes)?;
                add(&counts.zeroes, 1);
            }
            Operation::Discard { ranges } => {
                ranges.iter().try_for_each(|(offset, bytes)| self.check(*offset, *bytes))?;
                for (offset, bytes) in ranges {
                    self.zero(*offset, *bytes)?;
                    add(&counts.discards, 1);
                }
            }
        }
        Ok(())
    }
}

fn new_chunk() -> Option<Box<[u8]>> {
    let mut memory = Vec::new();
    memory.try_reserve_exact(CHUNK).ok()?;
    memory.resize(CHUNK, 0);
    Some(memory.into_boxed_slice())
}

impl DiskQueue for MemoryQueue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.waiting.len() >= MAX_IN_FLIGHT {
            return Err(request);
        }
        self.waiting.push_back(request);
        Ok(())
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<(), DiskError> {
        let idle = self.waiting.is_empty();
        while let Some(request) = self.waiting.pop_front() {
            let result = self.store.perform(&request.operation, &request.data);
            if !matches!(result, Ok(()) | Err(DiskFault::Mismatch)) {
                // Relaxed: a number for reports.
                self.store.counts.faults.fetch_add(1, Ordering::Relaxed);
            }
            done.push(Done { tag: request.tag, result });
        }
        let time = match wait {
            Wait::For(time) => Some(time),
            Wait::Kick => None,
            Wait::No => return Ok(()),
        };
        if idle {
            system::wait_for_event(&self.kick, time)
                .map_err(|errno| DiskError::Ring { during: "ppoll", errno })?;
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}
