//! The requests of a queue that are not done.

use super::part::Data;
use crate::disk::{DiskFault, Operation};

/// A request and its progress.
pub(super) struct ActiveRequest {
    pub(super) tag: u64,
    pub(super) operation: Operation,
    pub(super) data: Data,
    pub(super) bytes: u64,
    /// Parts not done yet.
    pub(super) parts: usize,
    pub(super) fault: Option<DiskFault>,
    /// An `fdatasync` has to follow.
    pub(super) sync_after: bool,
}

/// Requests by small keys, which are reused.
#[derive(Default)]
pub(super) struct Requests {
    slots: Vec<Option<ActiveRequest>>,
    free: Vec<usize>,
}

impl Requests {
    pub(super) fn insert(&mut self, active: ActiveRequest) -> usize {
        if let Some(key) = self.free.pop() {
            self.slots[key] = Some(active);
            key
        } else {
            self.slots.push(Some(active));
            self.slots.len() - 1
        }
    }

    pub(super) fn get(&self, key: usize) -> Option<&ActiveRequest> {
        self.slots.get(key)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut ActiveRequest> {
        self.slots.get_mut(key)?.as_mut()
    }

    pub(super) fn take(&mut self, key: usize) -> Option<ActiveRequest> {
        let active = self.slots.get_mut(key)?.take()?;
        self.free.push(key);
        Some(active)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
