//! Copies between bounce buffers and guest memory, and a thread for copies that can take long.
//!
//! Memory that only the client can reach is copied by messages to the client, which may answer late. The I/O thread must not
//! wait for that, so one thread per queue does such copies, started when the first is needed. Each job owns its memory: when
//! the queue is dropped, the thread ends after the current job.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};

use prereg::Errno;
use prereg_linux::AlignedBuffer;

use crate::disk::system;
use crate::disk::{DiskFault, Segment};

/// A copy between a buffer and guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CopyKind {
    /// Fill the buffer.
    FromGuest,
    /// Fill guest memory.
    ToGuest,
    /// Compare the two.
    Compare,
}

/// One copy. `key` is that of the request.
pub(super) struct CopyJob {
    pub(super) key: usize,
    pub(super) copy: CopyKind,
    pub(super) data: Arc<Vec<Segment>>,
    pub(super) buffer: AlignedBuffer,
}

/// A completed job.
pub(super) struct CopyDone {
    pub(super) job: CopyJob,
    pub(super) result: Result<(), DiskFault>,
}

/// A buffer of `bytes` zeros.
pub(super) fn buffer_of(bytes: u64) -> Result<AlignedBuffer, DiskFault> {
    usize::try_from(bytes).map_err(|_| Errno::ENOMEM).and_then(AlignedBuffer::zeroed).map_err(DiskFault::Io)
}

/// Copies on this thread.
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

/// The thread. After a drop it ends with its current job.
#[derive(Debug)]
pub(super) struct CopyThread {
    jobs: mpsc::Sender<CopyJob>,
    done: mpsc::Receiver<CopyDone>,
}

impl CopyThread {
    /// Starts the thread; it writes `kick` after each job.
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
                // EAGAIN: the counter is at its limit, which wakes too.
                let _ = (&kick).write(&1u64.to_ne_bytes());
            }
        })?;
        Ok(Self { jobs, done })
    }

    /// Sends a job; returns it if the thread has ended.
    pub(super) fn send(&self, job: CopyJob) -> Result<(), CopyJob> {
        self.jobs.send(job).map_err(|refused| refused.0)
    }

    /// The next completed job.
    pub(super) fn try_recv(&self) -> Option<CopyDone> {
        self.done.try_recv().ok()
    }
}

/// The fault when the thread cannot be started.
pub(super) fn spawn_fault(error: &std::io::Error) -> DiskFault {
    DiskFault::Io(system::errno_of(error))
}
