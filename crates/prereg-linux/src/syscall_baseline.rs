//! The system calls under a registration, alone, to measure a registration against.
//!
//! No clock here: whoever measures brings one. [`RawPin::pin`] is one call of the kernel a GiB and nothing else;
//! [`read_page_map`] is the bulk read and looks at next to nothing of what came.

use std::os::fd::RawFd;

use prereg::{Errno, UserRange};

use crate::error::BackendError;
use crate::pagemap::{Pagemap, PagemapError};
use crate::pin_ring::PinRing;
use crate::sys::{self, Buffer};

/// A ring used with bare calls.
#[derive(Debug)]
pub struct RawPin {
    ring: PinRing,
}

/// What one slot is given: what every kernel allows.
const SLOT_BYTES: u64 = 1 << 30;

impl RawPin {
    /// A ring with an empty table.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn new() -> Result<Self, BackendError> {
        let ring = PinRing::new().map_err(|(during, errno)| BackendError::of_ring(during, errno))?;
        Ok(Self { ring })
    }

    /// Puts `range` into the slots from 0 on, one call each, without a tag.
    ///
    /// # Errors
    /// What the kernel answered; then nothing stays pinned.
    pub fn pin(&self, range: UserRange) -> Result<(), Errno> {
        let fd: RawFd = self.ring.fd();
        for (slot, offset) in (0..range.bytes()).step_by(1 << 30).enumerate() {
            let buffer =
                Buffer { ua: range.first().raw() + offset, bytes: SLOT_BYTES.min(range.bytes() - offset) };
            if let Err(errno) = sys::update_buffers(fd, slot as u32, &[buffer], &[0]) {
                self.empty(slot);
                return Err(errno);
            }
        }
        Ok(())
    }

    /// Empties the slots that `range` took.
    pub fn unpin(&self, range: UserRange) {
        self.empty(usize::try_from(range.bytes().div_ceil(SLOT_BYTES)).unwrap_or(0));
    }

    fn empty(&self, slots: usize) {
        for slot in 0..slots {
            // An empty slot is emptied with success, and a filled one cannot refuse.
            let _ = sys::update_buffers(self.ring.fd(), slot as u32, &[Buffer::NONE], &[0]);
        }
    }
}

/// Reads the page map over `range` in bulk, as a registration does; answers how many of the entries it looked at (the
/// last of each bulk) were in memory.
///
/// # Errors
/// [`PagemapError`].
pub fn read_page_map(map: &Pagemap, range: UserRange) -> Result<u64, PagemapError> {
    map.entries(range)
}
