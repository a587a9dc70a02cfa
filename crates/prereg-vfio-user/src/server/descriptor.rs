//! A descriptor of a session: received from the client, or the device's and sent to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A descriptor.
#[derive(Debug)]
pub(crate) enum Descriptor {
    /// Received from the client; dropping it closes it.
    Own(OwnedFd),
    /// Sent to the client; stays open for the device.
    Shared(Arc<OwnedFd>),
}

impl Descriptor {
    /// The received descriptor; `None` for one to send.
    pub(crate) fn into_own(self) -> Option<OwnedFd> {
        match self {
            Self::Own(descriptor) => Some(descriptor),
            Self::Shared(_) => None,
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(descriptor) => descriptor.as_fd(),
            Self::Shared(descriptor) => descriptor.as_fd(),
        }
    }
}
