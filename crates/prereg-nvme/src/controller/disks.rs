//! The disk queues of an I/O thread, one for each disk.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use prereg::Errno;
use prereg_vfio_user::server::{DmaGuard, Reporter};

use super::event::NvmeEvent;
use crate::disk::{Disk, DiskError, DiskFault, DiskQueue, Done, Request, Wait};
use crate::engine::storage::{Broken, Storage};

/// How long to wait for one of several busy disks before polling the next.
const TURN: Duration = Duration::from_micros(100);
/// How long to sleep without a disk queue.
const PAUSE: Duration = Duration::from_millis(5);

/// A queue for each disk; none after one of them failed.
pub(super) struct DiskQueues {
    disks: Vec<Arc<dyn Disk>>,
    kicks: Vec<Arc<OwnedFd>>,
    queues: Vec<Box<dyn DiskQueue>>,
    ready: Vec<Done>,
    turn: usize,
    broken: Option<DiskError>,
    events: Reporter<NvmeEvent>,
}

impl DiskQueues {
    /// A queue for each of `disks`, each with its kick eventfd.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(super) fn new(
        disks: &[Arc<dyn Disk>],
        kicks: &[Arc<OwnedFd>],
        events: Reporter<NvmeEvent>,
    ) -> Result<Self, DiskError> {
        let mut queues = Self {
            disks: disks.to_vec(),
            kicks: kicks.to_vec(),
            queues: Vec::new(),
            ready: Vec::new(),
            turn: 0,
            broken: None,
            events,
        };
        queues.open()?;
        Ok(queues)
    }

    /// Makes the queues if they do not exist.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(super) fn open(&mut self) -> Result<(), DiskError> {
        if self.queues.is_empty() {
            let queues: Result<Vec<_>, _> =
                self.disks.iter().zip(&self.kicks).map(|(disk, kick)| disk.queue(Arc::clone(kick))).collect();
            self.queues = queues.inspect_err(|error| report(&self.events, error))?;
            self.broken = None;
        }
        Ok(())
    }

    /// Drops the queues, which waits for requests that the kernel has started. Later requests fail.
    pub(super) fn drop_queues(&mut self) {
        self.queues.clear();
        self.ready.clear();
        if let Some(error) = self.broken.take() {
            report(&self.events, &error);
        }
    }

    /// The index of the eventfd that wakes the next [`wait`](Self::wait).
    pub(super) fn next_kick(&mut self) -> usize {
        let busy: Vec<usize> = (0..self.queues.len()).filter(|at| self.queues[*at].in_flight() > 0).collect();
        self.turn = self.turn.wrapping_add(1);
        if busy.is_empty() { 0 } else { busy[self.turn % busy.len()] }
    }

    /// Waits for a completion or for eventfd `at`, at most for `limit`.
    pub(super) fn wait(&mut self, at: usize, limit: Option<Duration>) {
        let busy = self.queues.iter().filter(|queue| queue.in_flight() > 0).count();
        let limit = if busy > 1 { Some(limit.map_or(TURN, |limit| limit.min(TURN))) } else { limit };
        let wait = limit.map_or(Wait::Kick, Wait::For);
        match self.queues.get_mut(at) {
            Some(queue) => {
                if let Err(error) = queue.poll(wait, &mut self.ready) {
                    self.broken = Some(error);
                }
            }
            None => std::thread::sleep(limit.unwrap_or(PAUSE).min(PAUSE)),
        }
    }
}

fn report(events: &Reporter<NvmeEvent>, error: &DiskError) {
    events.report(&NvmeEvent::DiskQueueFailed { error: error.clone() });
}

impl Storage<DmaGuard> for DiskQueues {
    fn submit(&mut self, nsid: u32, request: Request) -> Result<(), Request> {
        match (nsid as usize).checked_sub(1).and_then(|at| self.queues.get_mut(at)) {
            Some(queue) => queue.submit(request),
            None => {
                self.ready.push(Done { tag: request.tag, result: Err(DiskFault::Io(Errno::EIO)) });
                Ok(())
            }
        }
    }

    fn collect(&mut self, done: &mut Vec<Done>) -> Result<(), Broken> {
        done.append(&mut self.ready);
        for queue in self.queues.iter_mut().filter(|queue| queue.in_flight() > 0) {
            if let Err(error) = queue.poll(Wait::No, done) {
                self.broken = Some(error);
            }
        }
        if self.broken.is_some() { Err(Broken) } else { Ok(()) }
    }
}

impl std::fmt::Debug for DiskQueues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskQueues").field("queues", &self.queues.len()).finish_non_exhaustive()
    }
}
