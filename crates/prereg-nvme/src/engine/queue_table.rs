//! The doorbells, and what of a queue everybody may know: its size, how far it was filled, whom it interrupts.
//!
//! Whoever takes a guest's write stores the value here and forgets it; the poll_group that serves the queue finds it, and judges it
//! there, because only the poll_group knows how far it is. What can be told without that (no such queue, out of range) is told at
//! once.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use super::doorbell::distance;

/// Where doorbell values are: ours, or memory that the guest writes by itself. Doorbell `2 * queue` is the tail of a submission
/// queue, the next one the head of a completion queue.
pub trait Doorbells: Send + Sync {
    /// The value; whatever the guest wrote before ringing is seen by later reads.
    fn load(&self, at: usize) -> u32;

    /// Puts a value there.
    fn store(&self, at: usize, value: u32);
}

/// Doorbells that arrive one by one, as writes that somebody took.
#[derive(Debug)]
pub struct TrappedDoorbells {
    values: Box<[AtomicU32]>,
}

impl TrappedDoorbells {
    /// For `queues` pairs, the admin queue counted.
    #[must_use]
    pub fn new(queues: u16) -> Self {
        Self { values: (0..usize::from(queues) * 2).map(|_| AtomicU32::new(0)).collect() }
    }
}

impl Doorbells for TrappedDoorbells {
    fn load(&self, at: usize) -> u32 {
        // Acquire, with `store`: a doorbell's writer put commands into memory before it.
        self.values.get(at).map_or(0, |value| value.load(Ordering::Acquire))
    }

    fn store(&self, at: usize, value: u32) {
        if let Some(place) = self.values.get(at) {
            // Release: see `load`.
            place.store(value, Ordering::Release);
        }
    }
}

/// Why a doorbell write was ignored (figure 147).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadDoorbell {
    /// The register belongs to no queue, or is no register.
    #[error("a doorbell of no queue was rung")]
    Register,
    /// The value cannot be right for the queue.
    #[error("a doorbell was rung with a value that its queue cannot have")]
    Value,
}

/// All queues of a controller from outside.
pub struct QueueTable {
    doorbells: Box<dyn Doorbells>,
    submission: Box<[QueueState]>,
    completion: Box<[QueueState]>,
}

#[derive(Debug, Default)]
struct QueueState {
    /// 0: no such queue.
    entries: AtomicU32,
    /// Completion queues: where the next entry will be put.
    posted: AtomicU32,
    /// Completion queues: the head that the guest wrote to its memory, [`BY_REGISTER`] while its doorbell's register counts.
    shadow_head: AtomicU32,
    /// Completion queues: the vector in the lower half, [`INTERRUPTS`] if it interrupts at all.
    vector: AtomicU32,
    /// The poll_group that serves it.
    poll_group: AtomicU32,
    /// Completion queues: the poll_group waits for the head.
    awaited: AtomicBool,
}

impl QueueState {
    /// The register of a completion queue's head has `value`: it counts if it is ahead of what the guest wrote to its memory. A
    /// register write that arrives late is behind.
    fn register_written(&self, value: u32, entries: u32) {
        // Relaxed, as in `set_shadow_head`.
        let read = self.shadow_head.load(Ordering::Relaxed);
        if read != BY_REGISTER && (1..=entries / 2).contains(&distance(read, value, entries)) {
            let _ =
                self.shadow_head.compare_exchange(read, BY_REGISTER, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

const INTERRUPTS: u32 = 1 << 16;
/// No head of a queue.
const BY_REGISTER: u32 = u32::MAX;

impl QueueTable {
    /// For `queues` pairs, the admin queue counted, none of which exists yet.
    #[must_use]
    pub fn new(queues: u16, doorbells: Box<dyn Doorbells>) -> Self {
        let states = || (0..queues).map(|_| QueueState::default()).collect();
        Self { doorbells, submission: states(), completion: states() }
    }

    /// How many pairs there can be.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.submission.len() as u16
    }

    /// A submission queue begins.
    pub fn open_submission(&self, id: u16, entries: u32, poll_group: u32) {
        self.doorbells.store(tail_of(id), 0);
        if let Some(queue) = self.submission.get(usize::from(id)) {
            // Relaxed but for the last: `entries` publishes the others to `ring`.
            queue.poll_group.store(poll_group, Ordering::Relaxed);
            queue.entries.store(entries, Ordering::Release);
        }
    }

    /// A completion queue begins.
    pub fn open_completion(&self, id: u16, entries: u32, vector: Option<u16>, poll_group: u32) {
        self.doorbells.store(head_of(id), 0);
        if let Some(queue) = self.completion.get(usize::from(id)) {
            // As in `open_submission`.
            queue.poll_group.store(poll_group, Ordering::Relaxed);
            queue.posted.store(0, Ordering::Relaxed);
            queue.shadow_head.store(BY_REGISTER, Ordering::Relaxed);
            queue.awaited.store(false, Ordering::Relaxed);
            queue.vector.store(vector.map_or(0, |vector| u32::from(vector) | INTERRUPTS), Ordering::Relaxed);
            queue.entries.store(entries, Ordering::Release);
        }
    }

    /// A submission queue is no more.
    pub fn close_submission(&self, id: u16) {
        if let Some(queue) = self.submission.get(usize::from(id)) {
            queue.entries.store(0, Ordering::Release);
        }
    }

    /// A completion queue is no more.
    pub fn close_completion(&self, id: u16) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            queue.entries.store(0, Ordering::Release);
        }
    }

    /// All queues are no more, and no doorbell has a value.
    pub fn close_all(&self) {
        for id in 0..self.queues() {
            self.close_submission(id);
            self.close_completion(id);
            self.doorbells.store(tail_of(id), 0);
            self.doorbells.store(head_of(id), 0);
        }
    }

    /// Doorbell `at` was rung: keeps the value, and gives the poll_group that should look, if one has to.
    ///
    /// # Errors
    /// [`BadDoorbell`]; nothing was kept.
    pub fn ring(&self, at: usize, value: u32) -> Result<Option<u32>, BadDoorbell> {
        let is_tail = at % 2 == 0;
        let list = if is_tail { &self.submission } else { &self.completion };
        let queue = list.get(at / 2).ok_or(BadDoorbell::Register)?;
        // Acquire: pairs with the stores that open the queue.
        match queue.entries.load(Ordering::Acquire) {
            0 => Err(BadDoorbell::Register),
            entries if value >= entries => Err(BadDoorbell::Value),
            entries => {
                self.doorbells.store(at, value);
                if !is_tail {
                    queue.register_written(value, entries);
                }
                // Between the value and the question who waits for it, as between the two of `await_head`: one of both sides
                // sees the other.
                fence(Ordering::SeqCst);
                let wakes = is_tail || queue.awaited.load(Ordering::Relaxed);
                Ok(wakes.then(|| queue.poll_group.load(Ordering::Relaxed)))
            }
        }
    }

    /// How many doorbells there are.
    #[must_use]
    pub fn doorbells(&self) -> usize {
        self.submission.len() * 2
    }

    /// Polls doorbells that a guest writes in memory: stores their values in `seen`, and calls `rung` with the poll_group of each whose
    /// value differs from the one there.
    pub fn poll_doorbells(&self, seen: &mut [u32], mut rung: impl FnMut(u32)) {
        for id in 0..self.queues() {
            let at = usize::from(id);
            let lists = [(tail_of(id), &self.submission), (head_of(id), &self.completion)];
            for ((doorbell, list), is_tail) in lists.into_iter().zip([true, false]) {
                let Some(queue) = list.get(at).filter(|queue| queue.entries.load(Ordering::Acquire) > 0)
                else {
                    continue;
                };
                let value = self.doorbells.load(doorbell);
                let Some(seen) = seen.get_mut(doorbell).filter(|seen| **seen != value) else { continue };
                *seen = value;
                if is_tail || queue.awaited.load(Ordering::Relaxed) {
                    rung(queue.poll_group.load(Ordering::Relaxed));
                }
            }
        }
    }

    /// Says whether the poll_group wants to be told of the head of completion queue `id`; look at it again afterwards.
    pub fn await_head(&self, id: u16, awaited: bool) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            if queue.awaited.load(Ordering::Relaxed) != awaited {
                queue.awaited.store(awaited, Ordering::Relaxed);
                // See `ring`.
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Whether there is a submission queue `id`.
    #[must_use]
    pub fn has_submission(&self, id: u16) -> bool {
        self.submission.get(usize::from(id)).is_some_and(|queue| queue.entries.load(Ordering::Acquire) > 0)
    }

    /// The tail that the guest last wrote for submission queue `id`.
    #[must_use]
    pub fn tail(&self, id: u16) -> u32 {
        self.doorbells.load(tail_of(id))
    }

    /// The head that the guest last wrote for completion queue `id`.
    #[must_use]
    pub fn head(&self, id: u16) -> u32 {
        self.doorbells.load(head_of(id))
    }

    /// The head of completion queue `id` as the guest wrote it to its memory; `None`: the register counts. The register
    /// itself is left alone: the guest may write it at the same time.
    pub fn set_shadow_head(&self, id: u16, head: Option<u32>) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            // Relaxed: a single number, which `has_unread` wakes at; the poll_group wakes again after it changed this.
            let head = head.unwrap_or(BY_REGISTER);
            if queue.shadow_head.load(Ordering::Relaxed) != head {
                queue.shadow_head.store(head, Ordering::Relaxed);
            }
            if head != BY_REGISTER {
                // The register may have been written since the guest's memory was looked at.
                queue.register_written(self.head(id), queue.entries.load(Ordering::Acquire));
            }
        }
    }

    /// Completion queue `id` was filled up to `tail`.
    pub fn set_posted(&self, id: u16, tail: u32) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            // Release, with `has_unread`.
            queue.posted.store(tail, Ordering::Release);
        }
    }

    /// The vector of completion queue `id`, if that is one that interrupts.
    #[must_use]
    pub fn vector(&self, id: u16) -> Option<u16> {
        let queue = self.completion.get(usize::from(id))?;
        if queue.entries.load(Ordering::Acquire) == 0 {
            return None;
        }
        let vector = queue.vector.load(Ordering::Relaxed);
        (vector & INTERRUPTS != 0).then_some((vector & 0xffff) as u16)
    }

    /// Whether completion queue `id` interrupts and has entries that the guest has not taken.
    #[must_use]
    pub fn has_unread(&self, id: u16) -> bool {
        let Some(queue) = self.completion.get(usize::from(id)) else { return false };
        let head = match queue.shadow_head.load(Ordering::Relaxed) {
            BY_REGISTER => self.head(id),
            head => head,
        };
        self.vector(id).is_some() && queue.posted.load(Ordering::Acquire) != head
    }
}

impl std::fmt::Debug for QueueTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueueTable").field("queues", &self.queues()).finish_non_exhaustive()
    }
}

/// The doorbell of a submission queue's tail.
#[must_use]
pub const fn tail_of(queue: u16) -> usize {
    queue as usize * 2
}

/// The doorbell of a completion queue's head.
#[must_use]
pub const fn head_of(queue: u16) -> usize {
    queue as usize * 2 + 1
}

#[cfg(test)]
mod tests {
    use super::{BadDoorbell, QueueTable, TrappedDoorbells};

    fn queue_table() -> QueueTable {
        QueueTable::new(3, Box::new(TrappedDoorbells::new(3)))
    }

    #[test]
    fn a_doorbell_of_no_queue_is_refused() {
        let queue_table = queue_table();
        assert_eq!(queue_table.ring(2, 1), Err(BadDoorbell::Register), "not created");
        assert_eq!(queue_table.ring(6, 0), Err(BadDoorbell::Register), "beyond the last");
        queue_table.open_submission(1, 4, 7);
        assert_eq!(queue_table.ring(2, 3), Ok(Some(7)));
        assert_eq!(
            queue_table.ring(3, 0),
            Err(BadDoorbell::Register),
            "its completion queue was not created"
        );
        assert_eq!(queue_table.ring(2, 4), Err(BadDoorbell::Value));
        assert_eq!(queue_table.tail(1), 3, "a refused value is not kept");
        queue_table.close_submission(1);
        assert_eq!(queue_table.ring(2, 1), Err(BadDoorbell::Register));
    }

    #[test]
    fn a_head_wakes_only_who_waits_for_it() {
        let queue_table = queue_table();
        queue_table.open_completion(1, 8, None, 4);
        assert_eq!(queue_table.ring(3, 1), Ok(None));
        queue_table.await_head(1, true);
        assert_eq!(queue_table.ring(3, 2), Ok(Some(4)));
        queue_table.await_head(1, false);
        assert_eq!(queue_table.ring(3, 3), Ok(None));
    }

    #[test]
    fn who_looks_around_finds_each_new_value_once() {
        let queue_table = queue_table();
        let mut seen = vec![0; queue_table.doorbells()];
        let mut look = |queue_table: &QueueTable| {
            let mut rung = Vec::new();
            queue_table.poll_doorbells(&mut seen, |poll_group| rung.push(poll_group));
            rung
        };
        queue_table.open_submission(1, 8, 3);
        queue_table.open_completion(2, 8, None, 4);
        assert!(look(&queue_table).is_empty());
        // As a guest does that has mapped them.
        queue_table.doorbells.store(super::tail_of(1), 5);
        queue_table.doorbells.store(super::head_of(2), 5);
        queue_table.doorbells.store(super::tail_of(2), 5);
        assert_eq!(look(&queue_table), [3], "nobody waits for the head, and the other queue is not there");
        assert!(look(&queue_table).is_empty());
        queue_table.await_head(2, true);
        queue_table.doorbells.store(super::head_of(2), 6);
        assert_eq!(look(&queue_table), [4]);
    }

    #[test]
    fn the_head_that_was_written_last_is_read() {
        let queue_table = queue_table();
        queue_table.open_completion(1, 8, Some(0), 4);
        queue_table.set_posted(1, 3);
        queue_table.set_shadow_head(1, Some(2));
        assert!(queue_table.has_unread(1));
        queue_table.ring(3, 3).unwrap();
        assert!(!queue_table.has_unread(1), "by its register");
        queue_table.set_posted(1, 5);
        queue_table.set_shadow_head(1, Some(5));
        assert!(!queue_table.has_unread(1), "in memory");
        queue_table.ring(3, 4).unwrap();
        assert!(!queue_table.has_unread(1), "a register write that came late");
        queue_table.set_posted(1, 6);
        queue_table.ring(3, 6).unwrap();
        queue_table.set_shadow_head(1, Some(5));
        assert!(!queue_table.has_unread(1), "the memory was looked at before the register was written");
    }

    #[test]
    fn a_queue_begins_with_its_doorbell_at_zero() {
        let queue_table = queue_table();
        queue_table.open_submission(1, 8, 0);
        assert_eq!(queue_table.ring(2, 5), Ok(Some(0)));
        queue_table.close_submission(1);
        queue_table.open_submission(1, 8, 0);
        assert_eq!(queue_table.tail(1), 0);
    }

    #[test]
    fn only_a_queue_that_interrupts_has_a_vector_and_unread_entries() {
        let queue_table = queue_table();
        queue_table.open_completion(1, 8, None, 0);
        queue_table.open_completion(2, 8, Some(5), 0);
        queue_table.set_posted(1, 3);
        queue_table.set_posted(2, 3);
        assert_eq!((queue_table.vector(1), queue_table.vector(2)), (None, Some(5)));
        assert!(!queue_table.has_unread(1));
        assert!(queue_table.has_unread(2));
        assert_eq!(queue_table.ring(5, 3), Ok(None));
        assert!(!queue_table.has_unread(2));
    }
}
