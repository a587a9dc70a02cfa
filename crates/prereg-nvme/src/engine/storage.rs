//! The port to the disks, as one poll_group uses them.

use crate::disk::{DiskFault, Done, Operation};
use crate::spec::Status;

use super::counters::Kind;

/// Something for a disk to do.
#[derive(Debug)]
pub struct Work<H> {
    /// The namespace whose disk it is.
    pub nsid: u32,
    /// Found again in [`Done`].
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
    /// Guest memory, in op.
    pub data: Vec<Span<H>>,
}

/// A held piece of guest memory, all of it.
#[derive(Debug)]
pub struct Span<H> {
    /// The hold.
    pub hold: H,
    /// Its length.
    pub bytes: u64,
}

/// A disk's queue broke; what it was doing will not be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the queue of a disk broke")]
pub struct Broken;

/// A poll_group's way to all disks.
pub trait Storage<H> {
    /// Takes work.
    ///
    /// # Errors
    /// The work itself when there is no room: collect first.
    fn submit(&mut self, work: Work<H>) -> Result<(), Work<H>>;

    /// Starts what was submitted and appends what is done. Does not wait.
    ///
    /// # Errors
    /// [`Broken`].
    fn collect(&mut self, done: &mut Vec<Done>) -> Result<(), Broken>;
}

/// How a command of `kind` ends that met `fault`.
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
