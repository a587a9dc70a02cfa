//! One io_uring instance, used for nothing but its table of registered buffers.
//!
//! Putting memory into a slot pins it (`FOLL_LONGTERM`); emptying the slot lets go, and the tag given with the memory
//! comes back as a completion when the pages are really unpinned. That completion is what [`PinRing::clear`] waits for.
//!
//! The kernel works on one table under one lock of its own, so calls on the same ring queue up there; ours are only held
//! to look at completions, and around what would otherwise make an I/O ring wait: copying slots into another ring takes
//! the kernel's locks of both, so a copy that met a pin in progress would stop the other ring's I/O until that pin is
//! done. Filling and copying therefore queue up here. The ring's memory is kept from children (`MADV_DONTFORK`): a child's copy of the mappings would
//! keep every pin alive after the owner is gone.

use std::collections::HashSet;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use io_uring::types::{SubmitArgs, Timespec};
use prereg::Errno;

use crate::counter::Counter;
use crate::slot_table::SLOTS;
use crate::sys::{self, Buffer};

/// Slots changed by one call. As many completions fit the ring twice over.
pub(crate) const BATCH: usize = 64;

/// Bytes that one call pins, unless one buffer alone is more: others who need the ring get a turn in between.
const MAX_CALL_BYTES: u64 = 1 << 30;

/// After this long without the completion the wait is counted as overdue, and goes on.
const OVERDUE: Timespec = Timespec::new().sec(1);

pub(crate) struct PinRing {
    fd: RawFd,
    /// Held while the kernel pins into the table, and while it copies from it.
    filling: Mutex<()>,
    completions: Mutex<Completions>,
    overdue: Counter,
}

struct Completions {
    uring: io_uring::IoUring,
    /// Slots that were seen to be unpinned and whose owner has not looked yet.
    unpinned: HashSet<u32>,
}

/// A batch that stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PartialFill {
    /// Buffers that are in their slots.
    pub(crate) done: usize,
    /// Why the next one is not.
    pub(crate) errno: Errno,
}

impl PinRing {
    /// A ring with an empty table.
    ///
    /// # Errors
    /// The call that failed and what the system gave.
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

    /// The descriptor, closed when a program is executed (`O_CLOEXEC` is the kernel's own rule for rings).
    pub(crate) const fn fd(&self) -> RawFd {
        self.fd
    }

    /// Waits that took longer than they ever should have.
    pub(crate) fn overdue(&self) -> u64 {
        self.overdue.get()
    }

    /// Puts `buffers` into the slots from `first` on: all, or as many as `Stopped` says.
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
                    // A short count hides why it stopped; the next turn asks the one that failed, alone at the front.
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

    /// Copies `count` slots from `first` on into the table of the ring `other`, from its slot `other_first` on.
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

    /// Empties `count` slots from `first` on, all of them filled, and returns when their pages are unpinned.
    ///
    /// # Errors
    /// What the system gave; then some slots may still hold their pages, and none may be used again.
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

    /// Waits until all of the slots were seen to be unpinned.
    ///
    /// Whoever waits collects everybody's completions, so it does not matter which thread holds the lock.
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

/// Never zero: a zero tag asks for no completion.
const fn tag_of(slot: u32) -> u64 {
    slot as u64 + 1
}

const fn slot_of(tag: u64) -> u32 {
    (tag as u32).wrapping_sub(1)
}
