//! Events of a controller for the operator, handed to an [`Observer`](prereg_vfio_user::server::Observer).

use crate::disk::{DiskError, DiskFault};
use crate::engine::counters::Kind;
use crate::engine::poll_group::FailedRequest;
use crate::spec::Status;

/// An event of the controller of one client.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NvmeEvent {
    /// The guest enabled the controller, and it is ready.
    Enabled,
    /// The guest disabled or reset the controller; no command is in flight.
    Reset,
    /// The guest shut the controller down: its data are durable.
    ShutDown,
    /// The controller failed, and reports it to the guest by CSTS.CFS. The guest has to reset it.
    Fatal {
        /// The cause.
        cause: &'static str,
    },
    /// The disk could not perform a request.
    DiskFailed {
        /// The namespace; 0 for all.
        nsid: u32,
        /// The kind of the guest's command.
        command: Kind,
        /// The command's first block; 0 for a command without one.
        lba: u64,
        /// The reason.
        fault: DiskFault,
        /// The status of the command.
        status: Status,
    },
    /// The disk queues of an I/O thread failed or could not be opened: commands fail until the guest resets the controller.
    DiskQueueFailed {
        /// The reason.
        error: DiskError,
    },
}

impl From<FailedRequest> for NvmeEvent {
    fn from(failed: FailedRequest) -> Self {
        let FailedRequest { nsid, kind, lba, fault, status } = failed;
        Self::DiskFailed { nsid, command: kind, lba, fault, status }
    }
}
