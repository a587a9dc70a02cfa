//! Storage behind a namespace: the port between the controller and what keeps the data.
//!
//! A [`Disk`] is shared by all I/O threads of a controller; each thread makes a [`DiskQueue`] of its own, puts requests
//! into it and takes completions out, in any order. A request carries the guest memory it moves data to or from as
//! [`DmaGuard`]s: they stay with the request until its completion, so memory cannot be unmapped under an I/O in flight.
//!
//! What "done" means: a completed write is readable from every queue; it is durable once a flush that was submitted
//! after its completion has completed without a fault, or at once if it was a write with `fua`. A disk that has ever
//! failed to make data durable fails every later flush: the kernel forgets a failure once it has told somebody, a disk
//! must not.

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

/// What a namespace is stored on. Offsets and lengths are bytes, multiples of the block.
pub trait Disk: Send + Sync {
    /// The size in bytes: a multiple of the block. It changes only in [`refresh`](Self::refresh).
    fn bytes(&self) -> u64;

    /// The block: 9 for 512 bytes, 12 for 4096.
    fn block_shift(&self) -> u8;

    /// Whether everything that would change the disk is answered with [`DiskFault::ReadOnly`].
    fn read_only(&self) -> bool;

    /// Whether blocks read zero after [`Operation::Discard`].
    fn discard_zeroes(&self) -> bool;

    /// A queue for one I/O thread. `kick` is an eventfd that [`DiskQueue::poll`] listens to beside its completions; the
    /// queue is its only reader.
    ///
    /// # Errors
    /// [`DiskError`].
    fn queue(&self, kick: Arc<OwnedFd>) -> Result<Box<dyn DiskQueue>, DiskError>;

    /// Looks whether the storage has another size now, and takes it over.
    ///
    /// # Errors
    /// [`DiskError`]; then the size stays as it was.
    fn refresh(&self) -> Result<Changed, DiskError>;

    /// What was done so far, over all queues.
    fn counters(&self) -> DiskCounters;
}

/// One I/O thread's way to a [`Disk`].
///
/// Dropping a queue waits for the I/O that the kernel has begun, and gives back every hold.
pub trait DiskQueue: Send {
    /// Takes a request. It may begin at once or with the next [`poll`](Self::poll); it completes in a `poll`, also if it
    /// is refused.
    ///
    /// # Errors
    /// The request itself when the queue is full: poll first.
    fn submit(&mut self, request: Request) -> Result<(), Request>;

    /// Starts what was submitted and appends what is done to `done`.
    ///
    /// # Errors
    /// [`DiskError`] when the queue itself is broken; requests in flight may then never complete.
    fn poll(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<(), DiskError>;

    /// Requests taken and not yet handed out as done.
    fn in_flight(&self) -> usize;
}

/// How long [`DiskQueue::poll`] may wait when nothing is done yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until a completion, or until the kick eventfd rings; the ring is consumed.
    Kick,
    /// As `Kick`, but at most this long.
    For(Duration),
}

/// What to do, and the memory to do it with.
#[derive(Debug)]
pub struct Request {
    /// The caller's name for it, found again in [`Done`].
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
    /// Guest memory, in order: its bytes together are the length of a read, write or compare. Empty for the others.
    pub data: Vec<Segment>,
}

/// A piece of guest memory: part of a hold.
#[derive(Debug)]
pub struct Segment {
    /// Keeps the memory mapped until the request is done.
    pub hold: DmaGuard,
    /// Bytes from the start of the hold.
    pub offset: u64,
    /// The length.
    pub bytes: u64,
}

/// What a request does. All numbers are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Reads from `offset` into the segments.
    Read {
        /// Where on the disk.
        offset: u64,
    },
    /// Writes the segments to `offset`.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Done means durable.
        fua: bool,
    },
    /// Makes every write that was completed before, on whatever queue, durable.
    Flush,
    /// Makes the range read zero.
    WriteZeroes {
        /// Where on the disk.
        offset: u64,
        /// How much.
        bytes: u64,
        /// The storage below may be given back.
        deallocate: bool,
        /// Done means durable.
        fua: bool,
    },
    /// The ranges `(offset, bytes)` are no longer needed. What they read afterwards is
    /// [`discard_zeroes`](Disk::discard_zeroes).
    Discard {
        /// The ranges.
        ranges: Vec<(u64, u64)>,
    },
    /// Compares what is at `offset` with the segments.
    Compare {
        /// Where on the disk.
        offset: u64,
    },
}

/// A request that is done.
#[derive(Debug)]
pub struct Done {
    /// The request's tag.
    pub tag: u64,
    /// Whether it did what it was asked.
    pub result: Result<(), DiskFault>,
}

/// What [`Disk::refresh`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// The size is what it was.
    No,
    /// The size is another.
    Bytes {
        /// What it was.
        before: u64,
        /// What it is.
        now: u64,
    },
}

/// What a disk has done, as plain numbers over all its queues.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct DiskCounters {
    /// Reads done without a fault.
    pub reads: u64,
    /// Bytes they read.
    pub bytes_read: u64,
    /// Writes done without a fault.
    pub writes: u64,
    /// Bytes they wrote.
    pub bytes_written: u64,
    /// Flushes done without a fault.
    pub flushes: u64,
    /// Ranges made zero.
    pub zeroes: u64,
    /// Ranges discarded.
    pub discards: u64,
    /// Compares done, equal or not.
    pub compares: u64,
    /// Requests that ended with a fault.
    pub faults: u64,
    /// Transfers straight into or out of registered memory.
    pub fixed: u64,
    /// Transfers into or out of guest memory that the kernel pinned for the one transfer.
    pub plain: u64,
    /// Transfers through a buffer of ours.
    pub bounced: u64,
    /// Transfers that came back short and were continued.
    pub continued: u64,
    /// Transfers that were refused for the moment, or by a table that had just changed, and tried again.
    pub retried: u64,
    /// `fdatasync` calls that the kernel was asked for.
    pub syncs: u64,
}

/// The bytes of all segments. `None`: a segment reaches outside its hold, or there is nothing.
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
