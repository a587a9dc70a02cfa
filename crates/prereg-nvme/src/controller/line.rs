//! Interrupts: messages where the guest uses them, otherwise the pin.
//!
//! The pin is up as long as a completion queue that interrupts has entries which the guest has not taken, and its vector is
//! not masked. Whoever puts entries and whoever takes the guest's heads both ask here to look again; looking is done
//! under a lock, so the last one to look has seen both.

use std::collections::BTreeSet;
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
    up: Mutex<Up>,
}

#[derive(Debug, Default)]
struct Up {
    /// Completion queues that want the pin up.
    queues: BTreeSet<u16>,
    asserted: bool,
}

impl Line {
    pub(super) fn new(interrupts: Interrupts, shared: Arc<Shared>) -> Self {
        Self {
            interrupts,
            shared,
            mask: AtomicU32::new(0),
            pin: AtomicBool::new(false),
            up: Mutex::default(),
        }
    }

    /// Completion queue `cq` has news, and interrupts with `vector`.
    pub(super) fn signal(&self, cq: u16, vector: u16) {
        if self.interrupts.trigger(IrqKind::Msix, u32::from(vector)) {
            return;
        }
        if self.is_masked(vector) {
            return;
        }
        if self.interrupts.trigger(IrqKind::Msi, u32::from(vector)) {
            return;
        }
        // Relaxed: who clears this does it when no queue is left.
        self.pin.store(true, Ordering::Relaxed);
        self.look(cq);
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

    /// INTMS and INTMC: these vectors are masked now; `unmasked` were until now.
    pub(super) fn set_mask(&self, mask: u32, unmasked: u32) {
        self.mask.store(mask, Ordering::SeqCst);
        for cq in 0..self.shared.board.queues() {
            let Some(vector) = self.shared.board.vector(cq) else { continue };
            if self.uses_pin() {
                self.look(cq);
            } else if vector < 32 && unmasked >> vector & 1 != 0 && self.shared.board.unread(cq) {
                self.signal(cq, vector);
            }
        }
    }

    /// No queue is left.
    pub(super) fn clear(&self) {
        let mut up = self.up();
        up.queues.clear();
        self.settle(&mut up);
        self.mask.store(0, Ordering::SeqCst);
        self.pin.store(false, Ordering::Relaxed);
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
