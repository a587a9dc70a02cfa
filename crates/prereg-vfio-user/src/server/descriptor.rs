//! A descriptor of a session: one that a client sent, or one of the device's that is sent to it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// A descriptor.
#[derive(Debug)]
pub(crate) enum Descriptor {
    /// It came from the client; dropping it closes it.
    Own(OwnedFd),
    /// It goes to the client and stays the device's.
    Shared(Arc<OwnedFd>),
}

impl Descriptor {
    /// The descriptor itself, of one that came; `None` of one that goes.
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
