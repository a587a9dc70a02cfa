//! Interrupts: messages where the guest uses them, otherwise the pin.
//!
//! The pin is up as long as a completion queue that interrupts has entries which the guest has not taken, and its vector is
//! not masked. Whoever puts entries and whoever takes the guest's heads both ask here to look again; looking is done
//! under a lock, so the last one to look has seen both.
//!
//! A message that cannot be sent at the moment is pending in [`Interrupts`], which sends it when that is possible: its vector
//! is masked, or clients turn all vectors off and on again to change one of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg_vfio_user::server::{Interrupts, IrqKind};

use crate::engine::shared::Shared;

/// Which interrupts the guest uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum InUse {
    /// The configuration space does not say: those that the client is told of.
    Told,
    /// The pin.
    Pin,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
}

/// A controller's interrupts.
#[derive(Debug)]
pub(super) struct Line {
    interrupts: Interrupts,
    shared: Arc<Shared>,
    /// INTMS: vectors 0 to 31, of the pin and of MSI.
    mask: AtomicU32,
    /// [`InUse`].
    in_use: AtomicU8,
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
            in_use: AtomicU8::new(InUse::Told as u8),
            pin: AtomicBool::new(false),
            up: Mutex::default(),
        }
    }

    /// The interrupts behind it, for the function's own masks.
    pub(super) fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// The guest chose which interrupts it uses.
    pub(super) fn set_in_use(&self, in_use: InUse) {
        // Relaxed: an interrupt that meets the change is told by what was in use before, or by what is now.
        self.in_use.store(in_use as u8, Ordering::Relaxed);
        if matches!(in_use, InUse::Msi | InUse::Msix) {
            // What went by the pin until now goes by messages.
            self.pin.store(false, Ordering::Relaxed);
            let mut up = self.up();
            up.queues.clear();
            self.settle(&mut up);
        }
    }

    fn in_use(&self) -> InUse {
        const KINDS: [InUse; 4] = [InUse::Told, InUse::Pin, InUse::Msi, InUse::Msix];
        match KINDS[usize::from(self.in_use.load(Ordering::Relaxed)) % KINDS.len()] {
            InUse::Told if self.interrupts.any_enabled(IrqKind::Msix) => InUse::Msix,
            InUse::Told if self.interrupts.any_enabled(IrqKind::Msi) => InUse::Msi,
            in_use => in_use,
        }
    }

    /// Completion queue `cq` has news, and interrupts with `vector`.
    pub(super) fn signal(&self, cq: u16, vector: u16) {
        let number = u32::from(vector);
        match self.in_use() {
            InUse::Msix => {
                self.interrupts.trigger(IrqKind::Msix, number);
            }
            _ if self.is_masked(vector) => {}
            InUse::Msi => {
                self.interrupts.trigger(IrqKind::Msi, number);
            }
            InUse::Told | InUse::Pin => {
                // A client may be about to change its vectors: then this is told by the new ones.
                self.interrupts.trigger(IrqKind::Msix, number);
                self.interrupts.trigger(IrqKind::Msi, number);
                // Relaxed: who clears it does so when no queue is left; who misses it for a moment looks again.
                self.pin.store(true, Ordering::Relaxed);
                self.look(cq);
            }
        }
    }

    /// Whether heads matter: the pin is what the guest uses.
    pub(super) fn uses_pin(&self) -> bool {
        self.pin.load(Ordering::Relaxed)
    }

    /// The guest took entries of `cq`. This never raises the pin: entries can be seen, and taken, before the thread that put
    /// them says how many there are, and until then what was taken looks like something unread.
    pub(super) fn taken(&self, cq: u16) {
        let mut up = self.up();
        if !self.wants(cq) {
            up.queues.remove(&cq);
            self.settle(&mut up);
        }
    }

    fn wants(&self, cq: u16) -> bool {
        self.shared.board.unread(cq)
            && self.shared.board.vector(cq).is_some_and(|vector| !self.is_masked(vector))
    }

    /// Looks whether `cq` wants the pin up. For the thread that puts its entries.
    pub(super) fn look(&self, cq: u16) {
        let mut up = self.up();
        if self.wants(cq) {
            up.queues.insert(cq);
        } else {
            up.queues.remove(&cq);
        }
        self.settle(&mut up);
    }

    /// INTMS and INTMC, and a reset: the vectors of `mask` are masked from now on, and no others. To be called with the registers
    /// locked, so that both have the value that was written last; then [`mask_changed`](Self::mask_changed) without.
    pub(super) fn set_mask(&self, mask: u32) {
        self.mask.store(mask, Ordering::SeqCst);
    }

    /// The mask changed; the vectors of `unmasked` were masked until then.
    pub(super) fn mask_changed(&self, unmasked: u32) {
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
        self.pin.store(false, Ordering::Relaxed);
        self.interrupts.clear_pending();
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
