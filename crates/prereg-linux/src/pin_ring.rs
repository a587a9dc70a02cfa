//! An io_uring instance that is used only for its table of registered buffers.
//!
//! Filling a slot pins its memory (`FOLL_LONGTERM`). Emptying it releases the memory; when the pages are really
//! unpinned, the tag given with the memory arrives as a completion, for which [`PinRing::clear`] waits.
//!
//! The kernel serialises calls on one table by a lock of its own. Cloning slots takes the kernel's locks of both rings,
//! so a clone that waited for a pin in progress would stop the I/O ring for that long; filling and cloning are
//! therefore serialised here too. The other lock here only covers the completion queue. The ring's memory is not
//! inherited by children (`MADV_DONTFORK`): a child's copy of the mappings would keep every pin after the parent exits.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use io_uring::types::{SubmitArgs, Timespec};
use prereg::Errno;

use crate::counter::Counter;
use crate::slot_table::SLOTS;
use crate::sys::{self, Buffer};

/// Slots changed by one call. The completion queue holds twice as many entries.
pub(crate) const BATCH: usize = 64;

/// Bytes pinned by one call, unless a single buffer is larger, so that other users of the ring are served in between.
const MAX_CALL_BYTES: u64 = 1 << 30;

/// A wait longer than this is counted as overdue, and continues.
const OVERDUE: Timespec = Timespec::new().sec(1);

pub(crate) struct PinRing {
    fd: RawFd,
    /// Held while the kernel pins into the table and while it clones from it.
    filling: Mutex<()>,
    completions: Mutex<Completions>,
    overdue: Counter,
}

struct Completions {
    uring: io_uring::IoUring,
    /// Slots whose completion was read by a waiter for other slots.
    unpinned: HashSet<u32>,
}

/// A batch that failed part-way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartialFill {
    /// Buffers that are in their slots.
    pub(crate) done: usize,
    /// The error of the next buffer.
    pub(crate) errno: Errno,
}

impl PinRing {
    /// A ring with an empty table.
    ///
    /// # Errors
    /// The failed call and its error.
    pub(crate) fn new() -> Result<Self, (&'static str, Errno)> {
        const ENTRIES: u32 = 8;
        let uring = io_uring::IoUring::builder()
            .dontfork()
            .setup_cqsize(2 * BATCH as u32)
            .build(ENTRIES)
            .map_err(|error| ("io_uring_setup", sys::errno_of(&error)))?;
        uring
            .submitter()
            .register_buffers_sparse(SLOTS)
            .map_err(|error| ("io_uring_register(BUFFERS2)", sys::errno_of(&error)))?;
        Ok(Self {
            fd: uring.as_raw_fd(),
            filling: Mutex::new(()),
            completions: Mutex::new(Completions { uring, unpinned: HashSet::new() }),
            overdue: Counter::default(),
        })
    }

    /// The descriptor. The kernel makes ring descriptors close-on-exec.
    pub(crate) const fn fd(&self) -> RawFd {
        self.fd
    }

    /// Waits longer than [`OVERDUE`].
    pub(crate) fn overdue(&self) -> u64 {
        self.overdue.get()
    }

    /// Fills the slots from `first` on with `buffers`: with all, or with as many as [`PartialFill`] says.
    pub(crate) fn fill(&self, first: u32, buffers: impl Iterator<Item = Buffer>) -> Result<(), PartialFill> {
        let mut buffers = buffers.peekable();
        let mut done = 0;
        while buffers.peek().is_some() {
            let mut batch = [Buffer::NONE; BATCH];
            let mut tags = [0; BATCH];
            let mut len = 0;
            let mut bytes = 0u64;
            while len < BATCH {
                let Some(buffer) = buffers
                    .next_if(|buffer| len == 0 || bytes.saturating_add(buffer.bytes) <= MAX_CALL_BYTES)
                else {
                    break;
                };
                batch[len] = buffer;
                tags[len] = tag_of(first + (done + len) as u32);
                bytes = bytes.saturating_add(buffer.bytes);
                len += 1;
            }
            let mut filled = 0;
            while filled < len {
                let slot = first + (done + filled) as u32;
                let fill_lock = self.fill_lock();
                let result = sys::update_buffers(self.fd, slot, &batch[filled..len], &tags[filled..len]);
                drop(fill_lock);
                match result {
                    // A short count does not say why; the next call retries the failed buffer first and gets its error.
                    Ok(n) if n > 0 => filled += n as usize,
                    Ok(_) => return Err(PartialFill { done: done + filled, errno: Errno::EIO }),
                    Err(errno) => return Err(PartialFill { done: done + filled, errno }),
                }
            }
            done += len;
        }
        Ok(())
    }

    fn fill_lock(&self) -> MutexGuard<'_, ()> {
        self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clones `count` slots from `first` on into the ring `other`, from its slot `other_first` on.
    pub(crate) fn clone_slots(
        &self,
        first: u32,
        count: u32,
        other: RawFd,
        other_first: u32,
    ) -> Result<(), Errno> {
        let _guard = self.fill_lock();
        sys::clone_buffers(other, other_first, self.fd, first, count)
    }

    /// Empties `count` filled slots from `first` on, and returns when their pages are unpinned.
    ///
    /// # Errors
    /// The system's errno. Some slots may then still hold their pages, and none may be used again.
    pub(crate) fn clear(&self, first: u32, count: u32) -> Result<(), Errno> {
        const NONE: [Buffer; BATCH] = [Buffer::NONE; BATCH];
        const NO_TAGS: [u64; BATCH] = [0; BATCH];
        let end = first + count;
        let mut slot = first;
        while slot < end {
            let batch = ((end - slot) as usize).min(BATCH);
            let mut emptied = 0;
            while emptied < batch {
                let left = batch - emptied;
                match sys::update_buffers(self.fd, slot + emptied as u32, &NONE[..left], &NO_TAGS[..left]) {
                    Ok(0) => return Err(Errno::EIO),
                    Ok(n) => emptied += n as usize,
                    Err(Errno::EINTR | Errno::EAGAIN) => {}
                    Err(errno) => return Err(errno),
                }
            }
            self.wait(slot, batch as u32)?;
            slot += batch as u32;
        }
        Ok(())
    }

    /// Waits for the completions of the slots.
    ///
    /// A waiter reads the completions of all threads, so it does not matter which one holds the lock.
    fn wait(&self, first: u32, count: u32) -> Result<(), Errno> {
        let mut completions = self.completions.lock().unwrap_or_else(PoisonError::into_inner);
        let Completions { uring, unpinned } = &mut *completions;
        let mut left: u32 = (first..first + count).map(|slot| u32::from(!unpinned.remove(&slot))).sum();
        while left > 0 {
            for completion in uring.completion() {
                let slot = slot_of(completion.user_data());
                if (first..first + count).contains(&slot) {
                    left -= 1;
                } else {
                    unpinned.insert(slot);
                }
            }
            if left == 0 {
                break;
            }
            match uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&OVERDUE)) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME) => {
                        self.overdue.add(1);
                    }
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => {}
                    _ => return Err(sys::errno_of(&error)),
                },
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for PinRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinRing").field("fd", &self.fd).finish_non_exhaustive()
    }
}

/// Not zero: a buffer with a zero tag has no completion.
const fn tag_of(slot: u32) -> u64 {
    slot as u64 + 1
}

const fn slot_of(tag: u64) -> u32 {
    (tag as u32).wrapping_sub(1)
}
