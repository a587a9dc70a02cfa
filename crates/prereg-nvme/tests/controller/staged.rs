//! A disk whose requests wait for the test, and whose size the test changes.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use prereg_nvme::disk::{
    Changed, Disk, DiskCounters, DiskError, DiskFault, DiskQueue, Done, MemoryDisk, Request, Wait,
};

use crate::fixture::DISK;

/// A disk in memory that the test controls. All orderings are SeqCst: nothing is measured.
pub(crate) struct StagedDisk {
    inner: MemoryDisk,
    bytes: AtomicU64,
    stage: Arc<Stage>,
    /// Called once, at the next call of `discard_zeroes`.
    interruption: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

/// Whether requests wait.
#[derive(Default)]
pub(crate) struct Stage {
    closed: AtomicBool,
    waiting: AtomicUsize,
    panics: AtomicBool,
    fault: Mutex<Option<DiskFault>>,
}

impl Stage {
    /// Requests wait from now on.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Requests continue at the next poll of their queue.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }

    /// The next queue that is made or polled panics.
    pub(crate) fn panic(&self) {
        self.panics.store(true, Ordering::SeqCst);
    }

    /// The next request fails.
    pub(crate) fn fail(&self, fault: DiskFault) {
        *self.fault.lock().expect("no test panics with it") = Some(fault);
    }

    fn act(&self) {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "the test asked for this panic");
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }
}

impl StagedDisk {
    pub(crate) fn new() -> Self {
        let inner = MemoryDisk::new(DISK, 9).expect("memory for a small disk");
        Self { inner, bytes: AtomicU64::new(DISK), stage: Arc::default(), interruption: Mutex::default() }
    }

    pub(crate) fn stage(&self) -> Arc<Stage> {
        Arc::clone(&self.stage)
    }

    /// Sets the size.
    pub(crate) fn resize(&self, bytes: u64) {
        self.bytes.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn interrupt(&self, with: impl FnOnce() + Send + 'static) {
        *self.interruption.lock().expect("no test panics with it") = Some(Box::new(with));
    }
}

impl Disk for StagedDisk {
    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::SeqCst)
    }

    fn block_shift(&self) -> u8 {
        self.inner.block_shift()
    }

    fn read_only(&self) -> bool {
        false
    }

    fn discard_zeroes(&self) -> bool {
        let interruption = self.interruption.lock().expect("no test panics with it").take();
        if let Some(interrupt) = interruption {
            interrupt();
        }
        self.inner.discard_zeroes()
    }

    fn queue(&self, kick: Arc<OwnedFd>) -> Result<Box<dyn DiskQueue>, DiskError> {
        self.stage.act();
        let inner = self.inner.queue(kick)?;
        Ok(Box::new(StagedQueue { inner, stage: self.stage(), waiting: Vec::new() }))
    }

    fn refresh(&self) -> Result<Changed, DiskError> {
        Ok(Changed::No)
    }

    fn counters(&self) -> DiskCounters {
        self.inner.counters()
    }
}

struct StagedQueue {
    inner: Box<dyn DiskQueue>,
    stage: Arc<Stage>,
    waiting: Vec<Request>,
}

impl DiskQueue for StagedQueue {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.waiting.push(request);
        Ok(())
    }

    fn poll(&mut self, wait: Wait, done: &mut Vec<Done>) -> Result<(), DiskError> {
        self.stage.act();
        if !self.stage.closed.load(Ordering::SeqCst) {
            for request in self.waiting.drain(..) {
                if let Some(fault) = self.stage.fault.lock().expect("no test panics with it").take() {
                    done.push(Done { tag: request.tag, result: Err(fault) });
                    continue;
                }
                self.inner.submit(request).expect("a queue in memory has room for a test");
            }
        }
        self.stage.waiting.store(self.waiting.len(), Ordering::SeqCst);
        self.inner.poll(wait, done)
    }

    fn in_flight(&self) -> usize {
        self.waiting.len() + self.inner.in_flight()
    }
}
