//! An unmap that may have to wait.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::mapping::MappingState;
use super::state::ClosingState;

/// What an unmap took away. Dropping it changes nothing.
#[derive(Debug, Default)]
#[must_use = "an unmap is over only when no access is under way any more"]
pub struct Unmapping {
    mappings: u64,
    bytes: u128,
    /// Those that somebody was inside of.
    waiting: Vec<Arc<MappingState>>,
}

impl Unmapping {
    /// Counts a mapping that is closed.
    pub(super) fn add(&mut self, state: Arc<MappingState>, is_empty: bool) {
        self.mappings += 1;
        self.bytes += u128::from(state.span.bytes());
        if !is_empty {
            self.waiting.push(state);
        }
    }

    /// Whether no access holds any of it any more. From then on nothing that happens through this map reaches the memory,
    /// and its units are given back.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.waiting.iter().all(|state| state.is_done())
    }

    /// Mappings taken away.
    #[must_use]
    pub fn mappings(&self) -> u64 {
        self.mappings
    }

    /// Bytes taken away; all 2^64 of them are shown as 2^64 - 1.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.bytes).unwrap_or(u64::MAX)
    }

    /// The mappings that accesses still hold, and how many each.
    #[must_use]
    pub fn waiting(&self) -> Vec<ClosingState> {
        self.waiting.iter().filter(|state| !state.is_done()).map(|state| state.closing_state()).collect()
    }
}
