//! One mapping: the rundown ref that its accesses stand in, and what it leads to behind it.
//!
//! What a mapping leads to, its units above all, is used by whoever is inside the rundown ref and taken out by whoever the rundown ref tells
//! that it is closed and empty: one caller, once, after the last use (the head of `prereg`'s `rundown_ref.rs` has the proof). So the
//! units are given back before anybody is told that the mapping is drained.

#![expect(
    unsafe_code,
    reason = "the units of a mapping are behind its rundown, which says who may use and who may take them"
)]

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prereg::{Access, Closed, DrainResult, Iova, LeaveResult, RundownRef};

use super::backing::Supply;
use super::limits::{PieceCount, PieceLimit, Span};
use super::on_demand::OnDemand;
use super::state::ClosingState;
use super::units::Units;
use contents::Contents;

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
}

/// Where a mapping leads.
pub(super) enum LeadsTo {
    Local(Units),
    Supplied(Arc<dyn Supply>),
    OnDemand(OnDemand),
    Remote,
}

impl LeadsTo {
    /// Pieces of memory that it needs room for: those it has, or will have as they are supplied.
    pub(super) fn pieces(&self) -> u64 {
        match self {
            Self::Local(units) => units.count(),
            Self::OnDemand(table) => table.pieces(),
            Self::Supplied(_) | Self::Remote => 0,
        }
    }
}

/// What of a mapping is there until its last access has left.
pub(super) struct MappingState {
    pub(super) span: Span,
    pub(super) access: Access,
    rundown: RundownRef,
    leads_to: Contents<LeadsTo>,
    /// Pieces of memory that are counted for it.
    pieces: AtomicU64,
    /// It was unmapped, and nobody is inside any more.
    done: AtomicBool,
    closing: Arc<Closing>,
}

/// Unmapped mappings that wait for their accesses, and who is told.
pub(super) struct Closing {
    /// By their own addresses, which differ while they live.
    waiting: Mutex<BTreeMap<usize, Arc<MappingState>>>,
    drained: Arc<dyn Drained>,
    /// Pieces that these and the live mappings lead to.
    pub(super) pieces: PieceCount,
    /// No access is to touch memory any more.
    revoked: AtomicBool,
}

impl Closing {
    pub(super) fn new(drained: Arc<dyn Drained>, pieces: PieceCount) -> Self {
        let (waiting, revoked) = (Mutex::new(BTreeMap::new()), AtomicBool::new(false));
        Self { waiting, drained, pieces, revoked }
    }

    pub(super) fn revoke(&self) {
        // Release pairs with the Acquire in `is_revoked`: what the caller does after this is not seen by an access that finds
        // it not revoked later.
        self.revoked.store(true, Ordering::Release);
    }

    pub(super) fn is_revoked(&self) -> bool {
        // Acquire pairs with the Release in `revoke`. An access that misses it comes before the call.
        self.revoked.load(Ordering::Acquire)
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
    /// A mapping for which `pieces` are counted.
    pub(super) fn new(
        span: Span,
        access: Access,
        leads_to: LeadsTo,
        pieces: u64,
        closing: Arc<Closing>,
    ) -> Self {
        let leads_to = Contents::new(leads_to);
        let (pieces, done) = (AtomicU64::new(pieces), AtomicBool::new(false));
        Self { span, access, rundown: RundownRef::new(), leads_to, pieces, done, closing }
    }

    /// Counts pieces that the mapping leads to beyond those it was made with. The caller is inside the rundown ref.
    pub(super) fn add_pieces(&self, pieces: u64) -> Result<(), PieceLimit> {
        self.closing.pieces.add(pieces)?;
        // Relaxed: whoever takes it in `finish` comes after the rundown ref was left.
        self.pieces.fetch_add(pieces, Ordering::Relaxed);
        Ok(())
    }

    /// Takes back [`add_pieces`](Self::add_pieces).
    pub(super) fn subtract_pieces(&self, pieces: u64) {
        // Relaxed, as above.
        self.pieces.fetch_sub(pieces, Ordering::Relaxed);
        self.closing.pieces.subtract(pieces);
    }

    pub(super) fn iova(&self) -> Iova {
        Iova::new(self.span.first)
    }

    /// Whether no access is to touch memory any more.
    pub(super) fn is_revoked(&self) -> bool {
        self.closing.is_revoked()
    }

    /// Accesses inside.
    pub(super) fn inside(&self) -> u64 {
        self.rundown.count()
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
            accesses: self.rundown.count(),
        }
    }

    /// Lets an access in.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Inside, Closed> {
        self.rundown.enter()?;
        Ok(Inside(Arc::clone(self)))
    }

    /// Lists it as closing if somebody is inside. The lock of the mappings is held, and it is not among them any more: so
    /// from here on nobody enters.
    pub(super) fn list_as_closing(self: &Arc<Self>) {
        if self.rundown.count() > 0 {
            self.closing.waiting().insert(Arc::as_ptr(self).addr(), Arc::clone(self));
        }
    }

    /// Closes it for good. `true` when nobody is inside, and then its units are given back.
    pub(super) fn close(self: &Arc<Self>) -> bool {
        match self.rundown.close_and_drain() {
            DrainResult::Empty => {
                // SAFETY: the rundown ref says so.
                let leads_to = unsafe { self.leads_to.take() };
                self.finish(leads_to);
                true
            }
            DrainResult::Waiting(_) | DrainResult::Already => false,
        }
    }

    /// Gives the units back, then says so.
    fn finish(self: &Arc<Self>, leads_to: Option<LeadsTo>) {
        drop(leads_to);
        // Relaxed: those that changed it have left the rundown ref.
        self.closing.pieces.subtract(self.pieces.load(Ordering::Relaxed));
        self.closing.waiting().remove(&Arc::as_ptr(self).addr());
        // Release pairs with `is_done`.
        self.done.store(true, Ordering::Release);
    }
}

/// An access that is inside the rundown ref of a mapping.
pub(super) struct Inside(Arc<MappingState>);

impl Inside {
    pub(super) fn state(&self) -> &MappingState {
        &self.0
    }

    /// What is behind the rundown ref.
    pub(super) fn leads_to(&self) -> &LeadsTo {
        // SAFETY: this is inside the rundown ref as long as it lives.
        unsafe { self.0.leads_to.get() }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // A leave without an enter cannot be: only `enter` makes this.
        if self.0.rundown.leave() == Ok(LeaveResult::Last) {
            // SAFETY: the rundown ref says so.
            let leads_to = unsafe { self.0.leads_to.take() };
            self.0.finish(leads_to);
            self.0.closing.drained.drained();
        }
    }
}

mod contents {
    //! A value that is used by many and taken out by one; who when, a rundown ref beside it says.

    use core::cell::UnsafeCell;

    pub(super) struct Contents<T>(UnsafeCell<Option<T>>);

    // SAFETY: it is used by many threads at once, and taken out by another one than put it in, both by the rules of its
    // methods.
    unsafe impl<T: Send + Sync> Sync for Contents<T> {}

    impl<T> Contents<T> {
        pub(super) fn new(value: T) -> Self {
            Self(UnsafeCell::new(Some(value)))
        }

        /// The value.
        ///
        /// # Safety
        /// As long as the caller uses it, nobody takes it out: he is inside the rundown ref.
        pub(super) unsafe fn get(&self) -> &T {
            // SAFETY: nobody takes it out, so nobody writes.
            let value = unsafe { &*self.0.get() };
            value.as_ref().expect("it is taken out only when the rundown is closed and empty")
        }

        /// Takes it out.
        ///
        /// # Safety
        /// Nobody uses it any more, or ever will: the rundown ref told the caller that it is closed and empty, which it tells once.
        pub(super) unsafe fn take(&self) -> Option<T> {
            // SAFETY: nobody else has a reference into it.
            let value = unsafe { &mut *self.0.get() };
            value.take()
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
