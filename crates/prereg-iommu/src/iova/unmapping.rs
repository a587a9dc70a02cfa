//! The result of an unmap, which may have to wait for accesses.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::mapping::MappingState;
use super::state::ClosingState;
use super::unmap_tasks::UnmapTasks;

/// The mappings removed by an unmap. Dropping it changes nothing.
#[derive(Debug, Default)]
#[must_use = "an unmap is over only when no access is under way any more"]
pub struct Unmapping {
    mappings: u64,
    bytes: u128,
    /// Those that accesses held.
    waiting: Vec<Arc<MappingState>>,
}

impl Unmapping {
    /// Adds a closed mapping.
    pub(super) fn add(&mut self, state: Arc<MappingState>, is_empty: bool) {
        self.mappings += 1;
        self.bytes += u128::from(state.span.bytes());
        if !is_empty {
            self.waiting.push(state);
        }
    }

    /// Whether no access holds any of it any more: its units are released, and nothing reaches the memory through this map.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.waiting.iter().all(|state| state.is_done())
    }

    /// The futures of the map; `None` if nothing waits.
    pub(super) fn tasks(&self) -> Option<&UnmapTasks> {
        Some(self.waiting.first()?.closing().tasks())
    }

    /// Mappings removed.
    #[must_use]
    pub fn mappings(&self) -> u64 {
        self.mappings
    }

    /// Bytes removed; 2^64 is reported as 2^64 - 1.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(u64::MAX)
    }

    /// The mappings that accesses still hold.
    #[must_use]
    pub fn waiting(&self) -> Vec<ClosingState> {
        self.waiting.iter().filter(|state| !state.is_done()).map(|state| state.closing_state()).collect()
    }
}
