//! Copies between buffers and guest memory, and a thread that does it where it can take long.
//!
//! Memory that only the client can reach is copied by asking the client, who answers when he likes. The I/O thread must
//! not wait for that, so such copies are done by one thread a queue, made when the first is needed. Each job owns what it
//! copies from and to: when the queue goes away the thread ends by itself after the job at hand.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use prereg::Errno;
use prereg_linux::AlignedBuffer;

use crate::disk::system;
use crate::disk::{DiskFault, Segment};

/// What to do with a buffer and guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CopyKind {
    /// Fills the buffer.
    FromGuest,
    /// Fills the memory.
    ToGuest,
    /// Only looks whether they are equal.
    Compare,
}

/// One copy. `key` is the queue's name for it.
pub(super) struct CopyJob {
    pub(super) key: usize,
    pub(super) copy: CopyKind,
    pub(super) data: Arc<Vec<Segment>>,
    pub(super) buffer: AlignedBuffer,
}

/// A job that is done.
pub(super) struct CopyDone {
    pub(super) job: CopyJob,
    pub(super) result: Result<(), DiskFault>,
}

/// A buffer of `bytes` zeros.
pub(super) fn buffer_of(bytes: u64) -> Result<AlignedBuffer, DiskFault> {
    usize::try_from(bytes).map_err(|_| Errno::ENOMEM).and_then(AlignedBuffer::zeroed).map_err(DiskFault::Io)
}

/// Does a copy here and now.
pub(super) fn copy_now(
    copy: CopyKind,
    data: &[Segment],
    buffer: &mut AlignedBuffer,
) -> Result<(), DiskFault> {
    let mut rest = buffer.as_mut_slice();
    for segment in data {
        let bytes = usize::try_from(segment.bytes).map_err(|_| DiskFault::Range)?;
        let (part, behind) = rest.split_at_mut_checked(bytes).ok_or(DiskFault::Range)?;
        match copy {
            CopyKind::FromGuest => segment.hold.read(segment.offset, part).map_err(DiskFault::Data)?,
            CopyKind::ToGuest => segment.hold.write(segment.offset, part).map_err(DiskFault::Data)?,
            CopyKind::Compare => compare(segment, part)?,
        }
        rest = behind;
    }
    Ok(())
}

fn compare(segment: &Segment, with: &[u8]) -> Result<(), DiskFault> {
    const CHUNK: usize = 4096;
    let mut guest = [0; CHUNK];
    for (index, part) in with.chunks(CHUNK).enumerate() {
        let guest = &mut guest[..part.len()];
        let offset = segment.offset + (index * CHUNK) as u64;
        segment.hold.read(offset, guest).map_err(DiskFault::Data)?;
        if guest != part {
            return Err(DiskFault::Mismatch);
        }
    }
    Ok(())
}

/// The thread. Dropping it closes the door; what it is doing it finishes.
#[derive(Debug)]
pub(super) struct CopyThread {
    jobs: mpsc::Sender<CopyJob>,
    done: mpsc::Receiver<CopyDone>,
}

impl CopyThread {
    /// Starts the thread; it rings `kick` after each job.
    pub(super) fn start(kick: &OwnedFd) -> std::io::Result<Self> {
        let kick = File::from(kick.try_clone()?);
        let (jobs, inbox) = mpsc::channel::<CopyJob>();
        let (outbox, done) = mpsc::channel();
        std::thread::Builder::new().name("disk-copy".to_owned()).spawn(move || {
            for mut job in inbox {
                let result = copy_now(job.copy, &job.data, &mut job.buffer);
                if outbox.send(CopyDone { job, result }).is_err() {
                    return;
                }
                // EAGAIN: the count is full, so it rings already.
                let _ = (&kick).write(&1u64.to_ne_bytes());
            }
        })?;
        Ok(Self { jobs, done })
    }

    /// Hands a job over; gives it back if the thread is memory_fault.
    pub(super) fn send(&self, job: CopyJob) -> Result<(), CopyJob> {
        self.jobs.send(job).map_err(|refused| refused.0)
    }

    /// The next job that is done.
    pub(super) fn try_recv(&self) -> Option<CopyDone> {
        self.done.try_recv().ok()
    }
}

/// What is told when the thread cannot be had.
pub(super) fn spawn_fault(error: &std::io::Error) -> DiskFault {
    DiskFault::Io(system::errno_of(error))
}
