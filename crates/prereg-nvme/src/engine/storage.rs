//! The interface to the disks, for one poll group.

use crate::disk::{DiskFault, Done, Operation};
use crate::spec::Status;

use super::counters::Kind;

/// A request to a disk.
#[derive(Debug)]
pub struct Work<H> {
    /// The namespace of the disk.
    pub nsid: u32,
    /// Returned in [`Done`].
    pub tag: u64,
    /// The operation.
    pub operation: Operation,
    /// Guest memory, in order.
    pub data: Vec<Span<H>>,
}

/// A held range of guest memory.
#[derive(Debug)]
pub struct Span<H> {
    /// The hold.
    pub hold: H,
    /// Its length.
    pub bytes: u64,
}

/// A disk queue failed; its requests will not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a disk queue failed")]
pub struct Broken;

/// The queues of a poll group to all disks.
pub trait Storage<H> {
    /// Adds a request.
    ///
    /// # Errors The request when the queue is full: collect first.
    fn submit(&mut self, work: Work<H>) -> Result<(), Work<H>>;

    /// Starts the submitted requests and appends completed ones to `done`. Does not wait.
    ///
    /// # Errors [`Broken`].
    fn collect(&mut self, done: &mut Vec<Done>) -> Result<(), Broken>;
}

/// The status of a command of `kind` that met `fault`.
#[must_use]
pub fn status_of(fault: &DiskFault, kind: Kind) -> Status {
    match fault {
        DiskFault::NoSpace => Status::CAPACITY,
        DiskFault::ReadOnly => Status::WRITE_PROTECTED,
        DiskFault::Mismatch => Status::COMPARE_FAILURE,
        DiskFault::Range => Status::LBA_RANGE,
        DiskFault::Data(_) => Status::DATA_TRANSFER,
        _ if matches!(kind, Kind::Read | Kind::Compare) => Status::READ_ERROR,
        _ => Status::WRITE_FAULT,
    }
}
