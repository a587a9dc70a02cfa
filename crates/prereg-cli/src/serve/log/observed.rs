//! Events of all kinds with their sources.

use prereg_nvme::controller::NvmeEvent;
use prereg_nvme::disk::DiskError;
use prereg_vfio_user::server::{Event, EventSource};

/// An event with its source.
#[derive(Clone)]
pub(super) struct Observed {
    pub(super) source: EventSource,
    pub(super) event: AnyEvent,
}

/// An event of any kind.
#[derive(Clone)]
pub(super) enum AnyEvent {
    Server(Event),
    Nvme(NvmeEvent),
    Disk(DiskEvent),
}

/// An event of a disk that concerns no client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum DiskEvent {
    /// The file or device has a new size, and the guests were told.
    Resized {
        /// The namespace.
        nsid: u32,
        /// The new size.
        bytes: u64,
    },
    /// The size could not be read; the disk keeps the size that it has.
    SizeUnknown {
        /// The reason.
        error: DiskError,
    },
}
