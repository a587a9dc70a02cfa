//! One I/O thread's queue to a file: requests become SQEs, CQEs become results.
//!
//! A request is split into parts by [`data_path`]; each part is one SQE, retried on EAGAIN and continued after a short
//! transfer. Parts without an SQE wait in `pending`, so a request of many parts needs no space beforehand. One system call per
//! [`poll`](DiskQueue::poll) submits everything.
//!
//! Each part in flight shares ownership of the request's segments, so guest memory stays held as long as the kernel may access
//! it, whatever happens to the queue.
#![expect(unsafe_code, reason = "tells the ring that guest memory stays mapped, because its holds are kept")]

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use prereg::Errno;
use prereg_linux::{AlignedBuffer, Completed, IoMemory, IoPath, IoRing, IoWait, Transfer};

use super::copy_thread::{self, CopyDone, CopyJob, CopyKind, CopyThread};
use super::data_path::{self, Caps, DataPath};
use super::part::{Data, Part, PartOp, advanced, fault_of, memory_fault, offset_of};
use super::requests::{ActiveRequest, Requests};
use super::shared::{Event, Shared};
use crate::disk::{
    DiskError, DiskFault, DiskQueue, Done, Operation, Request, Segment, Wait, bytes_of, system,
};

/// Entries of the ring.
const RING_ENTRIES: u32 = 256;
/// Requests in flight at most.
const MAX_IN_FLIGHT: usize = 1024;
/// The longest request: what one transfer can move.
const MAX_REQUEST_BYTES: u64 = 1 << 30;
/// Zeros written by one transfer, where `fallocate` cannot zero.
const ZERO_CHUNK: u64 = 1 << 20;
/// How often one part is retried on EAGAIN.
const MAX_TRIES: u8 = 100;

/// A queue to a file.
pub(super) struct FileQueue {
    shared: Arc<Shared>,
    ring: IoRing<Part>,
    caps: Caps,
    pending: VecDeque<(Part, IoMemory)>,
    requests: Requests,
    finished: Vec<Done>,
    kick: Arc<OwnedFd>,
    copy_thread: Option<CopyThread>,
}

impl FileQueue {
    pub(super) fn new(shared: &Arc<Shared>, kick: Arc<OwnedFd>) -> Result<Self, DiskError> {
        let storage = &shared.storage;
        let ring = IoRing::new(RING_ENTRIES, Arc::clone(&storage.file), shared.pins.as_ref());
        let mut ring = ring.map_err(|error| DiskError::Ring { during: "making it", errno: error.errno() })?;
        ring.set_kick(Arc::clone(&kick));
        let caps = Caps { direct: storage.direct, slots: ring.fixed().is_ok(), vectored: ring.vectored() };
        Ok(Self {
            shared: Arc::clone(shared),
            ring,
            caps,
            pending: VecDeque::new(),
            requests: Requests::default(),
            finished: Vec::new(),
            kick,
            copy_thread: None,
        })
    }

    /// Whether a range has whole blocks and is inside the disk.
    fn inside(&self, offset: u64, bytes: u64) -> bool {
        let block = self.shared.storage.block();
        bytes > 0
            && (offset | bytes) % block == 0
            && offset.checked_add(bytes).is_some_and(|end| end <= self.shared.bytes())
    }

    /// Makes the parts of a request. An error is its result.
    fn begin(&mut self, key: usize) -> Result<(), DiskFault> {
        let Some(active) = self.requests.get(key) else { return Ok(()) };
        let data = Arc::clone(&active.data);
        let operation = active.operation.clone();
        let changes =
            !matches!(operation, Operation::Read { .. } | Operation::Flush | Operation::Compare { .. });
        if changes && self.shared.storage.read_only {
            return Err(DiskFault::ReadOnly);
        }
        match operation {
            Operation::Read { offset } => self.begin_transfer(key, data, Transfer::Read(offset)),
            Operation::Write { offset, fua: false } => {
                self.begin_transfer(key, data, Transfer::Write(offset))
            }
            Operation::Write { offset, fua: true } => {
                self.shared.lost().map_or(Ok(()), Err)?;
                self.begin_transfer(key, data, Transfer::WriteDurable(offset))
            }
            Operation::Compare { offset } => {
                let bytes = self.measure(key, &data, offset)?;
                self.read_buffer(key, data, offset, bytes)
            }
            Operation::Flush => {
                self.shared.lost().map_or(Ok(()), Err)?;
                if !self.shared.storage.read_only {
                    self.add(key, data, PartOp::Sync, IoMemory::None);
                }
                Ok(())
            }
            Operation::WriteZeroes { offset, bytes, deallocate, fua } => {
                if !self.inside(offset, bytes) {
                    return Err(DiskFault::Range);
                }
                if fua {
                    self.shared.lost().map_or(Ok(()), Err)?;
                }
                if let Some(active) = self.requests.get_mut(key) {
                    active.sync_after = fua;
                }
                self.begin_zeros(key, data, offset, bytes, deallocate)
            }
            Operation::Discard { ranges } => {
                if !ranges.iter().all(|(offset, bytes)| *bytes == 0 || self.inside(*offset, *bytes)) {
                    return Err(DiskFault::Range);
                }
                if self.shared.storage.punches {
                    for (at, bytes) in ranges.into_iter().filter(|(_, bytes)| *bytes > 0) {
                        let mode = system::PUNCH;
                        self.add(
                            key,
                            Arc::clone(&data),
                            PartOp::Fallocate { mode, at, bytes },
                            IoMemory::None,
                        );
                    }
                }
                Ok(())
            }
        }
    }

    /// The length of a request's data, if they are inside the disk.
    fn measure(&mut self, key: usize, data: &[Segment], offset: u64) -> Result<u64, DiskFault> {
        let bytes = bytes_of(data).filter(|bytes| *bytes <= MAX_REQUEST_BYTES).ok_or(DiskFault::Range)?;
        if !self.inside(offset, bytes) {
            return Err(DiskFault::Range);
        }
        if let Some(active) = self.requests.get_mut(key) {
            active.bytes = bytes;
        }
        Ok(bytes)
    }

    fn begin_transfer(&mut self, key: usize, data: Data, transfer: Transfer) -> Result<(), DiskFault> {
        let offset = offset_of(transfer);
        let bytes = self.measure(key, &data, offset)?;
        match data_path::choose(&data, self.caps)? {
            DataPath::ZeroCopy(transfers) => {
                for (at, pieces) in transfers {
                    let op = PartOp::ZeroCopy(advanced(transfer, at));
                    self.add(key, Arc::clone(&data), op, IoMemory::Guest(pieces));
                }
                Ok(())
            }
            DataPath::Bounce { .. } if matches!(transfer, Transfer::Read(_)) => {
                self.read_buffer(key, data, offset, bytes)
            }
            DataPath::Bounce { remote } => {
                let buffer = copy_thread::buffer_of(bytes)?;
                if let Some(active) = self.requests.get_mut(key) {
                    active.parts += 1;
                }
                self.copy(remote, CopyJob { key, copy: CopyKind::FromGuest, data, buffer });
                Ok(())
            }
        }
    }

    fn read_buffer(&mut self, key: usize, data: Data, offset: u64, bytes: u64) -> Result<(), DiskFault> {
        let buffer = copy_thread::buffer_of(bytes)?;
        let op = PartOp::Bounce { transfer: Transfer::Read(offset), from: 0 };
        self.add(key, data, op, IoMemory::Buffer(buffer));
        Ok(())
    }

    fn begin_zeros(
        &mut self,
        key: usize,
        data: Data,
        at: u64,
        bytes: u64,
        deallocate: bool,
    ) -> Result<(), DiskFault> {
        if let Some(mode) = self.shared.zero_mode(deallocate) {
            self.add(key, data, PartOp::Fallocate { mode, at, bytes }, IoMemory::None);
        } else {
            let buffer = copy_thread::buffer_of(bytes.min(ZERO_CHUNK))?;
            self.add(key, data, PartOp::WriteZeros { at, left: bytes }, IoMemory::Buffer(buffer));
        }
        Ok(())
    }

    /// Adds a part to a request.
    fn add(&mut self, key: usize, data: Data, op: PartOp, memory: IoMemory) {
        if let Some(active) = self.requests.get_mut(key) {
            active.parts += 1;
            self.pending.push_back((Part { key, data, op, tries: 0 }, memory));
        }
    }

    /// Copies for a part: on this thread, or on the copy thread if it may take long.
    fn copy(&mut self, remote: bool, mut job: CopyJob) {
        if !remote {
            let result = copy_thread::copy_now(job.copy, &job.data, &mut job.buffer);
            return self.copied(CopyDone { job, result });
        }
        if self.copy_thread.is_none() {
            match CopyThread::start(&self.kick) {
                Ok(copy_thread) => self.copy_thread = Some(copy_thread),
                Err(error) => {
                    return self.copied(CopyDone { job, result: Err(copy_thread::spawn_fault(&error)) });
                }
            }
        }
        if let Some(Err(job)) = self.copy_thread.as_ref().map(|copy_thread| copy_thread.send(job)) {
            self.copy_thread = None;
            self.copied(CopyDone { job, result: Err(DiskFault::Io(Errno::EIO)) });
        }
    }

    /// A copy is done: a write goes on to the file, other requests end.
    fn copied(&mut self, done: CopyDone) {
        let CopyDone { job, result } = done;
        let transfer = self.requests.get(job.key).and_then(|active| match active.operation {
            Operation::Write { offset, fua: true } => Some(Transfer::WriteDurable(offset)),
            Operation::Write { offset, fua: false } => Some(Transfer::Write(offset)),
            _ => None,
        });
        match (result, transfer) {
            (Ok(()), Some(transfer)) => {
                let op = PartOp::Bounce { transfer, from: 0 };
                let part = Part { key: job.key, data: job.data, op, tries: 0 };
                self.pending.push_back((part, IoMemory::Buffer(job.buffer)));
            }
            (result, _) => self.part_done(job.key, result),
        }
    }

    /// Moves pending parts to the ring, as many as fit.
    fn start(&mut self) -> Result<(), DiskError> {
        while let Some((part, memory)) = self.pending.pop_front() {
            if self.ring.sq_space() == 0 {
                self.ring.enter(IoWait::No).map_err(broke)?;
                if self.ring.sq_space() == 0 {
                    self.pending.push_front((part, memory));
                    return Ok(());
                }
            }
            if let PartOp::Sync = part.op {
                self.shared.count(Event::Sync);
            }
            let key = part.key;
            let refused = match (part.op, memory) {
                (PartOp::ZeroCopy(transfer), IoMemory::Guest(pieces)) => {
                    // SAFETY: the part owns the holds of its memory, which keep it mapped, and comes back with the
                    // completion; registered memory has no Rust references into it (`prereg::Memory`).
                    unsafe { self.ring.transfer(transfer, pieces, part) }.is_err()
                }
                (PartOp::Bounce { transfer, from }, IoMemory::Buffer(buffer)) => {
                    self.ring.transfer_buffer(transfer, buffer, from, part).is_err()
                }
                (PartOp::WriteZeros { at, left }, IoMemory::Buffer(buffer)) => {
                    let from = buffer.bytes() - left.min(buffer.bytes() as u64) as usize;
                    self.ring.transfer_buffer(Transfer::Write(at), buffer, from, part).is_err()
                }
                (PartOp::Fallocate { mode, at, bytes }, _) => {
                    self.ring.allocate(mode, at, bytes, part).is_err()
                }
                (PartOp::Sync, _) => self.ring.sync_data(part).is_err(),
                _ => true,
            };
            if refused {
                self.part_done(key, Err(DiskFault::Range));
            }
        }
        Ok(())
    }

    fn completed(&mut self, completed: Completed<Part>) {
        let Completed { token: mut part, result, io_path, memory } = completed;
        match result {
            Ok(bytes) => self.moved(part, memory, u64::from(bytes), io_path),
            Err(Errno::EAGAIN | Errno::EINTR) if part.tries < MAX_TRIES => {
                part.tries += 1;
                self.again(part, memory);
            }
            // The table of fixed buffers was changing, or memory is gone: a plain transfer shows which.
            Err(Errno::EFAULT) if io_path == Some(IoPath::Fixed) => match memory {
                IoMemory::Guest(mut pieces) => {
                    pieces.clear_slot();
                    self.again(part, IoMemory::Guest(pieces));
                }
                _ => self.part_done(part.key, Err(DiskFault::Io(Errno::EFAULT))),
            },
            Err(errno) => self.refused(part, errno),
        }
    }

    fn again(&mut self, part: Part, memory: IoMemory) {
        self.shared.count(Event::Retried);
        self.pending.push_back((part, memory));
    }

    /// The kernel did a part, or some of it.
    fn moved(&mut self, mut part: Part, memory: IoMemory, bytes: u64, io_path: Option<IoPath>) {
        if let Some(io_path) = io_path {
            self.shared.count(Event::Transfer(io_path));
        }
        let (op, memory) = match (part.op, memory) {
            (PartOp::ZeroCopy(transfer), IoMemory::Guest(mut pieces)) => {
                if bytes == pieces.bytes() {
                    return self.part_done(part.key, Ok(()));
                }
                let Some(bytes) = self.progress(bytes) else { return self.ended(part.key) };
                pieces.advance(bytes);
                (PartOp::ZeroCopy(advanced(transfer, bytes)), IoMemory::Guest(pieces))
            }
            (PartOp::Bounce { transfer, from }, IoMemory::Buffer(buffer)) => {
                if from as u64 + bytes == buffer.bytes() as u64 {
                    return self.buffer_done(part, transfer, buffer);
                }
                let Some(bytes) = self.progress(bytes) else { return self.ended(part.key) };
                let from = from + bytes as usize;
                (PartOp::Bounce { transfer: advanced(transfer, bytes), from }, IoMemory::Buffer(buffer))
            }
            (PartOp::WriteZeros { at, left }, memory) => {
                if bytes == left {
                    return self.part_done(part.key, Ok(()));
                }
                let Some(bytes) = self.progress(bytes) else { return self.ended(part.key) };
                part.op = PartOp::WriteZeros { at: at + bytes, left: left - bytes };
                return self.pending.push_back((part, memory));
            }
            _ => return self.part_done(part.key, Ok(())),
        };
        self.shared.count(Event::Continued);
        part.op = op;
        self.pending.push_back((part, memory));
    }

    /// The bytes of a short transfer after which it can continue: direct I/O continues at whole blocks only. `None`: none.
    fn progress(&self, bytes: u64) -> Option<u64> {
        let whole = self.caps.direct.map_or(bytes, |demand| bytes - bytes % demand.offset);
        (whole > 0).then_some(whole)
    }

    /// The file is shorter than its disk.
    fn ended(&mut self, key: usize) {
        self.part_done(key, Err(DiskFault::Io(Errno::EIO)));
    }

    /// The transfer of a bounce buffer is done; a read is then copied to the guest.
    fn buffer_done(&mut self, part: Part, transfer: Transfer, buffer: AlignedBuffer) {
        if !matches!(transfer, Transfer::Read(_)) {
            return self.part_done(part.key, Ok(()));
        }
        let comparing = self
            .requests
            .get(part.key)
            .is_some_and(|active| matches!(active.operation, Operation::Compare { .. }));
        let copy = if comparing { CopyKind::Compare } else { CopyKind::ToGuest };
        let remote = part.data.iter().any(|segment| !segment.hold.is_local());
        self.copy(remote, CopyJob { key: part.key, copy, data: part.data, buffer });
    }

    /// The kernel rejected a part, unless there is another way.
    fn refused(&mut self, part: Part, errno: Errno) {
        let key = part.key;
        let fault = match part.op {
            PartOp::Fallocate { mode, at, bytes } if errno == Errno::EOPNOTSUPP => {
                return self.without_mode(part, mode, at, bytes);
            }
            PartOp::Sync => {
                self.shared.set_lost(errno);
                fault_of(errno)
            }
            PartOp::ZeroCopy(_) if errno == Errno::EFAULT => memory_fault(&part.data),
            // With the page cache, an earlier write's failure can be reported here, and only here.
            PartOp::ZeroCopy(Transfer::WriteDurable(_))
            | PartOp::Bounce { transfer: Transfer::WriteDurable(_), .. }
                if self.caps.direct.is_none() =>
            {
                self.shared.set_lost(errno);
                fault_of(errno)
            }
            _ => fault_of(errno),
        };
        self.part_done(key, Err(fault));
    }

    /// The file system does not support this `fallocate` mode: a discard is a hint, zeros are made another way.
    fn without_mode(&mut self, part: Part, mode: i32, at: u64, bytes: u64) {
        self.shared.without_mode(mode);
        let deallocate = match self.requests.get(part.key).map(|active| &active.operation) {
            Some(Operation::WriteZeroes { deallocate, .. }) => *deallocate,
            _ => return self.part_done(part.key, Ok(())),
        };
        let result = self.begin_zeros(part.key, part.data, at, bytes, deallocate);
        self.part_done(part.key, result);
    }

    fn part_done(&mut self, key: usize, result: Result<(), DiskFault>) {
        let Some(active) = self.requests.get_mut(key) else { return };
        active.parts -= 1;
        if let Err(fault) = result {
            active.fault.get_or_insert(fault);
        }
        if active.parts > 0 {
            return;
        }
        if active.fault.is_none() && std::mem::take(&mut active.sync_after) {
            let data = Arc::clone(&active.data);
            return self.add(key, data, PartOp::Sync, IoMemory::None);
        }
        self.finish(key);
    }

    fn finish(&mut self, key: usize) {
        let Some(active) = self.requests.take(key) else { return };
        self.shared.count_request(&active.operation, active.bytes, active.fault.as_ref());
        let result = active.fault.map_or(Ok(()), Err);
        self.finished.push(Done { tag: active.tag, result });
    }

    /// Handles completions of the ring and the copy thread, and starts what follows.
    fn collect(&mut self) -> Result<(), DiskError> {
        while let Some(completed) = self.ring.next_completed() {
            self.completed(completed);
        }
        while let Some(done) = self.copy_thread.as_ref().and_then(CopyThread::try_recv) {
            self.copied(done);
        }
        self.start()
    }
}

impl DiskQueue for FileQueue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.in_flight() >= MAX_IN_FLIGHT {
            return Err(request);
        }
        let key = self.requests.insert(ActiveRequest {
            tag: request.tag,
            operation: request.operation,
            data: Arc::new(request.data),
            bytes: 0,
            parts: 1,
            fault: None,
            sync_after: false,
        });
        // The request itself counts as a part until all parts are added.
        let result = self.begin(key);
        self.part_done(key, result);
        Ok(())
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<(), DiskError> {
        let until = match wait {
            Wait::For(time) => Instant::now().checked_add(time),
            Wait::No | Wait::Kick => None,
        };
        self.start()?;
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let over = wait == Wait::No || left.is_some_and(|left| left.is_zero());
            let wait = match left {
                _ if over || !self.finished.is_empty() => IoWait::No,
                Some(left) => IoWait::For(left),
                None => IoWait::One,
            };
            self.ring.enter(wait).map_err(broke)?;
            self.collect()?;
            if over || !self.finished.is_empty() || self.ring.take_kick() {
                break;
            }
        }
        // Submits what followed from the completions before the caller handles them.
        self.ring.enter(IoWait::No).map_err(broke)?;
        done.append(&mut self.finished);
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.requests.len() + self.finished.len()
    }
}

const fn broke(errno: Errno) -> DiskError {
    DiskError::Ring { during: "io_uring_enter", errno }
}
