//! Interrupts: MSI-X or MSI if the guest enabled them, otherwise INTx.
//!
//! INTx is asserted as long as a completion queue with interrupts enabled and an unmasked vector has entries that the guest has
//! not consumed. The thread that posts entries and the thread that receives head doorbells both call this module; it evaluates
//! the state under a lock, so the last call has seen both.
//!
//! [`Interrupts`] keeps a message that cannot be sent yet as pending: its vector is masked, or the client disables all vectors
//! for a moment to change one of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg_vfio_user::server::{Interrupts, IrqKind};

use crate::engine::shared::Shared;

/// Which interrupts the guest uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum IrqMode {
    /// The configuration space does not say: those that the client has enabled.
    FromClient,
    /// INTx.
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
    /// INTMS: vectors 0 to 31, for INTx and MSI.
    mask: AtomicU32,
    /// An [`IrqMode`].
    mode: AtomicU8,
    /// The guest uses INTx.
    uses_pin: AtomicBool,
    pin_state: Mutex<PinState>,
}

#[derive(Debug, Default)]
struct PinState {
    /// Completion queues that assert INTx.
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

    /// The vfio-user interrupts, for masks of the function.
    pub(super) fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// The guest chose which interrupts it uses.
    pub(super) fn set_mode(&self, mode: IrqMode) {
        // Relaxed: an interrupt at the same time may use the old mode or the new one.
        self.mode.store(mode as u8, Ordering::Relaxed);
        if matches!(mode, IrqMode::Msi | IrqMode::Msix) {
            // INTx is no longer used.
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

    /// Completion queue `cq` has new entries, and interrupts with `vector`.
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
                // The client may be changing its vectors: then the new ones get this interrupt.
                self.interrupts.trigger(IrqKind::Msix, number);
                self.interrupts.trigger(IrqKind::Msi, number);
                // Relaxed: it is cleared when no queue is left; who misses it for a moment looks again.
                self.uses_pin.store(true, Ordering::Relaxed);
                self.update_pin(cq);
            }
        }
    }

    /// Whether the guest uses INTx, so that heads matter.
    pub(super) fn uses_pin(&self) -> bool {
        self.uses_pin.load(Ordering::Relaxed)
    }

    /// The guest wrote the head of `cq`. This never asserts INTx: entries can be seen and consumed before the thread that
    /// posted them stores the tail, and until then consumed entries look unread.
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

    /// Asserts or deasserts INTx for `cq`. For the thread that posts its entries.
    pub(super) fn update_pin(&self, cq: u16) {
        let mut state = self.pin_state();
        if self.wants_pin(cq) {
            state.queues.insert(cq);
        } else {
            state.queues.remove(&cq);
        }
        self.update_level(&mut state);
    }

    /// Sets the vectors that INTMS and INTMC mask. To be called with the registers locked, so that both have the last value;
    /// then [`mask_changed`](Self::mask_changed) without the lock.
    pub(super) fn set_mask(&self, mask: u32) {
        self.mask.store(mask, Ordering::SeqCst);
    }

    /// The mask changed; the vectors in `unmasked` were masked until then.
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

    /// All queues were deleted.
    pub(super) fn clear(&self) {
        let mut state = self.pin_state();
        state.queues.clear();
        self.update_level(&mut state);
        self.uses_pin.store(false, Ordering::Relaxed);
        self.interrupts.clear_pending();
    }

    /// Whether INTx is asserted.
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
        // SeqCst, with `set_mask`: a queue that finds itself masked has posted its entries before the unmasking looks for them.
        vector < 32 && self.mask.load(Ordering::SeqCst) >> vector & 1 != 0
    }

    fn pin_state(&self) -> MutexGuard<'_, PinState> {
        // Each field is valid by itself.
        self.pin_state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
