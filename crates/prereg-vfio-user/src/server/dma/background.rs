//! Threads that pin promised memory after its DMA_MAP was answered.
//!
//! A job is one mapping. The threads take turns: one piece of a job, then the next job, so a large guest does not keep a small
//! one waiting. A job holds its mapping weakly: an unmap, a reset of the map or a disconnect ends it at the next piece.
//! Only what has pages is pinned: a piece of which less than half has pages waits for a device to reach it, because pinning
//! fills it. A piece that a device reaches first is pinned by the device's own thread and is found registered here.
//!
//! Nothing depends on these threads: a thread that cannot be started, or a piece that cannot be pinned here, leaves the work
//! to the first access.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Threads at most: the kernel zeroes pages on all of them.
const THREADS: usize = 4;
/// Queue entries at which those of gone mappings are looked for first.
const PRUNE: usize = 1024;

/// The threads and their queue.
#[derive(Debug)]
pub(super) struct Background {
    queue: Arc<Queue>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    /// A job was added, or it is over.
    work: Condvar,
    /// No job is left.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: VecDeque<Box<dyn Job>>,
    /// Jobs that a thread has in hand.
    busy: usize,
    prune_at: usize,
    stopped: bool,
}

/// What is left to do for one mapping.
pub(super) trait Job: Send + fmt::Debug {
    /// Whether the mapping is still there.
    fn is_wanted(&self) -> bool;

    /// Pins the next piece. Answers what is left to do.
    fn pin_next(self: Box<Self>) -> Option<Box<dyn Job>>;
}

impl Background {
    pub(super) fn new() -> Self {
        Self { queue: Arc::default(), threads: Mutex::new(Vec::new()) }
    }

    /// Takes a mapping on.
    pub(super) fn push(&self, job: Box<dyn Job>) {
        if !self.start() {
            return;
        }
        let mut state = self.queue.state();
        if state.stopped {
            return;
        }
        // Mappings that come and go faster than they are pinned do not pile up.
        if state.jobs.len() >= state.prune_at.max(PRUNE) {
            state.jobs.retain(|job| job.is_wanted());
            state.prune_at = 2 * state.jobs.len();
        }
        state.jobs.push_back(job);
        drop(state);
        self.queue.work.notify_one();
    }

    /// Waits until no mapping has anything left to be pinned in the background.
    pub(super) fn wait(&self) {
        let mut state = self.queue.state();
        while !state.stopped && (state.busy > 0 || !state.jobs.is_empty()) {
            state = self.queue.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Mappings that are not done.
    pub(super) fn jobs(&self) -> u64 {
        let state = self.queue.state();
        (state.jobs.len() + state.busy) as u64
    }

    /// Starts no piece any more.
    pub(super) fn stop(&self) {
        let mut state = self.queue.state();
        state.stopped = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        drop(jobs);
        self.queue.work.notify_all();
        self.queue.idle.notify_all();
    }

    /// Starts the threads with the first job. `false` when there are none.
    fn start(&self) -> bool {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if !threads.is_empty() {
            return true;
        }
        let count = thread::available_parallelism().map_or(1, |count| count.get().min(THREADS));
        for _ in 0..count {
            let queue = Arc::clone(&self.queue);
            let started = thread::Builder::new().name("prereg-pin".into()).spawn(move || queue.run());
            threads.extend(started.ok());
        }
        !threads.is_empty()
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.state();
        loop {
            if state.stopped {
                return;
            }
            let Some(job) = state.jobs.pop_front() else {
                if state.busy == 0 {
                    self.idle.notify_all();
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.busy += 1;
            drop(state);
            let rest = job.pin_next();
            state = self.state();
            state.busy -= 1;
            if !state.stopped {
                state.jobs.extend(rest);
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
        let threads = std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // The last reference to the store may have been one of a thread's own.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
