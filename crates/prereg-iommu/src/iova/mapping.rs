//! One mapping: the rundown ref that its accesses hold, and the memory behind it.
//!
//! The target of a mapping, its segments above all, is used by holders of the rundown ref and taken out once, by the caller to
//! which the rundown ref reports that it is closed and empty (proof in `prereg`'s `rundown_ref.rs`). So the segments are
//! released before the mapping is reported as drained.

#![expect(
    unsafe_code,
    reason = "the segments of a mapping are behind its rundown, which says who may use and who may take them"
)]

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prereg::{Access, Closed, DrainResult, Iova, LeaveResult, RundownRef};

use super::backing::MemoryProvider;
use super::limits::{IovaRange, SegmentCount, SegmentLimit};
use super::on_demand::OnDemand;
use super::segments::MappedSegments;
use super::state::ClosingState;
use super::unmap_tasks::UnmapTasks;
use rundown_cell::RundownCell;

/// The port that is notified when an unmapped mapping has no more accesses.
pub trait OnDrained: Send + Sync {
    /// The last access of an unmapped mapping has been dropped and its units are released. Called on the thread that
    /// dropped it, with no lock held, once for each mapping that had to wait.
    fn on_drained(&self);
}

impl<F: Fn() + Send + Sync> OnDrained for F {
    fn on_drained(&self) {
        self();
    }
}

/// An entry of the map.
pub(super) struct LiveMapping {
    /// Copies of the state's, next to the key, so that a search does not load the state.
    pub(super) last: u64,
    pub(super) access: Access,
    pub(super) state: Arc<MappingState>,
}

/// The memory behind a mapping.
pub(super) enum Target {
    Local(MappedSegments),
    PerAccess(Arc<dyn MemoryProvider>),
    OnDemand(OnDemand),
    Remote,
}

impl Target {
    /// Segments to count: those it has, or may get as blocks are provided.
    pub(super) fn segments(&self) -> u64 {
        match self {
            Self::Local(segments) => segments.count(),
            Self::OnDemand(table) => table.blocks(),
            Self::PerAccess(_) | Self::Remote => 0,
        }
    }
}

/// The state of a mapping until its last access is dropped.
pub(super) struct MappingState {
    pub(super) span: IovaRange,
    pub(super) access: Access,
    rundown: RundownRef,
    target: RundownCell<Target>,
    /// Segments that are counted for it.
    segments: AtomicU64,
    /// It was unmapped and the last access is dropped.
    done: AtomicBool,
    closing: Arc<ClosingMappings>,
}

/// Unmapped mappings that wait for accesses, and the port to notify.
pub(super) struct ClosingMappings {
    /// By the address of the state, which is unique while it lives.
    waiting: Mutex<BTreeMap<usize, Arc<MappingState>>>,
    drained: Arc<dyn OnDrained>,
    tasks: UnmapTasks,
    /// Segments of these and of the live mappings.
    pub(super) segments: SegmentCount,
    /// No access may touch memory any more.
    revoked: AtomicBool,
}

impl ClosingMappings {
    pub(super) fn new(drained: Arc<dyn OnDrained>, segments: SegmentCount) -> Self {
        let (waiting, revoked) = (Mutex::new(BTreeMap::new()), AtomicBool::new(false));
        Self { waiting, drained, tasks: UnmapTasks::default(), segments, revoked }
    }

    /// The futures of unmaps.
    pub(super) fn tasks(&self) -> &UnmapTasks {
        &self.tasks
    }

    pub(super) fn revoke(&self) {
        // Release pairs with the Acquire in `is_revoked`: an access that reads false later does not see the caller's next
        // steps.
        self.revoked.store(true, Ordering::Release);
    }

    pub(super) fn is_revoked(&self) -> bool {
        // Acquire pairs with the Release in `revoke`. An access that misses it comes before the call.
        self.revoked.load(Ordering::Acquire)
    }

    // Every change is one insertion or removal, so a poisoned list is consistent.
    fn waiting(&self) -> MutexGuard<'_, BTreeMap<usize, Arc<MappingState>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one of them contains `iova`.
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
    /// A mapping for which `segments` are counted already.
    pub(super) fn new(
        span: IovaRange,
        access: Access,
        target: Target,
        segments: u64,
        closing: Arc<ClosingMappings>,
    ) -> Self {
        let target = RundownCell::new(target);
        let (segments, done) = (AtomicU64::new(segments), AtomicBool::new(false));
        Self { span, access, rundown: RundownRef::new(), target, segments, done, closing }
    }

    /// Counts segments beyond those of [`new`](Self::new). The caller holds the rundown ref.
    pub(super) fn add_segments(&self, segments: u64) -> Result<(), SegmentLimit> {
        self.closing.segments.add(segments)?;
        // Relaxed: `finish` reads it after the caller left the rundown ref.
        self.segments.fetch_add(segments, Ordering::Relaxed);
        Ok(())
    }

    /// Reverts [`add_segments`](Self::add_segments).
    pub(super) fn subtract_segments(&self, segments: u64) {
        // Relaxed, as above.
        self.segments.fetch_sub(segments, Ordering::Relaxed);
        self.closing.segments.subtract(segments);
    }

    pub(super) fn closing(&self) -> &ClosingMappings {
        &self.closing
    }

    pub(super) fn iova(&self) -> Iova {
        Iova::new(self.span.first)
    }

    /// Whether no access may touch memory any more.
    pub(super) fn is_revoked(&self) -> bool {
        self.closing.is_revoked()
    }

    /// Accesses under way.
    pub(super) fn inside(&self) -> u64 {
        self.rundown.count()
    }

    /// Whether it was unmapped, its last access dropped and its units released.
    pub(super) fn is_done(&self) -> bool {
        // Acquire pairs with the Release in `finish`: accesses and the release of units happened before.
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

    /// Begins an access.
    pub(super) fn enter(self: &Arc<Self>) -> Result<RundownGuard, Closed> {
        self.rundown.enter()?;
        Ok(RundownGuard(Arc::clone(self)))
    }

    /// Lists it as closing if accesses hold it. The caller has the lock of the mappings and has removed this one, so no new
    /// access can begin.
    pub(super) fn list_as_closing(self: &Arc<Self>) {
        if self.rundown.count() > 0 {
            self.closing.waiting().insert(Arc::as_ptr(self).addr(), Arc::clone(self));
        }
    }

    /// Closes it. Returns whether no access holds it; its units are released then.
    pub(super) fn close(self: &Arc<Self>) -> bool {
        match self.rundown.close_and_drain() {
            DrainResult::Empty => {
                // SAFETY: the rundown ref is closed and empty, and reports that once.
                let target = unsafe { self.target.take() };
                self.finish(target);
                true
            }
            DrainResult::Waiting(_) | DrainResult::Already => false,
        }
    }

    /// Releases the units, then marks it as done.
    fn finish(self: &Arc<Self>, target: Option<Target>) {
        drop(target);
        // Relaxed: accesses that changed it have left the rundown ref.
        self.closing.segments.subtract(self.segments.load(Ordering::Relaxed));
        self.closing.waiting().remove(&Arc::as_ptr(self).addr());
        // Release pairs with the Acquire in `is_done`.
        self.done.store(true, Ordering::Release);
    }
}

/// An access that holds the rundown ref of a mapping.
pub(super) struct RundownGuard(Arc<MappingState>);

impl RundownGuard {
    pub(super) fn state(&self) -> &MappingState {
        &self.0
    }

    /// The memory behind the mapping.
    pub(super) fn target(&self) -> &Target {
        // SAFETY: this holds the rundown ref as long as it lives.
        unsafe { self.0.target.get() }
    }
}

impl Drop for RundownGuard {
    fn drop(&mut self) {
        // `enter` made this, so `leave` cannot underflow.
        if self.0.rundown.leave() == Ok(LeaveResult::Last) {
            // SAFETY: the rundown ref is closed and empty, and reports that once.
            let target = unsafe { self.0.target.take() };
            self.0.finish(target);
            self.0.closing.tasks.wake();
            self.0.closing.drained.on_drained();
        }
    }
}

mod rundown_cell {
    //! A value that many threads use and one takes out, as a rundown ref beside it permits.

    use core::cell::UnsafeCell;

    pub(super) struct RundownCell<T>(UnsafeCell<Option<T>>);

    // SAFETY: many threads use the value, and one other than the creator may take it out, as the contracts of the methods
    // allow.
    unsafe impl<T: Send + Sync> Sync for RundownCell<T> {}

    impl<T> RundownCell<T> {
        pub(super) fn new(value: T) -> Self {
            Self(UnsafeCell::new(Some(value)))
        }

        /// The value.
        ///
        /// # Safety
        /// The caller holds the rundown ref as long as it uses the value, so it is not taken out.
        pub(super) unsafe fn get(&self) -> &T {
            // SAFETY: not taken out by the caller's contract, so not written.
            let value = unsafe { &*self.0.get() };
            value.as_ref().expect("it is taken out only when the rundown is closed and empty")
        }

        /// Takes the value out.
        ///
        /// # Safety
        /// The rundown ref has reported to the caller, once, that it is closed and empty: no other use is left or can begin.
        pub(super) unsafe fn take(&self) -> Option<T> {
            // SAFETY: no other reference exists, by the caller's contract.
            let value = unsafe { &mut *self.0.get() };
            value.take()
        }
    }
}

impl fmt::Debug for RundownGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.closing_state(), f)
    }
}

impl fmt::Debug for MappingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.closing_state(), f)
    }
}
