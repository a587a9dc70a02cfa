//! Threads that pin promised memory after the reply to its DMA_MAP.
//!
//! A job is one mapping. Clients take turns, and so do the jobs of a client, one piece at a time, so neither a large guest nor
//! one with many mappings delays another. A job has a weak reference to its mapping: an unmap, a reset of the map or a
//! disconnect ends it at the next piece. A piece of which less than half has pages is left to the device's first access,
//! because pinning allocates the rest. A piece that a device accesses first is pinned by the device's thread and found
//! registered here.
//!
//! Nothing depends on these threads: if a thread cannot be started or a piece cannot be pinned, the first access does it. A job
//! ends at the first piece that fails for lack of memory or slots (ENOMEM, ENOSPC) or whose pin was cancelled (EINTR), because
//! the next one would fail too.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Threads at most; the kernel zeroes pages on all of them.
const THREADS: usize = 4;
/// Jobs of a client above which jobs of unmapped mappings are removed.
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
    /// A job was added, or the queue was stopped.
    work: Condvar,
    /// No job is left.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Clients with jobs, in the order of their turns.
    clients: VecDeque<ClientJobs>,
    /// Jobs that a thread is working on.
    busy: usize,
    stopped: bool,
}

/// The jobs of one client, in the order of their turns; never empty.
#[derive(Debug)]
struct ClientJobs {
    client: u64,
    jobs: VecDeque<Box<dyn Job>>,
    prune_at: usize,
}

impl State {
    /// Queues a job behind the others of its client; a client without jobs behind the other clients.
    fn add(&mut self, job: Box<dyn Job>) {
        let client = job.client();
        let Some(of_client) = self.clients.iter_mut().find(|jobs| jobs.client == client) else {
            self.clients.push_back(ClientJobs { client, jobs: VecDeque::from([job]), prune_at: PRUNE });
            return;
        };
        // Bounds the jobs of mappings that are unmapped before they are pinned.
        if of_client.jobs.len() >= of_client.prune_at {
            of_client.jobs.retain(|job| job.is_wanted());
            of_client.prune_at = PRUNE.max(2 * of_client.jobs.len());
        }
        of_client.jobs.push_back(job);
    }

    /// Takes the next job of the next client.
    fn take(&mut self) -> Option<Box<dyn Job>> {
        let mut of_client = self.clients.pop_front()?;
        let job = of_client.jobs.pop_front();
        if !of_client.jobs.is_empty() {
            self.clients.push_back(of_client);
        }
        job
    }

    fn jobs(&self) -> usize {
        self.clients.iter().map(|of_client| of_client.jobs.len()).sum()
    }
}

/// The remaining work for one mapping.
pub(super) trait Job: Send + fmt::Debug {
    /// The number of the mapping's client.
    fn client(&self) -> u64;

    /// Whether the mapping exists.
    fn is_wanted(&self) -> bool;

    /// Pins the next piece; returns the remaining work.
    fn pin_next(self: Box<Self>) -> Option<Box<dyn Job>>;
}

impl Background {
    pub(super) fn new() -> Self {
        Self { queue: Arc::default(), threads: Mutex::new(Vec::new()) }
    }

    /// Queues a job.
    pub(super) fn push(&self, job: Box<dyn Job>) {
        if !self.start() {
            return;
        }
        let mut state = self.queue.state();
        if state.stopped {
            return;
        }
        state.add(job);
        drop(state);
        self.queue.work.notify_one();
    }

    /// Waits until no job is left.
    pub(super) fn wait(&self) {
        let mut state = self.queue.state();
        while !state.stopped && (state.busy > 0 || !state.clients.is_empty()) {
            state = self.queue.idle.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Jobs that are not done.
    pub(super) fn jobs(&self) -> u64 {
        let state = self.queue.state();
        (state.jobs() + state.busy) as u64
    }

    /// Starts no further piece.
    pub(super) fn stop(&self) {
        let mut state = self.queue.state();
        state.stopped = true;
        let clients = std::mem::take(&mut state.clients);
        drop(state);
        drop(clients);
        self.queue.work.notify_all();
        self.queue.idle.notify_all();
    }

    /// Starts the threads at the first job. `false` if there are none.
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
            let Some(job) = state.take() else {
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
            match rest {
                Some(rest) if !state.stopped => state.add(rest),
                _ => {}
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.stop();
        let threads = std::mem::take(self.threads.get_mut().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // The last reference to the store may have been dropped by one of these threads.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mapping of `left` pieces.
    #[derive(Debug)]
    struct Pieces {
        client: u64,
        left: u32,
    }

    impl Job for Pieces {
        fn client(&self) -> u64 {
            self.client
        }
        fn is_wanted(&self) -> bool {
            self.left > 0
        }
        fn pin_next(mut self: Box<Self>) -> Option<Box<dyn Job>> {
            self.left -= 1;
            (self.left > 0).then_some(self as Box<dyn Job>)
        }
    }

    #[test]
    fn clients_take_turns_however_many_mappings_each_has() {
        let mut state = State::default();
        let mut add = |client, left| state.add(Box::new(Pieces { client, left }));
        for _ in 0..50 {
            add(1, 2);
        }
        add(2, 4);
        add(3, 1);
        assert_eq!(state.jobs(), 52);
        let mut turns = Vec::new();
        while let Some(job) = state.take() {
            turns.push(job.client());
            if let Some(rest) = job.pin_next() {
                state.add(rest);
            }
        }
        assert_eq!(turns[..9], [1, 2, 3, 1, 2, 1, 2, 1, 2]);
        assert_eq!((turns.len(), state.jobs()), (100 + 4 + 1, 0));
        assert!(turns[9..].iter().all(|&client| client == 1));
    }

    #[test]
    fn jobs_of_gone_mappings_are_dropped_before_they_pile_up() {
        let mut state = State::default();
        state.add(Box::new(Pieces { client: 2, left: 1 }));
        for _ in 0..100_000 {
            state.add(Box::new(Pieces { client: 1, left: 0 }));
        }
        assert!(state.jobs() <= 2 * PRUNE, "{}", state.jobs());
    }
}
