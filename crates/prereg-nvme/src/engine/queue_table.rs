//! Doorbells, and the state of each queue that other threads may see: entries, tail, vector.
//!
//! The thread that receives a doorbell write stores the value here. The poll group that serves the queue loads and checks it,
//! because only the poll group knows the position in the queue. Errors that need no position (no such queue, out of range) are
//! reported at once.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use super::doorbell::distance;

/// Storage of doorbell values: in the controller, or in memory that the guest writes. Doorbell `2 * queue` is the tail of a
/// submission queue, the next one the head of a completion queue.
pub trait Doorbells: Send + Sync {
    /// Loads a value; what the guest wrote before the doorbell is visible to later reads.
    fn load(&self, at: usize) -> u32;

    /// Stores a value.
    fn store(&self, at: usize, value: u32);
}

/// Doorbells whose writes are trapped.
#[derive(Debug)]
pub struct TrappedDoorbells {
    values: Box<[AtomicU32]>,
}

impl TrappedDoorbells {
    /// For `queues` pairs, including the admin queues.
    #[must_use]
    pub fn new(queues: u16) -> Self {
        Self { values: (0..usize::from(queues) * 2).map(|_| AtomicU32::new(0)).collect() }
    }
}

impl Doorbells for TrappedDoorbells {
    fn load(&self, at: usize) -> u32 {
        // Acquire, with `store`: the guest wrote commands to memory before the doorbell.
        self.values.get(at).map_or(0, |value| value.load(Ordering::Acquire))
    }

    fn store(&self, at: usize, value: u32) {
        if let Some(place) = self.values.get(at) {
            // Release: see `load`.
            place.store(value, Ordering::Release);
        }
    }
}

/// The reason why a doorbell write was ignored (figure 147).
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadDoorbell {
    /// The register is not a doorbell of an existing queue.
    #[error("a doorbell of no queue was written")]
    Register,
    /// The value is out of range for the queue.
    #[error("a doorbell was written with a value out of range")]
    Value,
}

prereg::debug_as_display!(BadDoorbell);

/// The state of all queues of a controller that several threads use.
pub struct QueueTable {
    doorbells: Box<dyn Doorbells>,
    submission: Box<[QueueState]>,
    completion: Box<[QueueState]>,
}

#[derive(Debug, Default)]
struct QueueState {
    /// 0: the queue does not exist.
    entries: AtomicU32,
    /// Completion queues: the tail.
    posted: AtomicU32,
    /// Completion queues: the head in the shadow doorbell, [`BY_REGISTER`] while the register counts.
    shadow_head: AtomicU32,
    /// Completion queues: the vector in bits 15:0, and [`INTERRUPTS`] if interrupts are enabled.
    vector: AtomicU32,
    /// The poll group that serves the queue.
    poll_group: AtomicU32,
    /// Completion queues: the poll group waits for the head.
    awaited: AtomicBool,
}

impl QueueState {
    /// The head register was written with `value`. It counts if it is ahead of the shadow doorbell; a register write that
    /// arrives late is behind.
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
/// In `shadow_head`: the register counts.
const BY_REGISTER: u32 = u32::MAX;

impl QueueTable {
    /// For `queues` pairs, including the admin queues; none exists yet.
    #[must_use]
    pub fn new(queues: u16, doorbells: Box<dyn Doorbells>) -> Self {
        let states = || (0..queues).map(|_| QueueState::default()).collect();
        Self { doorbells, submission: states(), completion: states() }
    }

    /// Pairs of queues, including the admin queues.
    pub(crate) fn queues(&self) -> u16 {
        self.submission.len() as u16
    }

    /// Creates a submission queue.
    pub fn open_submission(&self, id: u16, entries: u32, poll_group: u32) {
        self.doorbells.store(tail_of(id), 0);
        if let Some(queue) = self.submission.get(usize::from(id)) {
            // Relaxed: the store of `entries` publishes the others to `ring`.
            queue.poll_group.store(poll_group, Ordering::Relaxed);
            queue.entries.store(entries, Ordering::Release);
        }
    }

    /// Creates a completion queue.
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

    /// Deletes a submission queue.
    pub(crate) fn close_submission(&self, id: u16) {
        if let Some(queue) = self.submission.get(usize::from(id)) {
            queue.entries.store(0, Ordering::Release);
        }
    }

    /// Deletes a completion queue.
    pub(crate) fn close_completion(&self, id: u16) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            queue.entries.store(0, Ordering::Release);
        }
    }

    /// Deletes all queues and clears all doorbells.
    pub fn close_all(&self) {
        for id in 0..self.queues() {
            self.close_submission(id);
            self.close_completion(id);
            self.doorbells.store(tail_of(id), 0);
            self.doorbells.store(head_of(id), 0);
        }
    }

    /// Stores the value written to doorbell `at`. Returns the poll group to wake, if one has to.
    ///
    /// # Errors
    /// [`BadDoorbell`]; nothing was stored.
    pub fn ring(&self, at: usize, value: u32) -> Result<Option<u32>, BadDoorbell> {
        let is_tail = at % 2 == 0;
        let list = if is_tail { &self.submission } else { &self.completion };
        let queue = list.get(at / 2).ok_or(BadDoorbell::Register)?;
        // Acquire: pairs with the stores that create the queue.
        match queue.entries.load(Ordering::Acquire) {
            0 => Err(BadDoorbell::Register),
            entries if value >= entries => Err(BadDoorbell::Value),
            entries => {
                self.doorbells.store(at, value);
                if !is_tail {
                    queue.register_written(value, entries);
                }
                // Between the store of the value and the load of `awaited`; `await_head` has the same between its two. One of
                // the two sides sees the other's store.
                fence(Ordering::SeqCst);
                let wakes = is_tail || queue.awaited.load(Ordering::Relaxed);
                Ok(wakes.then(|| queue.poll_group.load(Ordering::Relaxed)))
            }
        }
    }

    /// The number of doorbells.
    #[must_use]
    pub fn doorbells(&self) -> usize {
        self.submission.len() * 2
    }

    /// Polls doorbells that the guest writes in memory. Calls `rung` with the poll group of each whose value differs from
    /// `seen`, and updates `seen`.
    pub(crate) fn poll_doorbells(&self, seen: &mut [u32], mut rung: impl FnMut(u32)) {
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

    /// Sets whether the poll group waits for the head of completion queue `id`. The caller checks the head once more
    /// afterwards.
    pub(crate) fn await_head(&self, id: u16, awaited: bool) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            if queue.awaited.load(Ordering::Relaxed) != awaited {
                queue.awaited.store(awaited, Ordering::Relaxed);
                // See `ring`.
                fence(Ordering::SeqCst);
            }
        }
    }

    /// Whether submission queue `id` exists.
    pub(crate) fn has_submission(&self, id: u16) -> bool {
        self.submission.get(usize::from(id)).is_some_and(|queue| queue.entries.load(Ordering::Acquire) > 0)
    }

    /// The tail doorbell of submission queue `id`.
    #[must_use]
    pub fn tail(&self, id: u16) -> u32 {
        self.doorbells.load(tail_of(id))
    }

    /// The head doorbell of completion queue `id`.
    #[must_use]
    pub fn head(&self, id: u16) -> u32 {
        self.doorbells.load(head_of(id))
    }

    /// Sets the head that the guest wrote to the shadow doorbell of completion queue `id`; `None`: the register counts. The
    /// register is left alone, because the guest may write it at the same time.
    pub(crate) fn set_shadow_head(&self, id: u16, head: Option<u32>) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            // Relaxed: a single number for `has_unread`; the poll group updates the interrupt after it changes this.
            let head = head.unwrap_or(BY_REGISTER);
            if queue.shadow_head.load(Ordering::Relaxed) != head {
                queue.shadow_head.store(head, Ordering::Relaxed);
            }
            if head != BY_REGISTER {
                // The register may have been written since the shadow doorbell was loaded.
                queue.register_written(self.head(id), queue.entries.load(Ordering::Acquire));
            }
        }
    }

    /// Sets the tail of completion queue `id`.
    pub(crate) fn set_posted(&self, id: u16, tail: u32) {
        if let Some(queue) = self.completion.get(usize::from(id)) {
            // Release, with `has_unread`.
            queue.posted.store(tail, Ordering::Release);
        }
    }

    /// The vector of completion queue `id`, if it has interrupts enabled.
    pub(crate) fn vector(&self, id: u16) -> Option<u16> {
        let queue = self.completion.get(usize::from(id))?;
        if queue.entries.load(Ordering::Acquire) == 0 {
            return None;
        }
        let vector = queue.vector.load(Ordering::Relaxed);
        (vector & INTERRUPTS != 0).then_some((vector & 0xffff) as u16)
    }

    /// Whether completion queue `id` has interrupts enabled and entries that the guest has not consumed.
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
    fn a_head_wakes_only_a_poll_group_that_waits_for_it() {
        let queue_table = queue_table();
        queue_table.open_completion(1, 8, None, 4);
        assert_eq!(queue_table.ring(3, 1), Ok(None));
        queue_table.await_head(1, true);
        assert_eq!(queue_table.ring(3, 2), Ok(Some(4)));
        queue_table.await_head(1, false);
        assert_eq!(queue_table.ring(3, 3), Ok(None));
    }

    #[test]
    fn polling_finds_each_new_value_once() {
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
        // As a guest does that has mapped the doorbells.
        queue_table.doorbells.store(super::tail_of(1), 5);
        queue_table.doorbells.store(super::head_of(2), 5);
        queue_table.doorbells.store(super::tail_of(2), 5);
        assert_eq!(
            look(&queue_table),
            [3],
            "no poll group waits for the head, and the other queue does not exist"
        );
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
