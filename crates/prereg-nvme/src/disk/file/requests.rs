//! The requests of a queue that are not answered yet.

use super::part::Data;
use crate::disk::{DiskFault, Operation};

/// A request, and how far it is.
pub(super) struct Running {
    pub(super) tag: u64,
    pub(super) operation: Operation,
    pub(super) data: Data,
    pub(super) bytes: u64,
    /// Parts not done yet.
    pub(super) parts: usize,
    pub(super) fault: Option<DiskFault>,
    /// An `fdatasync` is still to follow.
    pub(super) sync_after: bool,
}

/// Requests by small numbers, which are used again.
#[derive(Default)]
pub(super) struct Requests {
    places: Vec<Option<Running>>,
    free: Vec<usize>,
}

impl Requests {
    pub(super) fn insert(&mut self, running: Running) -> usize {
        if let Some(key) = self.free.pop() {
            self.places[key] = Some(running);
            key
        } else {
            self.places.push(Some(running));
            self.places.len() - 1
        }
    }

    pub(super) fn get(&self, key: usize) -> Option<&Running> {
        self.places.get(key)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, key: usize) -> Option<&mut Running> {
        self.places.get_mut(key)?.as_mut()
    }

    pub(super) fn take(&mut self, key: usize) -> Option<Running> {
        let running = self.places.get_mut(key)?.take()?;
        self.free.push(key);
        Some(running)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}
