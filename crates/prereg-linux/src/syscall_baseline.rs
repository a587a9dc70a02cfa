//! The bare system calls of a registration, as a baseline for benchmarks.
//!
//! [`RawPin::pin`] makes one system call per GiB and does nothing else. [`read_page_map`] does the bulk reads and
//! ignores almost all of the data. The caller measures the time.

use std::os::fd::RawFd;

use prereg::{Errno, UserRange};

use crate::error::BackendError;
use crate::pagemap::{Pagemap, PagemapError};
use crate::pin_ring::PinRing;
use crate::sys::{self, Buffer};

/// A ring used by bare calls.
#[derive(Debug)]
pub struct RawPin {
    ring: PinRing,
}

/// Bytes per slot: what every kernel accepts.
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

    /// Puts `range` into the slots from 0 on, with one call per slot and without tags.
    ///
    /// # Errors
    /// The kernel's errno; nothing stays pinned.
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

    /// Empties the slots of `range`.
    pub fn unpin(&self, range: UserRange) {
        self.empty(usize::try_from(range.bytes().div_ceil(SLOT_BYTES)).unwrap_or(0));
    }

    fn empty(&self, slots: usize) {
        for slot in 0..slots {
            // Emptying a slot cannot fail.
            let _ = sys::update_buffers(self.ring.fd(), slot as u32, &[Buffer::NONE], &[0]);
        }
    }
}

/// Reads the page map of `range` in bulk, as a registration does. Returns how many of the entries it looked at (the
/// last of each bulk) were present.
///
/// # Errors
/// [`PagemapError`].
pub fn read_page_map(map: &Pagemap, range: UserRange) -> Result<u64, PagemapError> {
    map.entries(range)
}
