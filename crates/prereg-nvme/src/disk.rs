//! Disks: the storage of a namespace.
//!
//! A [`Disk`] is shared by all I/O threads of a controller; each thread makes its own [`DiskQueue`], submits requests and polls
//! for completions, which come in any order. A request has the guest memory of its data as [`DmaGuard`]s: they stay with the
//! request until it is done, so memory cannot be unmapped during I/O.
//!
//! A completed write is visible in every queue. It is durable once a flush that was submitted later has succeeded, or at once
//! if it has `fua`. A disk that ever failed to make data durable fails every later flush: the kernel reports such an error only
//! once.

mod fault;
mod file;
mod memory;
mod system;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use prereg_vfio_user::server::DmaGuard;

pub use fault::{DiskError, DiskFault};
pub use file::{Direct, DiskOptions, FileDisk};
pub use memory::MemoryDisk;
pub use system::ignore_file_size_signal;

/// The storage of a namespace. Offsets and lengths are in bytes, multiples of the block size.
pub trait Disk: Send + Sync {
    /// The size in bytes, a multiple of the block size. It changes only in [`refresh`](Self::refresh).
    fn bytes(&self) -> u64;

    /// The block size as a shift: 9 for 512 bytes, 12 for 4096.
    fn block_shift(&self) -> u8;

    /// Whether all writes fail with [`DiskFault::ReadOnly`].
    fn read_only(&self) -> bool;

    /// Whether blocks read zero after [`Operation::Discard`].
    fn discard_zeroes(&self) -> bool;

    /// Makes a queue for one I/O thread. `kick` is an eventfd that [`DiskQueue::poll`] waits for too; the queue is its only
    /// reader.
    ///
    /// # Errors
    /// [`DiskError`].
    fn queue(&self, kick: Arc<OwnedFd>) -> Result<Box<dyn DiskQueue>, DiskError>;

    /// Updates the size of the disk.
    ///
    /// # Errors
    /// [`DiskError`]; the size is unchanged.
    fn refresh(&self) -> Result<Changed, DiskError>;

    /// Counters of all queues.
    fn counters(&self) -> DiskCounters;
}

/// One I/O thread's queue to a [`Disk`].
///
/// Dropping it waits for I/O that the kernel has started, and releases every hold.
pub trait DiskQueue: Send {
    /// Submits a request. It starts now or with the next [`poll`](Self::poll); its result comes from a `poll`, also if it is
    /// rejected.
    ///
    /// # Errors
    /// The request when the queue is full: poll first.
    fn submit(&mut self, request: Request) -> Result<(), Request>;

    /// Starts the submitted requests and appends completed ones to `done`.
    ///
    /// # Errors
    /// [`DiskError`] when the queue failed; requests in flight may never complete.
    fn poll(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<(), DiskError>;

    /// Requests that were submitted and not returned as done.
    fn in_flight(&self) -> usize;
}

/// How long [`DiskQueue::poll`] waits when no request is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until a completion, or until the kick eventfd is written, which is reset.
    Kick,
    /// As `Kick`, but at most this long.
    For(Duration),
}

/// An operation and its data.
#[derive(Debug)]
pub struct Request<G = DmaGuard> {
    /// Returned in [`Done`].
    pub tag: u64,
    /// The operation.
    pub operation: Operation,
    /// Guest memory, in order: its total length is that of a read, write or compare. Empty for other operations.
    pub data: Vec<Segment<G>>,
}

/// A segment of guest memory: part of a hold.
#[derive(Debug)]
pub struct Segment<G = DmaGuard> {
    /// Keeps the memory mapped until the request is done.
    pub hold: G,
    /// Bytes from the start of the hold.
    pub offset: u64,
    /// The length.
    pub bytes: u64,
}

/// An operation of a disk. All numbers are in bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Reads from `offset` into the segments.
    Read {
        /// Offset on the disk.
        offset: u64,
    },
    /// Writes the segments to `offset`.
    Write {
        /// Offset on the disk.
        offset: u64,
        /// Completion means durable.
        fua: bool,
    },
    /// Makes all writes durable that were completed before, in any queue.
    Flush,
    /// Makes a range read zero.
    WriteZeroes {
        /// Offset on the disk.
        offset: u64,
        /// Length.
        bytes: u64,
        /// The range may be deallocated.
        deallocate: bool,
        /// Completion means durable.
        fua: bool,
    },
    /// The ranges `(offset, bytes)` are not needed any more. [`discard_zeroes`](Disk::discard_zeroes) says what they read
    /// afterwards.
    Discard {
        /// The ranges.
        ranges: Vec<(u64, u64)>,
    },
    /// Compares the data at `offset` with the segments.
    Compare {
        /// Offset on the disk.
        offset: u64,
    },
}

/// A completed request.
#[derive(Debug)]
pub struct Done {
    /// The request's tag.
    pub tag: u64,
    /// The result.
    pub result: Result<(), DiskFault>,
}

/// The result of [`Disk::refresh`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// The size is the same.
    No,
    /// The size changed.
    Bytes {
        /// The old size.
        before: u64,
        /// The new size.
        now: u64,
    },
}

/// Counters of a disk, over all its queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct DiskCounters {
    /// Successful reads.
    pub reads: u64,
    /// Bytes they read.
    pub bytes_read: u64,
    /// Successful writes.
    pub writes: u64,
    /// Bytes they wrote.
    pub bytes_written: u64,
    /// Successful flushes.
    pub flushes: u64,
    /// Ranges zeroed.
    pub zeroes: u64,
    /// Ranges discarded.
    pub discards: u64,
    /// Compares, equal or not.
    pub compares: u64,
    /// Requests that failed.
    pub faults: u64,
    /// Transfers with fixed buffers.
    pub fixed: u64,
    /// Transfers with guest memory that the kernel pinned for one transfer.
    pub plain: u64,
    /// Transfers through a bounce buffer.
    pub bounced: u64,
    /// Short transfers that were continued.
    pub continued: u64,
    /// Transfers that were retried: the kernel was busy, or the table of fixed buffers had just changed.
    pub retried: u64,
    /// `fdatasync` calls.
    pub syncs: u64,
}

/// The total length of all segments. `None`: a segment is outside its hold, or there is nothing.
fn bytes_of(data: &[Segment]) -> Option<u64> {
    let inside = |segment: &Segment| {
        segment.bytes > 0
            && segment.offset.checked_add(segment.bytes).is_some_and(|end| end <= segment.hold.bytes())
    };
    if !data.iter().all(inside) {
        return None;
    }
    data.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.bytes)).filter(|bytes| *bytes > 0)
}
