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
pub(super) enum IrqMode {
    /// The configuration space does not say: those that the client is told of.
    FromClient,
    /// The pin.
    Pin,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
}

/// A controller's interrupts.
#[derive(Debug)]
pub(super) struct Irq {
    interrupts: Interrupts,
    engine: Arc<Shared>,
    /// INTMS: vectors 0 to 31, of the pin and of MSI.
    mask: AtomicU32,
    /// [`IrqMode`].
    mode: AtomicU8,
    /// The pin is what the guest uses.
    uses_pin: AtomicBool,
    pin_state: Mutex<PinState>,
}

#[derive(Debug, Default)]
struct PinState {
    /// Completion queues that want the pin state.
    queues: BTreeSet<u16>,
    asserted: bool,
}

impl Irq {
    pub(super) fn new(interrupts: Interrupts, engine: Arc<Shared>) -> Self {
        Self {
            interrupts,
            engine,
            mask: AtomicU32::new(0),
            mode: AtomicU8::new(IrqMode::FromClient as u8),
            uses_pin: AtomicBool::new(false),
            pin_state: Mutex::default(),
        }
    }

    /// The interrupts behind it, for the function's own masks.
    pub(super) fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// The guest chose which interrupts it uses.
    pub(super) fn set_mode(&self, mode: IrqMode) {
        // Relaxed: an interrupt that meets the change is told by what was in use before, or by what is now.
        self.mode.store(mode as u8, Ordering::Relaxed);
        if matches!(mode, IrqMode::Msi | IrqMode::Msix) {
            // What went by the pin until now goes by messages.
            self.uses_pin.store(false, Ordering::Relaxed);
            let mut state = self.pin_state();
            state.queues.clear();
            self.update_level(&mut state);
        }
    }

    fn mode(&self) -> IrqMode {
        const KINDS: [IrqMode; 4] = [IrqMode::FromClient, IrqMode::Pin, IrqMode::Msi, IrqMode::Msix];
        match KINDS[usize::from(self.mode.load(Ordering::Relaxed)) % KINDS.len()] {
            IrqMode::FromClient if self.interrupts.any_enabled(IrqKind::Msix) => IrqMode::Msix,
            IrqMode::FromClient if self.interrupts.any_enabled(IrqKind::Msi) => IrqMode::Msi,
            mode => mode,
        }
    }

    /// Completion queue `cq` has news, and interrupts with `vector`.
    pub(super) fn signal(&self, cq: u16, vector: u16) {
        let number = u32::from(vector);
        match self.mode() {
            IrqMode::Msix => {
                self.interrupts.trigger(IrqKind::Msix, number);
            }
            _ if self.is_masked(vector) => {}
            IrqMode::Msi => {
                self.interrupts.trigger(IrqKind::Msi, number);
            }
            IrqMode::FromClient | IrqMode::Pin => {
                // A client may be about to change its vectors: then this is told by the new ones.
                self.interrupts.trigger(IrqKind::Msix, number);
                self.interrupts.trigger(IrqKind::Msi, number);
                // Relaxed: who clears it does so when no queue is left; who misses it for a moment looks again.
                self.uses_pin.store(true, Ordering::Relaxed);
                self.update_pin(cq);
            }
        }
    }

    /// Whether heads matter: the pin is what the guest uses.
    pub(super) fn uses_pin(&self) -> bool {
        self.uses_pin.load(Ordering::Relaxed)
    }

    /// The guest took entries of `cq`. This never raises the pin: entries can be seen, and taken, before the thread that put
    /// them says how many there are, and until then what was taken looks like something has_unread.
    pub(super) fn head_written(&self, cq: u16) {
        let mut state = self.pin_state();
        if !self.wants_pin(cq) {
            state.queues.remove(&cq);
            self.update_level(&mut state);
        }
    }

    fn wants_pin(&self, cq: u16) -> bool {
        self.engine.queue_table.has_unread(cq)
            && self.engine.queue_table.vector(cq).is_some_and(|vector| !self.is_masked(vector))
    }

    /// Looks whether `cq` wants the pin state. For the thread that puts its entries.
    pub(super) fn update_pin(&self, cq: u16) {
        let mut state = self.pin_state();
        if self.wants_pin(cq) {
            state.queues.insert(cq);
        } else {
            state.queues.remove(&cq);
        }
        self.update_level(&mut state);
    }

    /// INTMS and INTMC, and a reset: the vectors of `mask` are masked from now on, and no others. To be called with the registers
    /// locked, so that both have the value that was written last; then [`mask_changed`](Self::mask_changed) without.
    pub(super) fn set_mask(&self, mask: u32) {
        self.mask.store(mask, Ordering::SeqCst);
    }

    /// The mask changed; the vectors of `unmasked` were masked until then.
    pub(super) fn mask_changed(&self, unmasked: u32) {
        for cq in 0..self.engine.queue_table.queues() {
            let Some(vector) = self.engine.queue_table.vector(cq) else { continue };
            if self.uses_pin() {
                self.update_pin(cq);
            } else if vector < 32 && unmasked >> vector & 1 != 0 && self.engine.queue_table.has_unread(cq) {
                self.signal(cq, vector);
            }
        }
    }

    /// No queue is left.
    pub(super) fn clear(&self) {
        let mut state = self.pin_state();
        state.queues.clear();
        self.update_level(&mut state);
        self.uses_pin.store(false, Ordering::Relaxed);
        self.interrupts.clear_pending();
    }

    /// Whether the pin is state.
    pub(super) fn is_asserted(&self) -> bool {
        self.pin_state().asserted
    }

    fn update_level(&self, state: &mut PinState) {
        let wanted = !state.queues.is_empty();
        if wanted != state.asserted {
            state.asserted = wanted;
            self.interrupts.set_level(wanted);
        }
    }

    fn is_masked(&self, vector: u16) -> bool {
        // SeqCst, with `set_mask`: a queue that finds itself masked was filled before the unmasking looks for it.
        vector < 32 && self.mask.load(Ordering::SeqCst) >> vector & 1 != 0
    }

    fn pin_state(&self) -> MutexGuard<'_, PinState> {
        // Both fields are good by themselves.
        self.pin_state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
