//! One mapping: what it leads to, and the gate that its accesses stand in.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prereg::{Access, Closed, Drain, Gate, Iova, Left};

use super::backing::Supply;
use super::limits::Span;
use super::state::ClosingState;
use super::units::Units;

/// The port of whoever waits for a mapping that was unmapped while accesses were under way.
pub trait Drained: Send + Sync {
    /// The last access of an unmapped mapping has left, and its units are given back. Called on the thread that left, with
    /// no lock held, once for each mapping that had to wait.
    fn drained(&self);
}

/// A live mapping, as the map has it.
pub(super) struct Mapping {
    /// Its last address and what it allows, as `state` has them: beside the first address, where a search comes by.
    pub(super) last: u64,
    pub(super) access: Access,
    pub(super) state: Arc<MappingState>,
    pub(super) leads_to: LeadsTo,
}

/// Where a mapping leads.
#[derive(Clone)]
pub(super) enum LeadsTo {
    Local(Arc<Units>),
    Supplied(Arc<dyn Supply>),
    Remote,
}

/// What of a mapping is there until its last access has left.
pub(super) struct MappingState {
    pub(super) span: Span,
    pub(super) access: Access,
    gate: Gate,
    /// It was unmapped, and nobody is inside any more.
    done: AtomicBool,
    closing: Arc<Closing>,
}

/// Unmapped mappings that wait for their accesses, and who is told.
pub(super) struct Closing {
    /// By their own addresses, which differ while they live.
    waiting: Mutex<BTreeMap<usize, Arc<MappingState>>>,
    drained: Arc<dyn Drained>,
}

impl Closing {
    pub(super) fn new(drained: Arc<dyn Drained>) -> Self {
        Self { waiting: Mutex::new(BTreeMap::new()), drained }
    }

    // Every change is one insertion or removal, so a panic elsewhere leaves the list right.
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<MappingState>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one of them has the byte at `iova`.
    pub(super) fn has(&self, iova: u64) -> bool {
        self.waiting().values().any(|state| state.span.first <= iova && iova <= state.span.last)
    }

    pub(super) fn states(&self) -> Vec<ClosingState> {
        let mut states: Vec<_> = self.waiting().values().map(|state| state.closing_state()).collect();
        states.sort_unstable_by_key(|state| state.iova);
        states
    }
}

impl MappingState {
    pub(super) fn new(span: Span, access: Access, closing: Arc<Closing>) -> Self {
        Self { span, access, gate: Gate::new(), done: AtomicBool::new(false), closing }
    }

    pub(super) fn iova(&self) -> Iova {
        Iova::new(self.span.first)
    }

    /// Accesses inside.
    pub(super) fn inside(&self) -> u64 {
        self.gate.inside()
    }

    /// Whether it was unmapped and the last access has left, its units given back.
    pub(super) fn is_done(&self) -> bool {
        // Acquire pairs with the Release in `drained`: what happened inside, and giving the units back, is seen.
        self.done.load(Ordering::Acquire)
    }

    pub(super) fn closing_state(&self) -> ClosingState {
        ClosingState {
            iova: self.iova(),
            bytes: self.span.bytes(),
            access: self.access,
            accesses: self.gate.inside(),
        }
    }

    /// Lets an access in.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Inside, Closed> {
        self.gate.enter()?;
        Ok(Inside(Arc::clone(self)))
    }

    /// Lists it as closing if somebody is inside. The lock of the mappings is held, and it is not among them any more: so
    /// from here on nobody enters.
    pub(super) fn list_as_closing(self: &Arc<Self>) {
        if self.gate.inside() > 0 {
            self.closing.waiting().insert(Arc::as_ptr(self).addr(), Arc::clone(self));
        }
    }

    /// Closes it for good. The caller has let go of its units. `true` when nobody is inside.
    pub(super) fn close(self: &Arc<Self>) -> bool {
        match self.gate.close_and_drain() {
            Drain::Empty => {
                // They left an open gate, so nobody was told.
                self.closing.waiting().remove(&Arc::as_ptr(self).addr());
                // Release pairs with `is_done`.
                self.done.store(true, Ordering::Release);
                true
            }
            Drain::Waiting(_) | Drain::Already => false,
        }
    }

    /// The last access has left a closed gate.
    fn drained(self: &Arc<Self>) {
        self.closing.waiting().remove(&Arc::as_ptr(self).addr());
        // Release pairs with `is_done`.
        self.done.store(true, Ordering::Release);
        self.closing.drained.drained();
    }
}

/// An access that is inside the gate of a mapping.
pub(super) struct Inside(Arc<MappingState>);

impl Inside {
    pub(super) fn state(&self) -> &MappingState {
        &self.0
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // A leave without an enter cannot be: only `enter` makes this.
        if self.0.gate.leave() == Ok(Left::Last) {
            self.0.drained();
        }
    }
}

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.closing_state(), f)
    }
}

impl fmt::Debug for MappingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.closing_state(), f)
    }
}
