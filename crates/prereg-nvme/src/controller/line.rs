//! Interrupts: messages where the guest uses them, otherwise the pin.
//!
//! The pin is up as long as a completion queue that interrupts has entries which the guest has not taken, and its vector is
//! not masked. Whoever puts entries and whoever takes the guest's heads both ask here to look again; looking is done
//! under a lock, so the last one to look has seen both.
//!
//! A message can find nobody to tell for a moment: clients turn all vectors off and on again to change one of them. Such a
//! message is owed, and tried again until the guest has read the entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg_vfio_user::server::{Interrupts, IrqKind};

use crate::engine::shared::Shared;

/// A controller's interrupts.
#[derive(Debug)]
pub(super) struct Line {
    interrupts: Interrupts,
    shared: Arc<Shared>,
    /// INTMS: vectors 0 to 31, of the pin and of MSI.
    mask: AtomicU32,
    /// The pin is what the guest uses.
    pin: AtomicBool,
    /// Messages are owed.
    owes: AtomicBool,
    up: Mutex<Up>,
}

/// A message that nobody was there for.
#[derive(Clone, Copy, Debug)]
struct Owed {
    vector: u16,
    since: u64,
    next: u64,
}

/// Nanoseconds between tries, at first and at last, and until it is given up.
const FIRST_TRY: u64 = 1_000_000;
const LAST_TRY: u64 = 100_000_000;
const GIVEN_UP: u64 = 10_000_000_000;

#[derive(Debug, Default)]
struct Up {
    /// Completion queues that want the pin up.
    queues: BTreeSet<u16>,
    asserted: bool,
    owed: BTreeMap<u16, Owed>,
}

impl Line {
    pub(super) fn new(interrupts: Interrupts, shared: Arc<Shared>) -> Self {
        Self {
            interrupts,
            shared,
            mask: AtomicU32::new(0),
            pin: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            up: Mutex::default(),
        }
    }

    /// Completion queue `cq` has news at `now`, and interrupts with `vector`.
    pub(super) fn signal(&self, cq: u16, vector: u16, now: u64) {
        if self.message(vector) || self.is_masked(vector) {
            return;
        }
        // Relaxed: who clears these does it when no queue is left; who misses them for a moment looks again.
        self.pin.store(true, Ordering::Relaxed);
        self.up().owed.entry(cq).or_insert(Owed { vector, since: now, next: now + FIRST_TRY });
        self.owes.store(true, Ordering::Relaxed);
        self.look(cq);
    }

    /// Tries again to send what is owed; gives when to try next.
    pub(super) fn retry(&self, now: u64) -> Option<u64> {
        if !self.owes.load(Ordering::Relaxed) {
            return None;
        }
        let mut owed: Vec<(u16, Owed)> = self.up().owed.iter().map(|(cq, owed)| (*cq, *owed)).collect();
        owed.retain_mut(|(cq, owed)| {
            if now < owed.next {
                return true;
            }
            owed.next = now + (now - owed.since).clamp(FIRST_TRY, LAST_TRY);
            // No lock is held while a message is sent: a client can hold that up.
            self.shared.board.unread(*cq) && now - owed.since < GIVEN_UP && !self.message(owed.vector)
        });
        let next = owed.iter().map(|(_, owed)| owed.next).min();
        let mut up = self.up();
        up.owed.retain(|cq, there| match owed.iter().find(|(still, _)| still == cq) {
            Some((_, still)) => {
                there.next = still.next;
                true
            }
            // What came in the meantime was not tried.
            None => there.next > now,
        });
        self.owes.store(!up.owed.is_empty(), Ordering::Relaxed);
        next
    }

    fn message(&self, vector: u16) -> bool {
        let vector32 = u32::from(vector);
        self.interrupts.trigger(IrqKind::Msix, vector32)
            || !self.is_masked(vector) && self.interrupts.trigger(IrqKind::Msi, vector32)
    }

    /// Whether heads matter: the pin is what the guest uses.
    pub(super) fn uses_pin(&self) -> bool {
        self.pin.load(Ordering::Relaxed)
    }

    /// Looks whether `cq` wants the pin up.
    pub(super) fn look(&self, cq: u16) {
        let mut up = self.up();
        let wants = self.shared.board.unread(cq)
            && self.shared.board.vector(cq).is_some_and(|vector| !self.is_masked(vector));
        if wants {
            up.queues.insert(cq);
        } else {
            up.queues.remove(&cq);
        }
        self.settle(&mut up);
    }

    /// INTMS and INTMC: the vectors of `mask` are masked from `now` on; those of `unmasked` were until now.
    pub(super) fn set_mask(&self, mask: u32, unmasked: u32, now: u64) {
        self.mask.store(mask, Ordering::SeqCst);
        for cq in 0..self.shared.board.queues() {
            let Some(vector) = self.shared.board.vector(cq) else { continue };
            if self.uses_pin() {
                self.look(cq);
            } else if vector < 32 && unmasked >> vector & 1 != 0 && self.shared.board.unread(cq) {
                self.signal(cq, vector, now);
            }
        }
    }

    /// No queue is left.
    pub(super) fn clear(&self) {
        let mut up = self.up();
        up.queues.clear();
        up.owed.clear();
        self.settle(&mut up);
        self.mask.store(0, Ordering::SeqCst);
        self.pin.store(false, Ordering::Relaxed);
        self.owes.store(false, Ordering::Relaxed);
    }

    /// Whether the pin is up.
    pub(super) fn is_up(&self) -> bool {
        self.up().asserted
    }

    fn settle(&self, up: &mut Up) {
        let wanted = !up.queues.is_empty();
        if wanted != up.asserted {
            up.asserted = wanted;
            self.interrupts.set_level(wanted);
        }
    }

    fn is_masked(&self, vector: u16) -> bool {
        // SeqCst, with `set_mask`: a queue that finds itself masked was filled before the unmasking looks for it.
        vector < 32 && self.mask.load(Ordering::SeqCst) >> vector & 1 != 0
    }

    fn up(&self) -> MutexGuard<'_, Up> {
        // Both fields are good by themselves.
        self.up.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
