//! Signals an eventfd that another process shares, without blocking.
//!
//! A write to an eventfd whose count is full blocks, unless `O_NONBLOCK` is set. That flag belongs to the open file, so the
//! other process can clear it between any check and the write, and eventfds do not support `RWF_NOWAIT` for writes. The
//! kernel's own signal does not block: it adds one, and leaves a full count as it is. Linux AIO offers it: with
//! `IOCB_FLAG_RESFD` the kernel signals an eventfd when an operation ends, and a poll of a ready descriptor ends at once.
//!
//! Without AIO (no `CONFIG_AIO`, a system call filter, no context left), `O_NONBLOCK` is set before each write. A client that
//! clears it in between, with a full count, then blocks the signalling thread until it reads or disconnects.
#![expect(unsafe_code, reason = "system calls of Linux AIO; every pointer handed over is made from a local")]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use super::{add_one, eventfd};

/// `struct iocb` of `linux/aio_abi.h`, for little-endian processors and `aio_rw_flags` of 0.
#[repr(C)]
#[derive(Default)]
struct Operation {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    signalled: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    second: i64,
}

const POLL: u16 = 5;
const SIGNALS: u32 = 1;
/// Completed operations that may wait to be collected.
const MAX_EVENTS: libc::c_long = 256;
/// Operations collected at a time.
const COLLECT_BATCH: usize = 64;
/// Attempts: another thread may use the room first.
const MAX_TRIES: u32 = 16;

/// An AIO context, and a descriptor that is always ready.
#[derive(Debug)]
struct Signals {
    context: libc::c_ulong,
    ready: OwnedFd,
}

impl Signals {
    fn new() -> Option<Self> {
        let ready = eventfd().ok()?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: `context` lives through the call, which writes it.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, MAX_EVENTS, &raw mut context) };
        (made == 0).then_some(Self { context, ready })
    }

    fn submit(&self, eventfd: BorrowedFd<'_>) -> bool {
        let mut poll = Operation {
            opcode: POLL,
            descriptor: self.ready.as_raw_fd() as u32,
            buffer: libc::POLLOUT as u64,
            flags: SIGNALS,
            signalled: eventfd.as_raw_fd() as u32,
            ..Operation::default()
        };
        let mut list = [&raw mut poll];
        // SAFETY: the list names `poll`; both live through the call, which ends the operation.
        let submitted =
            unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1 as libc::c_long, list.as_mut_ptr()) };
        submitted == 1
    }

    /// Collects completed operations.
    fn collect(&self) {
        let mut events = [Event::default(); COLLECT_BATCH];
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `events` has room for as many as are asked for, and lives through the call, as the time does.
        let _ = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0 as libc::c_long,
                COLLECT_BATCH as libc::c_long,
                events.as_mut_ptr(),
                &raw const at_once,
            )
        };
    }

    fn signal(&self, eventfd: BorrowedFd<'_>) -> bool {
        (0..MAX_TRIES).any(|_| {
            let is_done = self.submit(eventfd);
            if !is_done {
                self.collect();
            }
            is_done
        })
    }
}

/// Adds one to the count of `eventfd`; a full count stays as it is.
pub(crate) fn signal(eventfd: BorrowedFd<'_>) {
    /// One context for all clients: the host limits their number.
    static SIGNALS: OnceLock<Option<Signals>> = OnceLock::new();
    let signals = SIGNALS.get_or_init(Signals::new);
    if !signals.as_ref().is_some_and(|signals| signals.signal(eventfd)) {
        write(eventfd);
    }
}

/// Fallback for hosts without AIO, see above.
fn write(eventfd: BorrowedFd<'_>) {
    // SAFETY: takes no pointer.
    if unsafe { libc::fcntl(eventfd.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) } == 0 {
        // Fails only if the count is full.
        let _ = add_one(eventfd);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::{blocks, set_blocking, take_count};
    use super::*;

    #[test]
    fn each_signal_adds_one_whatever_must_be_collected() {
        let eventfd = eventfd().unwrap();
        for _ in 0..3 * MAX_EVENTS {
            signal(eventfd.as_fd());
        }
        assert_eq!(take_count(eventfd.as_fd()), Ok(3 * MAX_EVENTS as u64));
    }

    #[test]
    fn both_ways_leave_a_full_count_and_do_not_wait() {
        let Some(signals) = Signals::new() else {
            eprintln!("skipped: no AIO context");
            return;
        };
        for by_aio in [true, false] {
            let eventfd = eventfd().unwrap();
            super::super::add(eventfd.as_fd(), u64::MAX - 1).unwrap();
            set_blocking(eventfd.as_fd()).unwrap();
            if by_aio {
                assert!(signals.signal(eventfd.as_fd()));
                assert!(blocks(eventfd.as_fd()), "the client's flag is left alone");
            } else {
                write(eventfd.as_fd());
            }
            assert!(take_count(eventfd.as_fd()).unwrap() >= u64::MAX - 1);
        }
    }
}
