//! The interface to the disks, for one poll group.

use crate::disk::{DiskFault, Done, Request};
use crate::spec::Status;

use super::counters::Kind;

/// A disk queue failed; its requests will not complete.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a disk queue failed")]
pub struct Broken;

prereg::debug_as_display!(Broken);

/// The queues of a poll group to all disks.
pub trait Storage<G> {
    /// Adds a request to the disk of namespace `nsid`.
    ///
    /// # Errors
    /// The request when the queue is full: collect first.
    fn submit(&mut self, nsid: u32, request: Request<G>) -> Result<(), Request<G>>;

    /// Starts the submitted requests and appends completed ones to `done`. Does not wait.
    ///
    /// # Errors
    /// [`Broken`].
    fn collect(&mut self, done: &mut Vec<Done>) -> Result<(), Broken>;
}

/// The status of a command of `kind` that met `fault`.
pub(crate) fn status_of(fault: &DiskFault, kind: Kind) -> Status {
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
