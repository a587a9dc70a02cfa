//! A ring that reads and writes one file, directly to and from memory that an [`IoUring`] back end pinned.
//!
//! The ring's fixed buffers are clones of the back end's slots, which cost neither a pin nor a charge; `buffer_clones`
//! keeps them in step with the pins. Where that is not possible the ring uses plain transfers, for each of which the
//! kernel pins the pages; [`IoRing::fixed`] returns the reason.
//!
//! A ring belongs to one thread at a time. It owns its file, the buffers of its transfers and, for every transfer in
//! flight, the caller's token, which the completion returns. Whatever keeps guest memory mapped belongs in the token.
//! Dropping the ring waits for the transfers that the kernel has begun (those of a pipe or socket are cancelled) and
//! only then drops tokens and buffers. If the kernel fails to report completions, or a panic unwinds in between, they
//! are leaked on purpose: memory that may still be written must not be reused.
//!
//! Other threads change the buffer table, so the ring does not use `IORING_SETUP_SINGLE_ISSUER`.
#![expect(
    unsafe_code,
    reason = "hands addresses to the kernel: of buffers the ring owns, or on the caller's promise"
)]

pub(crate) mod buffer;
pub(crate) mod segments;
mod slab;
pub(crate) mod sqe;

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{CancelBuilder, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{cqueue, opcode};
use prereg::{AddressKind, Errno, Pin};

use crate::buffer_clones::{CloneMode, CloneTable};
use crate::error::BackendError;
use crate::sys::{self, Buffer};
use crate::uring::IoUring;
use buffer::AlignedBuffer;
use segments::{IoSegment, IoSegments};
use slab::Slab;
use sqe::{FILE, Transfer, sqe_for_buffer, sqe_for_list};

/// Completion queue entries per submission queue entry; the kernel buffers any overflow.
const COMPLETIONS: u32 = 4;

/// The user data of the poll on the kick eventfd.
const KICK: u64 = u64::MAX;

/// An I/O ring for one file. `T` is the caller's token of a transfer.
pub struct IoRing<T> {
    uring: io_uring::IoUring,
    in_flight: Slab<InFlight<T>>,
    /// Completions taken from the kernel's queue and not yet returned, last first.
    completions: Vec<cqueue::Entry>,
    clones: Result<ClonedBuffers, PlainReason>,
    vectored: bool,
    kick: Kick,
    process: u32,
    file: Arc<File>,
}

struct ClonedBuffers {
    pins: Arc<IoUring>,
    table: Arc<CloneTable>,
}

struct InFlight<T> {
    token: T,
    memory: IoMemory,
    io_path: Option<IoPath>,
    /// Read by the kernel at submission.
    _list: Box<[Buffer]>,
}

#[derive(Default)]
struct Kick {
    event: Option<Arc<OwnedFd>>,
    armed: bool,
    signalled: bool,
}

/// Reasons for plain transfers instead of fixed buffers.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlainReason {
    /// No back end was given.
    #[error("no back end that registers memory was given")]
    NoBackend,
    /// The back end's host addresses do not name slots.
    #[error(
        "the back end hands out physical addresses, which name no slot; make it with IoUringBuilder::addresses(SlotOffset)"
    )]
    NoSlotAddresses,
    /// The kernel cannot clone buffer tables.
    #[error(
        "this kernel cannot clone single fixed buffers from ring to ring ({errno} from {during}); Linux 6.13 or newer is needed"
    )]
    NoCopies {
        /// The call that failed.
        during: &'static str,
        /// The system's errno.
        errno: Errno,
    },
}

prereg::debug_as_display!(PlainReason);

/// The path by which a transfer reaches memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoPath {
    /// A fixed buffer: no pin per transfer.
    Fixed,
    /// A user address: the kernel pins the pages for each direct transfer.
    Plain,
    /// A buffer of this process.
    Buffer,
}

/// How long [`IoRing::enter`] waits for a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoWait {
    /// Do not wait.
    No,
    /// Wait for one completion.
    One,
    /// Wait for one completion, but at most this long.
    For(Duration),
}

/// A completed transfer.
#[derive(Debug)]
pub struct Completed<T> {
    /// The caller's token.
    pub token: T,
    /// Bytes transferred (0 for operations without data), or the error.
    pub result: Result<u32, Errno>,
    /// The path to memory; `None` for operations without memory.
    pub io_path: Option<IoPath>,
    /// The transfer's memory.
    pub memory: IoMemory,
}

/// Memory of a transfer.
#[derive(Debug)]
pub enum IoMemory {
    /// None.
    None,
    /// Guest memory.
    Guest(IoSegments),
    /// A buffer.
    Buffer(AlignedBuffer),
}

impl<T> IoRing<T> {
    /// A ring for `file` with `entries` submission queue entries (a power of two). With `pins`, memory that this back
    /// end pins is reached through fixed buffers, if [`fixed`](Self::fixed) returns `Ok`.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn new(entries: u32, file: Arc<File>, pins: Option<&Arc<IoUring>>) -> Result<Self, BackendError> {
        let uring = io_uring::IoUring::builder()
            .dontfork()
            .setup_clamp()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(entries.saturating_mul(COMPLETIONS))
            .build(entries)
            .map_err(|error| BackendError::of_ring("io_uring_setup", sys::errno_of(&error)))?;
        uring.submitter().register_files(&[file.as_raw_fd()]).map_err(|error| BackendError::Os {
            during: "io_uring_register(FILES)",
            errno: sys::errno_of(&error),
        })?;
        let mut probe = io_uring::Probe::new();
        let vectored = uring.submitter().register_probe(&mut probe).is_ok()
            && probe.is_supported(opcode::ReadvFixed::CODE)
            && probe.is_supported(opcode::WritevFixed::CODE);
        let clones = pins.map_or(Err(PlainReason::NoBackend), |pins| ClonedBuffers::attach(&uring, pins));
        Ok(Self {
            uring,
            in_flight: Slab::default(),
            completions: Vec::new(),
            clones,
            vectored,
            kick: Kick::default(),
            process: std::process::id(),
            file,
        })
    }

    /// Whether fixed buffers are used, or the reason why not.
    ///
    /// # Errors
    /// [`PlainReason`].
    pub fn fixed(&self) -> Result<(), PlainReason> {
        self.clones.as_ref().map(drop).map_err(|reason| *reason)
    }

    /// Whether several segments of one slot can be one transfer (Linux 6.15).
    #[must_use]
    pub const fn vectored(&self) -> bool {
        self.vectored
    }

    /// Slots that are cloned into the ring, and slots of the back end that are not.
    #[must_use]
    pub fn slots(&self) -> (u32, u64) {
        self.clones.as_ref().map_or((0, 0), |clones| (clones.table.used(), clones.table.missing()))
    }

    /// Free submission queue entries.
    #[must_use]
    pub fn sq_space(&mut self) -> usize {
        let queue = self.uring.submission();
        queue.capacity() - queue.len()
    }

    /// Transfers in flight, submitted or not.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Adds a transfer to or from guest memory; through a fixed buffer if the segments are in a slot that is cloned
    /// into the ring.
    ///
    /// # Errors
    /// Segments and token when there is no [`sq_space`](Self::sq_space), or the segments have no byte or 4 GiB and
    /// more.
    ///
    /// # Safety
    /// At its plain address each segment is mapped memory without any Rust reference into it, until the token has been
    /// returned. (Memory behind a fixed buffer is kept by the kernel.)
    pub unsafe fn transfer(
        &mut self,
        transfer: Transfer,
        segments: IoSegments,
        token: T,
    ) -> Result<IoPath, (IoSegments, T)> {
        let Some(bytes) = u32::try_from(segments.bytes()).ok().filter(|bytes| *bytes > 0) else {
            return Err((segments, token));
        };
        if self.sq_space() == 0 {
            return Err((segments, token));
        }
        let slot = segments.slot().and_then(|slot| self.clones.as_ref().ok()?.table.slot(slot.slot));
        let slot = slot.filter(|_| segments.as_slice().len() == 1 || self.vectored);
        let io_path = if slot.is_some() { IoPath::Fixed } else { IoPath::Plain };
        let at = |segment: &IoSegment| if slot.is_some() { segment.ua.raw() } else { segment.plain.raw() };
        let mut list = Box::default();
        let entry = if let [segment] = segments.as_slice() {
            sqe_for_buffer(transfer, slot, at(segment), bytes)
        } else {
            list = segments
                .as_slice()
                .iter()
                .map(|segment| Buffer { ua: at(segment), bytes: segment.bytes })
                .collect::<Box<[_]>>();
            sqe_for_list(transfer, slot, &list)
        };
        let memory = IoMemory::Guest(segments);
        self.push(&entry, InFlight { token, memory, io_path: Some(io_path), _list: list });
        Ok(io_path)
    }

    /// Adds a transfer to or from a buffer, starting at its byte `from`. The completion returns the buffer.
    ///
    /// # Errors
    /// Buffer and token when there is no [`sq_space`](Self::sq_space), or the buffer has no byte at `from`.
    pub fn transfer_buffer(
        &mut self,
        transfer: Transfer,
        mut buffer: AlignedBuffer,
        from: usize,
        token: T,
    ) -> Result<(), (AlignedBuffer, T)> {
        let Some((at, bytes)) = buffer.as_mut_slice().get_mut(from..).and_then(|part| {
            let bytes = u32::try_from(part.len()).ok().filter(|bytes| *bytes > 0)?;
            Some((part.as_mut_ptr(), bytes))
        }) else {
            return Err((buffer, token));
        };
        if self.sq_space() == 0 {
            return Err((buffer, token));
        }
        let entry = sqe_for_buffer(transfer, None, at.expose_provenance() as u64, bytes);
        let memory = IoMemory::Buffer(buffer);
        self.push(&entry, InFlight { token, memory, io_path: Some(IoPath::Buffer), _list: Box::default() });
        Ok(())
    }

    /// Adds an `fdatasync`.
    ///
    /// # Errors
    /// The token when there is no [`sq_space`](Self::sq_space).
    pub fn sync_data(&mut self, token: T) -> Result<(), T> {
        self.push_without_memory(&opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(), token)
    }

    /// Adds a `fallocate` with `mode`.
    ///
    /// # Errors
    /// The token when there is no [`sq_space`](Self::sq_space).
    pub fn allocate(&mut self, mode: i32, offset: u64, bytes: u64, token: T) -> Result<(), T> {
        self.push_without_memory(
            &opcode::Fallocate::new(FILE, bytes).offset(offset).mode(mode).build(),
            token,
        )
    }

    fn push_without_memory(&mut self, entry: &Entry, token: T) -> Result<(), T> {
        if self.sq_space() == 0 {
            return Err(token);
        }
        self.push(entry, InFlight { token, memory: IoMemory::None, io_path: None, _list: Box::default() });
        Ok(())
    }

    /// Callers have checked `sq_space`.
    fn push(&mut self, entry: &Entry, in_flight: InFlight<T>) {
        let key = self.in_flight.insert(in_flight);
        let entry = entry.clone().user_data(key as u64);
        // SAFETY: what the entry points to is owned by `in_flight` (lists, buffers) or promised by the caller of
        // `transfer`; either stays until the completion is taken, or is leaked.
        let pushed = unsafe { self.uring.submission().push(&entry) };
        assert!(pushed.is_ok(), "there was room for the entry");
    }

    /// Makes the eventfd `event` wake [`enter`](Self::enter); see [`take_kick`](Self::take_kick).
    pub fn set_kick(&mut self, event: Arc<OwnedFd>) {
        self.kick.event = Some(event);
    }

    /// Whether the kick was signalled since the last call. Resets the eventfd.
    pub fn take_kick(&mut self) -> bool {
        let signalled = std::mem::take(&mut self.kick.signalled);
        if let (true, Some(event)) = (signalled, &self.kick.event) {
            // EAGAIN: another reader reset it; it was signalled all the same.
            let _ = sys::drain_eventfd(event.as_fd());
        }
        signalled
    }

    fn arm_kick(&mut self) {
        let Some(event) = self.kick.event.as_ref().filter(|_| !self.kick.armed) else { return };
        let fd = io_uring::types::Fd(event.as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build().user_data(KICK);
        // SAFETY: a poll entry points to no memory; the descriptor lives in `self.kick` and the kernel keeps its file.
        self.kick.armed = unsafe { self.uring.submission().push(&entry) }.is_ok();
    }

    /// Submits new entries and waits as `wait` says, for a completion or the kick. Makes no system call if there is
    /// nothing to submit or to wait for.
    ///
    /// # Errors
    /// The system's errno. EINTR, time-outs and a full completion queue are not errors.
    pub fn enter(&mut self, wait: IoWait) -> Result<(), Errno> {
        if !self.completions.is_empty() || !self.uring.completion().is_empty() {
            return self.submit(IoWait::No);
        }
        if wait != IoWait::No {
            if self.sq_space() == 0 {
                self.submit(IoWait::No)?;
            }
            self.arm_kick();
        }
        self.submit(wait)
    }

    fn submit(&mut self, wait: IoWait) -> Result<(), Errno> {
        let queue = self.uring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        let result = match wait {
            IoWait::No if idle => return Ok(()),
            IoWait::No => self.uring.submit(),
            IoWait::One => self.uring.submit_and_wait(1),
            IoWait::For(time) => {
                let time = Timespec::from(time);
                self.uring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&time))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => Ok(()),
                _ => Err(sys::errno_of(&error)),
            },
        }
    }

    /// The next completed transfer; `None` when there is none yet.
    pub fn next_completed(&mut self) -> Option<Completed<T>> {
        loop {
            if self.completions.is_empty() {
                self.completions.extend(self.uring.completion());
                self.completions.reverse();
            }
            let completion = self.completions.pop()?;
            if completion.user_data() == KICK {
                self.kick.armed = false;
                self.kick.signalled = true;
                continue;
            }
            let Some(in_flight) = self.in_flight.remove(completion.user_data() as usize) else { continue };
            let result = completion.result();
            return Some(Completed {
                token: in_flight.token,
                result: u32::try_from(result).map_err(|_| Errno::from_raw(result.saturating_neg())),
                io_path: in_flight.io_path,
                memory: in_flight.memory,
            });
        }
    }
}

impl<T> Drop for IoRing<T> {
    fn drop(&mut self) {
        // Dropping a token runs code of the caller, which may panic. So none is dropped before the kernel has finished
        // with all memory, and a panic before that leaks them all.
        let in_flight = ManuallyDrop::new(std::mem::take(&mut self.in_flight));
        // A child of `fork` shares neither the ring's memory nor its buffer table.
        if self.process != std::process::id() {
            return;
        }
        let ended = self.end(in_flight.len());
        // The kernel destroys a ring some time after its last descriptor is closed; release the file and the clones
        // now.
        let _ = self.uring.submitter().unregister_files();
        if let Ok(clones) = &self.clones {
            clones.pins.detach(&clones.table);
        }
        if ended.is_ok() {
            drop(ManuallyDrop::into_inner(in_flight));
        }
    }
}

impl<T> IoRing<T> {
    /// Returns when all transfers in flight have completed. On a pipe or another file that may never become ready they
    /// are cancelled (Linux 6.0); transfers of disks and regular files complete by themselves.
    fn end(&mut self, in_flight: usize) -> Result<(), Errno> {
        self.kick.event = None;
        let kind = self.file.metadata().map(|file| file.file_type());
        let cancels = kind.is_ok_and(|kind| !kind.is_file() && !kind.is_block_device());
        let ended = |completion: &cqueue::Entry| completion.user_data() != KICK;
        let mut ends = 0;
        while ends < in_flight {
            ends += self.completions.drain(..).filter(&ended).count();
            ends += self.uring.completion().filter(&ended).count();
            if ends < in_flight {
                // Entries that are not submitted cannot be cancelled yet.
                self.submit(IoWait::No)?;
                if cancels {
                    // Does not wait. On a kernel that cannot cancel, the loop waits until the file becomes ready.
                    let now = Timespec::new();
                    let _ = self.uring.submitter().register_sync_cancel(Some(now), CancelBuilder::any());
                }
                self.enter(IoWait::One)?;
            }
        }
        Ok(())
    }
}

impl<T> std::fmt::Debug for IoRing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoRing")
            .field("in_flight", &self.in_flight.len())
            .field("fixed", &self.fixed())
            .finish_non_exhaustive()
    }
}

impl ClonedBuffers {
    fn attach(uring: &io_uring::IoUring, pins: &Arc<IoUring>) -> Result<Self, PlainReason> {
        let mode = clone_mode_of(pins)?;
        let fd = sys::duplicate(uring)
            .map_err(|errno| PlainReason::NoCopies { during: "fcntl(F_DUPFD)", errno })?;
        let table = Arc::new(CloneTable::new(fd, mode));
        pins.attach(&table);
        Ok(Self { pins: Arc::clone(pins), table })
    }
}

fn clone_mode_of(pins: &IoUring) -> Result<CloneMode, PlainReason> {
    if pins.address_kind() != AddressKind::SlotOffset {
        return Err(PlainReason::NoSlotAddresses);
    }
    pins.clone_mode().map_err(|(during, errno)| PlainReason::NoCopies { during, errno })
}

impl IoUring {
    /// Whether I/O rings can use this back end's memory as fixed buffers, or the reason why not.
    ///
    /// # Errors
    /// [`PlainReason`].
    pub fn fixed_io_support(&self) -> Result<(), PlainReason> {
        clone_mode_of(self).map(drop)
    }
}
